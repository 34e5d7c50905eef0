//! Chapter 1: the service block, how arm64 asks for it, and versions.

use pvmsi_protocol::{CallError, CallId, Features, Parameter, Version};

use crate::host::call::{PAGE, request, success};
use crate::host::machine::Machine;
use crate::host::{HostFactory, HostOptions, Platform, Policy};
use crate::suite::{Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("service-block", &["W-101", "W-102", "H-103"], service_block),
    Test::host("no-service-shows-nothing", &["H-104", "H-122"], no_service),
    Test::host("discover-by-smccc", &["W-120", "H-122"], discover_by_smccc),
    Test::host("versions-of-headers", &["W-130", "H-131"], versions),
];

pub(super) const ARM64: Platform = Platform::ARM64;
const DISCOVER: u32 = 0xc600_5650;
pub(super) const CALL: u32 = 0xc600_5651;
pub(super) const NOT_SUPPORTED: u64 = u64::MAX;
pub(super) const INVALID: u64 = u64::MAX - 2;

fn service_block(factory: &dyn HostFactory) -> Verdict {
    for policy in [Policy::Direct, Policy::Trapped] {
        let options = HostOptions { policy, ..HostOptions::default() };
        let machine = Machine::with(factory, options)?;
        let leaf = |number| there("a service block", machine.host.service_block(number));
        let [highest, signature @ ..] = leaf(0)?;
        equal("signature", signature, [0x4d2d_5650, 0x4953, 0])?;
        holds("a highest leaf of base + 3 or more", highest >= 3)?;
        let [version, features, zeros @ ..] = leaf(1)?;
        equal("version", version, 1 << 16)?;
        let known = Features::all().bits();
        equal("feature bits that are not defined", features & !known, 0)?;
        equal("the rest of leaf 1", zeros, [0, 0])?;
        let [port, low, high, zero] = leaf(2)?;
        // Where there are SMCCC calls the doorbell is one of them.
        let named = (port, low, high) != (0, 0, 0) || machine.platform != Platform::X86;
        holds("a port or a register as doorbell", named)?;
        holds("a port of 16 bits", port <= 0xffff)?;
        equal("the rest of leaf 2", zero, 0)?;
        let [buffer, vectors, zeros @ ..] = leaf(3)?;
        holds("a largest buffer of 4096 to 65,536", (4096..=65536).contains(&buffer))?;
        holds("1 to 2048 vectors", (1..=2048).contains(&vectors))?;
        equal("the rest of leaf 3", zeros, [0, 0])?;
    }
    Ok(())
}

fn no_service(factory: &dyn HostFactory) -> Verdict {
    for platform in factory.platforms() {
        let options =
            HostOptions { policy: Policy::Off, platform: Some(platform), ..HostOptions::default() };
        let machine = Machine::with(factory, options)?;
        equal("leaf 0 of the service block", machine.host.service_block(0), None)?;
        for call in CallId::ALL {
            let header = request(call, machine.function, 0);
            let (answer, _) = machine.ring(PAGE, header, &[])?;
            equal("the buffer's header", answer, header)?;
        }
        for function in [DISCOVER, CALL] {
            if let Some([status, ..]) = machine.host.smccc(function, u64::from(PAGE)) {
                equal("X0", status, NOT_SUPPORTED)?;
            }
        }
    }
    Ok(())
}

fn discover_by_smccc(factory: &dyn HostFactory) -> Verdict {
    let machine =
        Machine::with(factory, HostOptions { platform: Some(ARM64), ..HostOptions::default() })?;
    let discover = |leaf| there("SMCCC calls", machine.host.smccc(DISCOVER, leaf));
    for leaf in 0..4 {
        let [a, b, c, d] = there("a service block", machine.host.service_block(leaf))?;
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let what = format!("X0 to X3 for leaf {leaf}");
        equal(&what, discover(leaf.into())?, [0, pair(a, b), pair(c, d), 0])?;
    }
    for leaf in [4, 1 << 32, u64::MAX] {
        equal("X0 to X3 for a leaf that is not there", discover(leaf)?, [INVALID, 0, 0, 0])?;
    }
    let unknown = there("SMCCC calls", machine.host.smccc(CALL + 1, 0))?;
    equal("X0 of an unknown call", unknown[0], NOT_SUPPORTED)
}

fn versions(factory: &dyn HostFactory) -> Verdict {
    let machine = Machine::enabled(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for (major, minor) in [(0, 0), (1, 1), (1, 0xffff), (2, 0), (0xffff, 0)] {
        let version = Version { major, minor };
        for call in CallId::ALL.into_iter().filter(|call| *call != CallId::Negotiate) {
            let header = pvmsi_protocol::Header { version, ..request(call, machine.function, 0) };
            let answer = machine.raw(PAGE, header, &[])?;
            let refusal = CallError::parameter(Parameter::Version);
            equal(&format!("{} with version {version:?}", call.name()), answer, Err(refusal))?;
        }
    }
    equal("the function after refused calls", machine.snapshot()?, before)?;
    success("release with version 1.0", machine.call(CallId::Release, &[])?).map(drop)
}
