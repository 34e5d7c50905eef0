//! What a kernel shows of interrupt remapping beside its answer to an attach.
//!
//! None of it proves isolation: each can only contradict it.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::vfio::host_paths::HostPaths;

/// Starts of the names of interrupt chips that remap: VT-d and AMD-Vi, their virtual kind (`vIR-`, Linux 6.3 to 6.12), an ITS of arm64.
const REMAPPING_CHIPS: &[&str] = &["IR-", "vIR-", "ITS-"];
/// Starts of the names of those that take messages, or pins, as they come. `MSI` is GICv2m's and MBI's before Linux 6.12, `PCI-MSI` also that of host bridges with a controller of their own.
const OPEN_CHIPS: &[&str] = &["IO-APIC", "PCI-MSI", "MSI", "GICv2m", "MBI-"];

/// How sysfs shows the class of a PCI function that is an IOMMU.
const CLASS_IOMMU: &str = "0x0806";

/// What kernels say where remapping stays off although there is an IOMMU (Linux 6.1 to 7.3, `drivers/iommu/intel/irq_remapping.c` and `drivers/iommu/amd/init.c`).
const REMAPPING_IS_OFF: &[&str] = &[
    "DMAR-IR: Failed to enable irq remapping",
    "DMAR-IR: Not enabling interrupt remapping",
    "DMAR-IR: This system BIOS has enabled interrupt remapping\\x0aon a chipset that contains an erratum",
    "AMD-Vi: Disabling interrupt remapping",
];
/// What iommufd says of a function that it binds because it was told to accept those without isolation (`iommufd_device_bind`).
const NOT_SECURE: &str = ": MSI interrupts are not secure";

/// Records of the kernel's log that are read at most. A log that grows as fast as it is read ends here.
const RECORDS_MAX: usize = 1 << 17;
/// A record is smaller (`PRINTK_MESSAGE_MAX`).
const RECORD_BYTES: usize = 8192;
/// The priorities of messages that the kernel itself has written, not user space through `/dev/kmsg`.
const KERNEL_PRIORITIES: std::ops::Range<u32> = 0..8;

/// What the names of the interrupt chips say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remapping {
    /// All chips that are known to tell remap interrupts.
    Seen,
    /// This one does not.
    Missing {
        /// Its name.
        chip: String,
        /// The host's interrupt that it serves.
        interrupt: String,
    },
    /// No chip here is known.
    Unknown,
}

/// Whether the host's interrupts are remapped, as far as the names of its interrupt chips tell. Interrupts of IOMMUs, and of functions that are behind none, say nothing of others.
pub fn interrupt_remapping(paths: &HostPaths) -> Remapping {
    let mut seen = Remapping::Unknown;
    for entry in fs::read_dir(paths.sysfs.join("kernel/irq")).into_iter().flatten().flatten() {
        let Ok(chip) = fs::read_to_string(entry.path().join("chip_name")) else { continue };
        let chip = chip.trim().to_owned();
        if remaps(&chip) {
            seen = Remapping::Seen;
        } else if starts(&chip, OPEN_CHIPS) {
            let interrupt = entry.file_name().to_string_lossy().into_owned();
            if !is_of_its_own(paths, &interrupt) {
                return Remapping::Missing { chip, interrupt };
            }
        }
    }
    seen
}

/// Whether an interrupt chip with this name is known to remap.
pub(in crate::vfio) fn remaps(chip: &str) -> bool {
    starts(chip, REMAPPING_CHIPS)
}

fn starts(name: &str, signs: &[&str]) -> bool {
    signs.iter().any(|sign| name.starts_with(sign))
}

/// Whether an interrupt is that of an IOMMU itself, which none remaps, or of a function without one.
fn is_of_its_own(paths: &HostPaths, interrupt: &str) -> bool {
    let functions = fs::read_dir(paths.sysfs.join("bus/pci/devices"));
    functions.into_iter().flatten().flatten().map(|entry| entry.path()).any(|function| {
        let is_iommu = || {
            let class = fs::read_to_string(function.join("class"));
            class.is_ok_and(|class| class.starts_with(CLASS_IOMMU))
        };
        function.join("msi_irqs").join(interrupt).exists()
            && (is_iommu() || !function.join("iommu").exists())
    })
}

/// What the kernel was told about interrupt remapping when it was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// To leave it off.
    Off,
    /// To remap without looking who sends: each function can raise the interrupts of all.
    AnySource,
}

/// Reads a kernel command line as the kernel does (`drivers/iommu/irq_remapping.c`, `setup_irqremap`): values are compared by their starts, and the last of `on` and `off` counts.
pub(super) fn told(command_line: &str) -> Told {
    let (mut off, mut any_source) = (false, false);
    let words = command_line.split_whitespace().map(|word| word.trim_matches('"'));
    // What follows is for init.
    for word in words.take_while(|&word| word != "--") {
        if word == "nointremap" || word.starts_with("nointremap=") {
            off = true;
        }
        for value in word.strip_prefix("intremap=").into_iter().flat_map(|list| list.split(',')) {
            let value = value.trim_matches('"');
            if value.starts_with("on") {
                off = false;
            } else if value.starts_with("off") {
                off = true;
            } else if value.starts_with("nosid") {
                any_source = true;
            }
        }
    }
    match (off, any_source) {
        (true, _) => Told::Off,
        (false, true) => Told::AnySource,
        (false, false) => Told::Nothing,
    }
}

/// The words of the kernel's log that contradict isolation: of the host, and of the function with this address. `None` also where the log may not be read, or begins after them.
pub(super) fn kernel_words(paths: &HostPaths, function: Option<&str>) -> Option<String> {
    let not_secure = function.map(|address| format!(" {address}{NOT_SECURE}"));
    let contradicts = |message: &&str| {
        REMAPPING_IS_OFF.iter().any(|words| message.starts_with(words))
            || not_secure.as_deref().is_some_and(|words| message.contains(words))
    };
    let mut words = None;
    // Without permission there are no words.
    let _ = each_record(&paths.dev.join("kmsg"), |records| {
        words = records.lines().filter_map(of_the_kernel).find(contradicts).map(str::to_owned);
        words.is_none()
    });
    words
}

/// The message of a record `priority,sequence,time,flags;message`, if the kernel has written it.
fn of_the_kernel(record: &str) -> Option<&str> {
    let (head, message) = record.split_once(';')?;
    let priority = head.split(',').next()?.parse().ok()?;
    KERNEL_PRIORITIES.contains(&priority).then_some(message)
}

/// Reads the log from its begin until `go_on` says no, or all is read. Never waits for a new record.
fn each_record(log: &Path, mut go_on: impl FnMut(&str) -> bool) -> io::Result<()> {
    let mut log = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(log)?;
    let mut buffer = vec![0; RECORD_BYTES];
    for _ in 0..RECORDS_MAX {
        match log.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let bytes = buffer.get(..count).unwrap_or_default();
                if !go_on(&String::from_utf8_lossy(bytes)) {
                    break;
                }
            }
            // Records were overwritten before they could be read; the next read goes on behind them.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::made_up::MadeUp;

    #[test]
    fn the_command_line_is_read_as_the_kernel_reads_it() {
        for (line, expected) in [
            ("ro quiet", Told::Nothing),
            ("intremap=on ro", Told::Nothing),
            ("intremap=nosid", Told::AnySource),
            ("intremap=no_x2apic_optout,nosid", Told::AnySource),
            ("intremap=nosid,on", Told::AnySource),
            ("intremap=nosidechannels", Told::AnySource),
            ("\"intremap=nosid\"", Told::AnySource),
            ("intremap=\"nosid,nopost\"", Told::AnySource),
            ("intremap=nopost,no_x2apic_optout", Told::Nothing),
            ("intremap=off", Told::Off),
            ("intremap=off,nosid", Told::Off),
            ("intremap=off intremap=on", Told::Nothing),
            ("nointremap", Told::Off),
            ("nointremap intremap=on", Told::Nothing),
            ("quiet -- intremap=nosid", Told::Nothing),
            ("my.intremap=nosid nointremapping", Told::Nothing),
        ] {
            assert_eq!(told(line), expected, "{line}");
        }
    }

    #[test]
    fn one_chip_that_does_not_remap_is_enough() {
        let host = MadeUp::new("chips");
        let paths = host.paths();
        assert_eq!(interrupt_remapping(&paths), Remapping::Seen);
        for chip in [
            "IO-APIC",
            "PCI-MSI",
            "PCI-MSIX-0000:00:02.0",
            "MSI",
            "GICv2m-PCI-MSIX-0000:00:02.0",
            "MBI-PCI-MSI-0000:00:02.0",
        ] {
            host.write("sys/kernel/irq/9/chip_name", &format!("{chip}\n"));
            let missing = Remapping::Missing { chip: chip.to_owned(), interrupt: "9".to_owned() };
            assert_eq!(interrupt_remapping(&paths), missing);
        }
        // The IOMMU's own interrupts are never remapped; timers and others say nothing.
        for chip in [
            "DMAR-MSI",
            "IOMMU-MSI",
            "XT-PIC",
            "HPET-MSI",
            "GICv3",
            "",
            "IR-IO-APIC",
            "vIR-PCI-MSI",
            "ITS-MSI",
            "ITS-pMSI",
        ] {
            host.write("sys/kernel/irq/9/chip_name", &format!("{chip}\n"));
            assert_eq!(interrupt_remapping(&paths), Remapping::Seen, "{chip}");
        }
        host.remove("sys/kernel/irq");
        assert_eq!(interrupt_remapping(&paths), Remapping::Unknown);
    }

    #[test]
    fn interrupts_of_functions_without_an_iommu_say_nothing_of_others() {
        let host = MadeUp::new("chip-owners");
        host.write("sys/kernel/irq/9/chip_name", "PCI-MSI\n");
        host.write("sys/bus/pci/devices/0001:00:00.0/msi_irqs/9", "msix\n");
        assert_eq!(interrupt_remapping(&host.paths()), Remapping::Seen);
        host.write("sys/bus/pci/devices/0001:00:00.0/iommu/name", "");
        assert!(matches!(interrupt_remapping(&host.paths()), Remapping::Missing { .. }));
        host.write("sys/bus/pci/devices/0001:00:00.0/class", "0x010802\n");
        assert!(matches!(interrupt_remapping(&host.paths()), Remapping::Missing { .. }));
        // AMD-Vi's own.
        host.write("sys/bus/pci/devices/0001:00:00.0/class", "0x080600\n");
        assert_eq!(interrupt_remapping(&host.paths()), Remapping::Seen);
    }

    #[test]
    fn the_kernel_s_own_words_count() {
        const FUNCTION: Option<&str> = Some("0000:01:00.0");
        let host = MadeUp::new("words");
        let words = |log: &str| {
            host.write("dev/kmsg", log);
            kernel_words(&host.paths(), FUNCTION)
        };
        let before = "6,1,0,-;Linux version 6.12\n SUBSYSTEM=pci\n5,2,10,-;Command line: quiet\n";
        assert_eq!(words(before), None);
        assert_eq!(
            words(&format!("{before}6,3,0,-;DMAR-IR: Enabled IRQ remapping in x2apic mode\n")),
            None
        );
        let off = "AMD-Vi: Disabling interrupt remapping";
        assert_eq!(words(&format!("{before}3,3,11,-;{off}\n")).as_deref(), Some(off));
        let failed =
            "DMAR-IR: Failed to enable irq remapping. You are vulnerable to irq-injection attacks.";
        assert_eq!(words(&format!("4,3,11,-;{failed}\n{before}")).as_deref(), Some(failed));
        // User space writes there, too, with a facility of its own.
        assert_eq!(words(&format!("12,3,11,-;{off}\n")), None);
        assert_eq!(words(&format!("6,3,11,-;usb 1-1: Product: {off}\n")), None, "a name");
        let bound = |address: &str| {
            words(&format!(
                "4,3,9,-;vfio-pci {address}: MSI interrupts are not secure, they cannot be isolated by the platform.\n"
            ))
        };
        assert!(bound("0000:01:00.0").is_some());
        assert_eq!(bound("0000:02:00.0"), None, "another function");
        host.remove("dev/kmsg");
        assert_eq!(kernel_words(&host.paths(), FUNCTION), None);
    }

    #[test]
    fn this_machine_s_log_is_read_to_its_end() {
        // May be forbidden; it must not wait.
        let _ = kernel_words(&HostPaths::default(), None);
    }
}
