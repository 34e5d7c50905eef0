//! Whether a function's interrupts stay on their processors, and whether the host has enough of them. None of it keeps a table from being direct.
//!
//! x86 only: elsewhere moves leave tables alone, and interrupts take no vectors of processors.

use std::fs;
use std::path::Path;

use pvmsi_hypervisor::{
    HostPaths, Irqbalance, Layout, Remapping, function_interrupts, interrupt_remapping,
};
use pvmsi_protocol::FunctionId;

use super::check::Check;

/// Vectors of a processor that devices can have: from `FIRST_EXTERNAL_VECTOR` (0x20) to `FIRST_SYSTEM_VECTOR` (0xeb), without that of system calls (0x80) and one for moves. Linux 6.1 to 7.3, `arch/x86/include/asm/irq_vectors.h`.
const VECTORS_OF_A_PROCESSOR: usize = 0xeb - 0x20 - 2;

/// Whether irqbalance moves the interrupts of functions that VFIO has.
pub(super) fn irqbalance(paths: &HostPaths) -> Check {
    const NAME: &str = "irqbalance";
    let Some(running) = Irqbalance::find(paths) else {
        return Check::good(NAME, "it does not run, as far as this process can see");
    };
    let process = running.process;
    if running.spares_driver("vfio-pci") {
        return Check::good(NAME, format!("process {process} leaves VFIO's interrupts alone"));
    }
    let script = if running.has_script() { ", unless its policy script spares them" } else { "" };
    Check::advice(
        NAME,
        "irqbalance",
        format!(
            "process {process} moves interrupts of functions{script}; the host's kernel touches mask bits of a direct \
             table meanwhile, and a masked vector can fire"
        ),
        "add --banmod=vfio to IRQBALANCE_ARGS in /etc/default/irqbalance or /etc/sysconfig/irqbalance (irqbalance \
         1.9.2 or newer), then systemctl restart irqbalance; or do without: systemctl disable --now irqbalance",
    )
}

/// Whether the interrupts of a function that a VMM has set up are pinned; `None` where there are none, or where the host's kernel writes messages when it moves them, so that the table stays trapped.
pub(super) fn affinity(paths: &HostPaths, folder: &Path, id: FunctionId) -> Option<Check> {
    const NAME: &str = "affinity";
    let interrupts = function_interrupts(paths, folder);
    if interrupts.is_empty() || matches!(interrupt_remapping(paths), Remapping::Missing { .. }) {
        return None;
    }
    let all = interrupts.len();
    let loose = interrupts.iter().filter(|interrupt| !interrupt.pinned).count();
    if loose == 0 {
        return Some(Check::good(NAME, format!("{all} interrupts, each with one processor")));
    }
    Some(Check::advice(
        NAME,
        "not-pinned",
        format!(
            "{loose} of {all} interrupts may be served by several processors, so the host may move them"
        ),
        format!(
            "pvmsi run pins them, unless told --pin-interrupts no; or by hand, which moves none: \
             cd /sys/bus/pci/devices/{id}/msi_irqs && for n in *; do cat /proc/irq/$n/effective_affinity_list \
             > /proc/irq/$n/smp_affinity_list; done"
        ),
    ))
}

/// How many interrupts the host can probably give a function; `None` where that is enough for all its vectors, or nobody can tell.
pub(super) fn room(paths: &HostPaths, folder: &Path, layout: &Layout) -> Option<Check> {
    let processors =
        online(&fs::read_to_string(paths.sysfs.join("devices/system/cpu/online")).ok()?)?;
    let used = in_use(&fs::read_to_string(paths.procfs.join("interrupts")).ok()?);
    // Its own are among those in use, and would be set up anew.
    let own = function_interrupts(paths, folder).len();
    let all = processors.saturating_mul(VECTORS_OF_A_PROCESSOR);
    let room = all.saturating_sub(used.saturating_sub(own));
    let vectors = usize::from(layout.vectors());
    (vectors > room).then(|| {
        Check::advice(
            "room",
            "few-interrupts",
            format!(
                "the host has interrupts for about {room} of its {vectors} vectors ({VECTORS_OF_A_PROCESSOR} for each of \
                 {processors} processors, {used} in use)"
            ),
            "a guest that asks for more is granted fewer, and most need few for each vCPU (most-vectors=N of pvmsi run \
             says how many); each processor that is online gives more",
        )
    })
}

/// How many processors a list like `0-3,8` names.
fn online(list: &str) -> Option<usize> {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    list.trim().split(',').try_fold(0_usize, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let count = number(last)?.checked_sub(number(first)?)?.checked_add(1)?;
        sum.checked_add(count)
    })
}

/// Lines of `/proc/interrupts` that begin with a number: the others are the processors' own.
fn in_use(interrupts: &str) -> usize {
    let device = |line: &&str| {
        line.split_once(':').is_some_and(|(name, _)| name.trim().parse::<u32>().is_ok())
    };
    interrupts.lines().filter(device).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_of_a_list() {
        assert_eq!(online("0\n"), Some(1));
        assert_eq!(online("0-1\n"), Some(2));
        assert_eq!(online("0-3,8,10-11\n"), Some(7));
        assert_eq!(online("\n"), None);
        assert_eq!(online("3-0"), None);
    }

    #[test]
    fn device_lines_are_numbered() {
        let text = "            CPU0       CPU1\n   0:         23          0  IR-IO-APIC    2-edge      timer\n \
                    128:          0         12  IR-PCI-MSIX-0000:01:00.0    0-edge      vfio-msix[0](0000:01:00.0)\n \
                    NMI:          0          0   Non-maskable interrupts\n ERR:          0\n";
        assert_eq!(in_use(text), 2);
    }
}
