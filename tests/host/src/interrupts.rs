//! The host's interrupts, as its kernel tells of them.

use std::fs;
use std::io;

use anyhow::{Context, Result};

/// Those that VFIO has for a function.
///
/// # Errors
/// Where `/proc/interrupts` cannot be read.
pub(crate) fn of(function: &str) -> Result<Vec<u32>> {
    Ok(listed(&fs::read_to_string("/proc/interrupts")?, function))
}

/// All others that the kernel knows by number.
///
/// # Errors
/// Where `/proc` cannot be read.
pub(crate) fn others(function: &str) -> Result<Vec<u32>> {
    let own = of(function)?;
    let folders = fs::read_dir("/proc/irq")?.flatten();
    let numbers = folders.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|number| !own.contains(number)).collect())
}

/// Allows an interrupt the processors of a mask.
///
/// # Errors
/// What the kernel says: an interrupt may be one that cannot be moved, a processor may be off.
pub(crate) fn allow(interrupt: u32, processors: u32) -> io::Result<()> {
    fs::write(format!("/proc/irq/{interrupt}/smp_affinity"), format!("{processors:x}"))
}

/// Takes a processor off, or on again.
///
/// # Errors
/// Where the kernel refuses.
pub(crate) fn set_online(processor: u32, online: bool) -> Result<()> {
    let path = format!("/sys/devices/system/cpu/cpu{processor}/online");
    fs::write(&path, if online { "1" } else { "0" }).with_context(|| format!("cannot write {path}"))
}

fn listed(text: &str, function: &str) -> Vec<u32> {
    let own = text.lines().filter(|line| line.contains("vfio-msi") && line.contains(function));
    own.filter_map(|line| line.trim_start().split_once(':')?.0.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_a_function_are_found() {
        let text = "\
            CPU0       CPU1
   1:          9          0  IR-IO-APIC    1-edge      i8042
  41:          7          2  IR-PCI-MSIX-0000:01:00.0    0-edge      vfio-msix[0](0000:01:00.0)
  42:          0          0  IR-PCI-MSIX-0000:02:00.0    0-edge      vfio-msix[0](0000:02:00.0)
  43:          1          0  IR-PCI-MSIX-0000:01:00.0    1-edge      vfio-msix[1](0000:01:00.0)
 NMI:          0          0   Non-maskable interrupts
";
        assert_eq!(listed(text, "0000:01:00.0"), [41, 43]);
        assert!(listed(text, "0000:03:00.0").is_empty());
    }
}
