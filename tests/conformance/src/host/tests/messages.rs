//! Chapter 6: guest messages.

use alloc::vec::Vec;

use pvmsi_protocol::{CallError, Features, GuestMessage, Parameter, Sequence, VectorSetup};

use super::discovery::ARM64;
use crate::host::machine::Machine;
use crate::host::{Ability, HostFactory, HostOptions, Platform};
use crate::suite::{Test, Verdict, equal, holds, there};

pub(super) const TESTS: &[Test] = &[
    Test::host("messages-to-local-apics", &["W-610"], local_apics),
    Test::host("messages-arrive-at-local-apics-as-they-are", &["W-610"], arrive_at_local_apics),
    Test::host("messages-that-no-local-apic-takes", &["H-601", "W-610"], no_local_apic),
    Test::host("extended-destination-ids", &["W-610"], extended),
    Test::host("extended-destination-ids-arrive-whole", &["H-611"], extended_arrive),
    Test::host("extended-destination-ids-in-both-fields", &["H-601", "W-610"], in_both_fields),
    Test::host("no-extended-destination-ids", &["H-601", "W-610", "H-611"], not_extended),
    Test::host("messages-to-an-its", &["W-620"], its),
    Test::host("messages-arrive-at-an-its-as-they-are", &["W-620"], arrive_at_its),
    Test::host("messages-that-no-its-takes", &["H-601", "W-620"], no_its),
    Test::host("an-event-belongs-to-one-vector", &["H-623"], one_vector),
    Test::host("an-event-in-two-entries", &["H-624"], two_entries),
];

/// Address bits 11 to 5.
const EXTENDED: u64 = 0xfe0;

const fn message(address: u64, data: u32) -> GuestMessage {
    GuestMessage { address, data }
}

/// A message without the bits that the platform ignores, and with the destination id in one field.
fn meaning(machine: &Machine, message: GuestMessage) -> GuestMessage {
    match machine.platform {
        Platform::X86 => {
            let extended = (message.address & EXTENDED) << 35;
            let address = message.address & !(EXTENDED | 3) | extended;
            GuestMessage { address, data: message.data & !0x7800 }
        }
        Platform::Arm64 { .. } => message,
    }
}

/// An event of vector 0 must arrive as this message.
fn arrives(machine: &Machine, message: GuestMessage) -> Verdict {
    machine.raise(0);
    let seen = machine.host.interrupts();
    let seen: Vec<_> = seen.into_iter().map(|seen| meaning(machine, seen)).collect();
    equal("interrupts", seen, vec![meaning(machine, message)])
}

/// Each must arrive as it is, whichever call has named it.
fn arrive(machine: &Machine, messages: &[GuestMessage]) -> Verdict {
    machine.needs(Ability::AnyMessage)?;
    for &message in messages {
        let setup = VectorSetup { message: Some(message), masked: false };
        machine.configure_with(1, &[setup])?;
        arrives(machine, message)?;
        machine.update(&[(0, 5)])?;
        machine.arrives(0, 5)?;
        let answer = machine.try_update(&[(0, message)])?;
        equal(&format!("update to {message:x?}"), answer.map(drop), Ok(()))?;
        arrives(machine, message)?;
    }
    Ok(())
}

/// Each must be taken by `configure` and by `update`.
fn taken(machine: &Machine, messages: &[GuestMessage]) -> Verdict {
    for &message in messages {
        let setup = VectorSetup { message: Some(message), masked: false };
        machine.configure_with(1, &[setup])?;
        let seen = machine.states()?.first().and_then(|state| state.guest_message);
        equal("guest message", seen, Some(message))?;
        machine.update(&[(0, 5)])?;
        machine.arrives(0, 5)?;
        let answer = machine.try_update(&[(0, message)])?;
        equal(&format!("update to {message:x?}"), answer.map(drop), Ok(()))?;
    }
    Ok(())
}

/// Each must be refused by `configure` and by `update`.
fn refused(machine: &Machine, messages: &[GuestMessage]) -> Verdict {
    machine.configure(4)?;
    let before = machine.snapshot()?;
    for &message in messages {
        let setups = [
            VectorSetup { message: None, masked: true },
            VectorSetup { message: Some(message), masked: true },
        ];
        let answer = machine.try_configure(2, Sequence::START, &setups)?;
        let error = CallError::vector(Parameter::Message, 1);
        equal(&format!("configure with {message:x?}"), answer.map(drop), Err(error))?;
        let answer = machine.try_update(&[(1, machine.message(7)), (3, message)])?;
        let error = CallError::vector(Parameter::Message, 3);
        equal(&format!("update to {message:x?}"), answer.map(drop), Err(error))?;
    }
    equal("the function", machine.snapshot()?, before)
}

fn x86(factory: &dyn HostFactory) -> Verdict<Machine> {
    let platform = Some(Platform::X86);
    Machine::enabled_with(factory, HostOptions { platform, ..HostOptions::default() })
}

/// With the feature or without; the test does not care about the rest.
fn x86_with(factory: &dyn HostFactory, extended: bool) -> Verdict<Machine> {
    let options = HostOptions {
        platform: Some(Platform::X86),
        extended_destination_ids: Some(extended),
        ..HostOptions::default()
    };
    let machine = Machine::enabled_with(factory, options)?;
    let [_, features, ..] = there("a service block", machine.host.service_block(1))?;
    let offered = features & Features::EXTENDED_DESTINATION_ID.bits() != 0;
    equal("extended-destination-id is offered", offered, extended)?;
    Ok(machine)
}

const TO_LOCAL_APICS: [GuestMessage; 5] = [
    message(0xfee0_0000, 0x10),
    message(0xfeef_f000, 0xff),
    // Redirection hint, logical destination, lowest priority.
    message(0xfee0_100c, 0x0141),
    // Ignored bits.
    message(0xfee0_1003, 0x7841),
    // NMI, whatever its vector.
    message(0xfee0_0000, 0x0400),
];

const EXTENDED_IDS: [GuestMessage; 8] = [
    // Bits 14 to 8 of the id, each end of them, and all.
    message(0xfee0_1020, 0x41),
    message(0xfee0_1800, 0x41),
    message(0xfeef_ffe0, 0x41),
    // With redirection hint and logical destination.
    message(0xfee0_104c, 0x0141),
    // Bits 31 to 8.
    message(0x0000_0100_fee0_1000, 0x41),
    message(0x8000_0000_fee0_1000, 0x41),
    message(0x0010_0000_fee0_2004, 0x41),
    message(0xffff_ff00_feef_f000, 0x41),
];

fn local_apics(factory: &dyn HostFactory) -> Verdict {
    taken(&x86(factory)?, &TO_LOCAL_APICS)
}

fn arrive_at_local_apics(factory: &dyn HostFactory) -> Verdict {
    arrive(&x86(factory)?, &TO_LOCAL_APICS)
}

fn no_local_apic(factory: &dyn HostFactory) -> Verdict {
    refused(
        &x86(factory)?,
        &[
            message(0, 0x41),
            message(0xfed0_0000, 0x41),
            message(0xfef0_0000, 0x41),
            message(0x0000_0001_fee0_0000, 0x41),
            message(0x0000_0080_fee0_0000, 0x41),
            message(0x5650_0000_0000, 0),
            // An entry of an interrupt remapping table.
            message(0xfee0_1010, 0x41),
            // Vectors below 16; level triggered; SMI, INIT, ExtINT and reserved; reserved bits.
            message(0xfee0_0000, 0x0f),
            message(0xfee0_0000, 0x010f),
            message(0xfee0_0000, 0x8041),
            message(0xfee0_0000, 0x0241),
            message(0xfee0_0000, 0x0341),
            message(0xfee0_0000, 0x0541),
            message(0xfee0_0000, 0x0641),
            message(0xfee0_0000, 0x0741),
            message(0xfee0_0000, 0x1_0041),
            message(0xfee0_0000, 0x8000_0041),
        ],
    )
}

fn extended(factory: &dyn HostFactory) -> Verdict {
    taken(&x86_with(factory, true)?, &EXTENDED_IDS)
}

fn extended_arrive(factory: &dyn HostFactory) -> Verdict {
    arrive(&x86_with(factory, true)?, &EXTENDED_IDS)
}

fn in_both_fields(factory: &dyn HostFactory) -> Verdict {
    let both = [
        message(0x0000_0200_fee0_1020, 0x41),
        // The same id.
        message(0x0000_0100_fee0_1020, 0x41),
        message(0xffff_ff00_feef_ffe0, 0x41),
    ];
    refused(&x86_with(factory, true)?, &both)
}

fn not_extended(factory: &dyn HostFactory) -> Verdict {
    refused(&x86_with(factory, false)?, &EXTENDED_IDS)
}

fn arm64(factory: &dyn HostFactory) -> Verdict<Machine> {
    Machine::enabled_with(factory, HostOptions { platform: Some(ARM64), ..HostOptions::default() })
}

fn to_its() -> [GuestMessage; 4] {
    [0, 1, 31, 0xffff].map(|event| message(0x0809_0040, event))
}

fn its(factory: &dyn HostFactory) -> Verdict {
    taken(&arm64(factory)?, &to_its())
}

fn arrive_at_its(factory: &dyn HostFactory) -> Verdict {
    arrive(&arm64(factory)?, &to_its())
}

fn no_its(factory: &dyn HostFactory) -> Verdict {
    let machine = arm64(factory)?;
    let addresses = [0, 0x0809_0000, 0x0809_0044, 0x0809_003c, 0xfee0_0000, 0x1_0809_0040];
    refused(&machine, &addresses.map(|address| message(address, 1)))
}

fn one_vector(factory: &dyn HostFactory) -> Verdict {
    let machine = arm64(factory)?;
    machine.configure(4)?;
    let before = machine.snapshot()?;
    let refused = |what: &str, seen: Result<(), CallError>, vectors: &[u16]| {
        let named = vectors.iter().map(|&v| Err(CallError::vector(Parameter::SharedMessage, v)));
        holds(
            &format!("{what}: a shared message, not {seen:?}"),
            named.into_iter().any(|e| e == seen),
        )
    };
    for masked in [false, true] {
        let setups = [7, 8, 7].map(|n| VectorSetup { message: Some(machine.message(n)), masked });
        let seen = machine.try_configure(3, Sequence::START, &setups)?.map(drop);
        refused("configure", seen, &[0, 2])?;
    }
    let update = |updates: &[(u16, u16)]| {
        let updates: Vec<_> = updates.iter().map(|&(v, n)| (v, machine.message(n))).collect();
        Ok(machine.try_update(&updates)?.map(drop))
    };
    refused("update to the message of a vector that keeps it", update(&[(1, 3)])?, &[1])?;
    refused("update of two to one", update(&[(0, 9), (1, 9)])?, &[0, 1])?;
    refused("update of two, one of which keeps its", update(&[(2, 2), (0, 2)])?, &[0, 2])?;
    equal("the function", machine.snapshot()?, before)?;
    equal("update that swaps two", update(&[(0, 1), (1, 0)])?, Ok(()))?;
    machine.arrives(0, 1)?;
    machine.arrives(1, 0)?;
    equal("update to one that is free", update(&[(0, 9)])?, Ok(()))?;
    equal("update to what it has left", update(&[(3, 1)])?, Ok(()))?;
    machine.arrives(3, 1)?;
    let setup = VectorSetup { message: Some(machine.message(3)), masked: false };
    machine.configure_with(1, &[setup])?;
    machine.arrives(0, 3)
}

/// Each vector's event comes once, at the latest when the other has parted with the message.
fn two_entries(factory: &dyn HostFactory) -> Verdict {
    let machine = arm64(factory)?;
    for (first, second) in [(0, 1), (3, 2)] {
        for vector in [first, second] {
            machine.program(vector, machine.message(5));
        }
        machine.raise(first);
        let of_one = machine.interrupts()?;
        machine.raise(second);
        let of_both = [of_one, machine.interrupts()?].concat();
        holds("the event of one of two vectors", of_both.contains(&5))?;
        // Whichever it was.
        machine.mask(first);
        let later = machine.interrupts()?;
        machine.mask(second);
        machine.unmask(first);
        let all = [of_both, later, machine.interrupts()?].concat();
        equal("interrupts of two events", all, vec![5, 5])?;
        machine.arrives(first, 5)?;
        machine.program(first, machine.message(6));
        machine.unmask(second);
        machine.arrives(second, 5)?;
        machine.mask(first);
        machine.mask(second);
    }
    Ok(())
}
