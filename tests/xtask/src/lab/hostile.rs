//! The scenario of hostile guests with real functions behind an IOMMU, and of a host that wants a function back.

use std::time::Duration;

use super::Run;
use super::kind::{Iommu, Kind};
use super::machine::{NETWORK, NVME, Results, Step};
use crate::check::{Check, equal};
use crate::guests::FORGER;

/// What becomes of messages that a guest forges.
struct Fate {
    /// The forgeries, in order, each by a part of what the guest says of it, and what must arrive.
    forgeries: &'static [(&'static str, &'static str)],
    /// What the IOMMU must have logged about the forging function: parts of a line.
    faults: &'static [&'static [&'static str]],
}

const NOTHING: &str = "nothing arrived";

impl Fate {
    const fn of(iommu: Iommu) -> &'static Self {
        match iommu {
            Iommu::VtD | Iommu::None => &Self {
                forgeries: &[
                    ("the remapping handle of another function", NOTHING),
                    ("a handle of nobody", NOTHING),
                    ("an address outside the interrupt range", NOTHING),
                ],
                faults: &[
                    // Source-id verification.
                    &["INTR-REMAP", "02:00.0", "0x26"],
                    // No such entry.
                    &["INTR-REMAP", "02:00.0", "0x22"],
                    &["DMA Write", "02:00.0", "0xfed00000"],
                ],
            },
            // An index is one of the function's own table: it cannot name another's entry.
            Iommu::Amd => &Self {
                forgeries: &[
                    ("the index of another function", "its own interrupt arrived"),
                    ("an index of nobody", NOTHING),
                    ("an address outside the interrupt range", NOTHING),
                ],
                // QEMU's log has a device's function but not its bus, and no address.
                faults: &[&["AMD-Vi", "IO_PAGE_FAULT"]],
            },
            // The ITS drops an event that it does not know without a word.
            Iommu::SmmuV3 => &Self {
                forgeries: &[
                    ("an event of another function", NOTHING),
                    ("the host's own way to its interrupts", NOTHING),
                    ("an address outside the interrupt range", NOTHING),
                ],
                faults: &[&["arm-smmu-v3", "08090040"], &["arm-smmu-v3", "fed00000"]],
            },
        }
    }
}

/// What the host runs.
pub(super) fn steps() -> Vec<Step> {
    let run = format!(
        "pvmsi run --function vfio:{NETWORK} --function vfio:{NVME} --cpus 1 --report none"
    );
    vec![
        Step {
            name: "forge",
            limit: Duration::from_secs(120),
            command: format!("{run} --timeout 100 /bin/{FORGER}"),
        },
        Step {
            name: "faults",
            limit: Duration::from_secs(30),
            command: "dmesg | grep -E 'DMAR|AMD-Vi|arm-smmu-v3'".to_owned(),
        },
        Step {
            name: "unbind",
            limit: Duration::from_secs(150),
            // The write returns when the function is free.
            command: format!(
                "{run} --timeout 120 --append linger=1 /bin/{FORGER} > /run/guest & guest=$!; \
                 until grep -q ready /run/guest; do kill -0 $guest || break; sleep 1; done; \
                 echo {NETWORK} > /sys/bus/pci/devices/{NETWORK}/driver/unbind; \
                 [ -e /sys/bus/pci/devices/{NETWORK}/driver ] || echo unbound; \
                 wait $guest; echo guest $?; cat /run/guest"
            ),
        },
        Step {
            name: "again",
            limit: Duration::from_secs(120),
            command: format!(
                "echo {NETWORK} > /sys/bus/pci/drivers_probe; pvmsi probe {NETWORK} && \
                 {run} --timeout 100 /bin/{FORGER}"
            ),
        },
    ]
}

/// What the steps must have shown.
pub(super) fn judge(kind: &Kind, results: &Results) -> Run {
    let fate = Fate::of(kind.iommu);
    let output = |name| {
        let outcome = results.outcome(name).map_err(|error| format!("{error:#}"))?;
        equal("exit status", outcome.status, 0)?;
        Ok::<_, String>(outcome.output)
    };
    let forged = |name| {
        let output = output(name)?;
        let said: Vec<_> = output.lines().filter(|line| line.contains("forged: ")).collect();
        equal("forged messages", said.len(), fate.forgeries.len())?;
        for (line, (what, arrived)) in said.iter().zip(fate.forgeries) {
            contains(line, &[what, arrived])?;
        }
        contains(&output, &["released: the function works again"])
    };
    let mut checks = vec![Check::new("forged messages reach nobody else", forged("forge"))];
    let log = output("faults");
    for fault in fate.faults {
        let logged = log.as_ref().map_err(Clone::clone).and_then(|log| {
            let found = log.lines().any(|line| fault.iter().all(|part| line.contains(part)));
            if found { Ok(()) } else { Err(format!("not in the host's log: {fault:?}\n{log}")) }
        });
        checks.push(Check::new(&format!("the IOMMU has blocked {}", fault.join(" ")), logged));
    }
    let unbind = output("unbind");
    let told = |parts: &[&str]| {
        unbind.as_ref().map_err(Clone::clone).and_then(|output| contains(output, parts))
    };
    checks.extend([
        Check::new("the driver is unbound while a guest has the function", told(&["unbound"])),
        Check::new(
            "the guest is told",
            told(&[
                "told: the host has revoked the table",
                "told: the function is gone",
                "guest 0",
            ]),
        ),
        Check::new("the function works in a new guest", forged("again")),
    ]);
    Run { shown: None, checks }
}

fn contains(output: &str, parts: &[&str]) -> Result<(), String> {
    match parts.iter().find(|part| !output.contains(**part)) {
        None => Ok(()),
        Some(part) => Err(format!("not said: {part}\n{output}")),
    }
}
