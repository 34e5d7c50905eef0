//! Which processors serve a function's interrupts, and who moves them.
//!
//! On x86 Linux sets and clears mask bits of the vector table while it moves an interrupt in certain
//! ways (see [`vfio`](crate::vfio)). A table that a guest has is spared where nobody moves. An
//! interrupt whose affinity is the very processor that serves it stays there: with that, writing the
//! affinity is no move either, for `assign_vector_locked` (Linux `arch/x86/kernel/apic/vector.c`, since 4.15)
//! leaves an interrupt alone whose processor is among those that are asked for. No entry of the
//! table is written, no old vector has to be cleaned up, and no vector of another processor is needed. The kernel
//! has spread the interrupts over its processors when it set them up. An affinity that was written
//! is kept when an interrupt is taken down and set up again, until MSI-X is disabled.
//!
//! Where interrupts are not remapped the same write is put off to the next interrupt, which
//! then masks the entry (`irq_set_affinity_locked`). So only interrupts of chips that remap are pinned.
//!
//! User space can do no more (Linux 6.1 to 7.0 were read): VFIO requests its interrupts with no flags, so
//! neither `IRQF_NOBALANCING` nor managed affinity, and has no request for affinity. So root
//! can move them still. irqbalance does, whatever the affinity is, unless it is told to leave them alone.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::rate_limit::RateLimit;
use crate::vfio::host_paths::HostPaths;
use crate::vfio::isolation::remaps;

/// Whether the host's kernel writes mask bits into a vector table when it moves interrupts: on x86. Elsewhere affinity need not be looked at.
pub const MOVES_WRITE_MASKS: bool = cfg!(target_arch = "x86_64");

const BALANCER: &str = "irqbalance";
/// What irqbalance compares words with that ban modules, beside the driver: the start of the name of each interrupt that VFIO has requested for MSI-X.
const ACTION: &str = "vfio-msix";

/// An interrupt of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostInterrupt {
    /// Its number, as in `/proc/irq`.
    pub number: u32,
    /// Its affinity is one processor.
    pub pinned: bool,
}

/// The MSI interrupts of a function, by its folder in sysfs, that somebody has requested. In order; none where sysfs or procfs do not tell.
pub fn function_interrupts(paths: &HostPaths, function: &Path) -> Vec<HostInterrupt> {
    numbers(function)
        .into_iter()
        .filter(|&number| is_requested(paths, number))
        .map(|number| HostInterrupt { number, pinned: is_pinned(paths, number) })
        .collect()
}

/// A running irqbalance, and what it was told to leave alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Irqbalance {
    /// Its process.
    pub process: u32,
    modules: Vec<String>,
    interrupts: BTreeSet<u32>,
    script: bool,
}

impl Irqbalance {
    /// The one that runs on this host, as far as procfs shows processes.
    pub fn find(paths: &HostPaths) -> Option<Self> {
        let processes = fs::read_dir(&paths.procfs).ok()?;
        let mut found: Vec<u32> = processes
            .flatten()
            .filter(|entry| {
                fs::read_to_string(entry.path().join("comm"))
                    .is_ok_and(|name| name.trim() == BALANCER)
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        found.sort_unstable();
        let process = *found.first()?;
        let arguments = fs::read(paths.procfs.join(process.to_string()).join("cmdline"));
        Some(Self::with_arguments(process, &arguments.unwrap_or_default()))
    }

    /// `arguments` as procfs shows them: each ends with a zero.
    fn with_arguments(process: u32, arguments: &[u8]) -> Self {
        let mut this =
            Self { process, modules: Vec::new(), interrupts: BTreeSet::new(), script: false };
        let text = String::from_utf8_lossy(arguments);
        let mut words = text.split('\0').skip(1);
        while let Some(word) = words.next() {
            let mut value = |long: &str, short: &str| {
                if word == long || word == short {
                    return words.next();
                }
                let after = |name: &str| word.strip_prefix(name);
                after(long).and_then(|rest| rest.strip_prefix('=')).or_else(|| after(short))
            };
            if let Some(module) = value("--banmod", "-m") {
                this.modules.extend((!module.is_empty()).then(|| module.to_owned()));
            } else if let Some(number) = value("--banirq", "-i") {
                this.interrupts.extend(number.parse::<u32>());
            } else if value("--policyscript", "-l").is_some() {
                this.script = true;
            }
        }
        this
    }

    /// Whether it leaves all interrupts of functions with this driver alone, `vfio-pci` or another of VFIO's, because it was told so (`--banmod`, which works since irqbalance 1.9.2).
    pub fn spares_driver(&self, driver: &str) -> bool {
        let named =
            |module: &String| driver.contains(module.as_str()) || ACTION.contains(module.as_str());
        self.modules.iter().any(named)
    }

    /// Whether it was told to leave this interrupt alone (`--banirq`).
    pub fn spares(&self, interrupt: u32) -> bool {
        self.interrupts.contains(&interrupt)
    }

    /// Whether a script of the operator's decides as well (`--policyscript`): nobody else can tell what it spares.
    pub fn has_script(&self) -> bool {
        self.script
    }
}

/// What [`VfioFunction::pin_interrupts`](crate::VfioFunction::pin_interrupts) has done since, to be asked at any time.
#[derive(Clone, Debug, Default)]
pub struct PinnedInterrupts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    pinned: AtomicU32,
    not_pinned: AtomicU32,
}

impl PinnedInterrupts {
    /// Interrupts whose affinity is one processor, since they were set up. One that was given back and is set up anew counts again.
    pub fn pinned(&self) -> u32 {
        self.0.pinned.load(Ordering::Relaxed)
    }

    /// Interrupts that could not be pinned. The log says why, but for those that are not remapped.
    pub fn not_pinned(&self) -> u32 {
        self.0.not_pinned.load(Ordering::Relaxed)
    }
}

/// Pins the interrupts of a function as they are set up, each once.
#[derive(Debug)]
pub(super) struct Pinning {
    paths: HostPaths,
    function: PathBuf,
    /// Those that were looked at since MSI-X was enabled.
    done: BTreeSet<u32>,
    counts: PinnedInterrupts,
    log: RateLimit,
}

impl Pinning {
    /// For the function with this folder in sysfs.
    pub(super) fn new(paths: HostPaths, function: &Path) -> Self {
        Self {
            paths,
            function: function.to_owned(),
            done: BTreeSet::new(),
            counts: PinnedInterrupts::default(),
            log: RateLimit::default(),
        }
    }

    pub(super) fn counts(&self) -> PinnedInterrupts {
        self.counts.clone()
    }

    /// Pins what was set up since the last time, at most so many. What fails is not tried again.
    pub(super) fn pin_new(&mut self, most: usize) {
        let new: Vec<u32> = numbers(&self.function)
            .into_iter()
            .filter(|number| !self.done.contains(number))
            .filter(|&number| is_requested(&self.paths, number))
            .take(most)
            .collect();
        let mut failed = Vec::new();
        for number in new {
            self.done.insert(number);
            let count = match pin(&self.paths, number) {
                Ok(()) => &self.counts.0.pinned,
                Err(error) => {
                    failed.push((number, error));
                    &self.counts.0.not_pinned
                }
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Without remapping the table is trapped, and the service follows what the kernel writes.
        failed.retain(|(_, error)| error.kind() != io::ErrorKind::Unsupported);
        if let Some((number, error)) = failed.first()
            && self.log.allow()
        {
            let function = self.function.display();
            let interrupts = failed.len();
            tracing::warn!(
                %function, interrupt = number, interrupts, %error,
                "interrupts cannot be pinned, so the host may move them, and touch mask bits that are the guest's"
            );
        }
    }

    /// MSI-X was disabled: the kernel has freed all interrupts, and may give their numbers to others.
    pub(super) fn forget(&mut self) {
        self.done.clear();
    }
}

/// Makes the processor that serves an interrupt its only one. Nothing is written where it has only one.
fn pin(paths: &HostPaths, number: u32) -> io::Result<()> {
    if is_pinned(paths, number) {
        return Ok(());
    }
    let chip = fs::read_to_string(paths.sysfs.join(format!("kernel/irq/{number}/chip_name")))?;
    if !remaps(chip.trim()) {
        let why = format!("it is not remapped (its chip is {})", chip.trim());
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let folder = paths.procfs.join("irq").join(number.to_string());
    let processor = fs::read_to_string(folder.join("effective_affinity_list"))?;
    // With more than one there is no telling which.
    let processor: u32 = processor.trim().parse().map_err(io::Error::other)?;
    let affinity =
        OpenOptions::new().write(true).truncate(true).open(folder.join("smp_affinity_list"));
    // The kernel takes what one write brings.
    affinity?.write_all(format!("{processor}\n").as_bytes())
}

/// The Linux numbers of a function's MSI interrupts, in order; those that nobody has requested as well.
fn numbers(function: &Path) -> BTreeSet<u32> {
    fs::read_dir(function.join("msi_irqs"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Whether an interrupt has a handler. Those without have a number, and no processor to speak of.
fn is_requested(paths: &HostPaths, number: u32) -> bool {
    fs::read_to_string(paths.sysfs.join(format!("kernel/irq/{number}/actions")))
        .is_ok_and(|actions| !actions.trim().is_empty())
}

fn is_pinned(paths: &HostPaths, number: u32) -> bool {
    let affinity = paths.procfs.join("irq").join(number.to_string()).join("smp_affinity_list");
    fs::read_to_string(affinity).is_ok_and(|list| list.trim().parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::made_up::MadeUp;

    /// An interrupt of the made-up function, that processor 2 of 0 to 3 serves.
    fn set_up(host: &MadeUp, number: u32) {
        host.write(&format!("sys/bus/pci/devices/0000:01:00.0/msi_irqs/{number}"), "msix\n");
        host.write(&format!("sys/kernel/irq/{number}/actions"), "vfio-msix[0](0000:01:00.0)\n");
        host.write(&format!("sys/kernel/irq/{number}/chip_name"), "IR-PCI-MSIX-0000:01:00.0\n");
        host.write(&format!("proc/irq/{number}/effective_affinity_list"), "2\n");
        host.write(&format!("proc/irq/{number}/smp_affinity_list"), "0-3\n");
    }

    fn affinity(host: &MadeUp, number: u32) -> String {
        fs::read_to_string(host.paths().procfs.join(format!("irq/{number}/smp_affinity_list")))
            .unwrap()
    }

    fn pinning(host: &MadeUp) -> Pinning {
        Pinning::new(host.paths(), &host.function())
    }

    fn outcome(pinning: &Pinning) -> (u32, u32) {
        let counts = pinning.counts();
        (counts.pinned(), counts.not_pinned())
    }

    #[test]
    fn interrupts_stay_on_the_processor_that_serves_them() {
        let host = MadeUp::new("pin");
        set_up(&host, 40);
        set_up(&host, 41);
        let pinned = |all: Vec<HostInterrupt>| {
            all.into_iter().map(|one| (one.number, one.pinned)).collect::<Vec<_>>()
        };
        let now = || pinned(function_interrupts(&host.paths(), &host.function()));
        assert_eq!(now(), [(40, false), (41, false)]);
        let mut pinning = pinning(&host);
        pinning.pin_new(2);
        assert_eq!(now(), [(40, true), (41, true)]);
        assert_eq!(affinity(&host, 41), "2\n");
        assert_eq!(outcome(&pinning), (2, 0));
    }

    #[test]
    fn each_is_pinned_once_when_it_is_set_up() {
        let host = MadeUp::new("pin-once");
        set_up(&host, 40);
        // Allocated, and not requested: as vectors that have no event.
        host.write("sys/bus/pci/devices/0000:01:00.0/msi_irqs/41", "msix\n");
        host.write("sys/kernel/irq/41/actions", "\n");
        let mut pinning = pinning(&host);
        pinning.pin_new(1);
        assert_eq!(outcome(&pinning), (1, 0));
        // The operator has moved it: that is not undone, for it would be a second move.
        host.write("proc/irq/40/smp_affinity_list", "0-1\n");
        set_up(&host, 41);
        pinning.pin_new(1);
        assert_eq!((affinity(&host, 40), affinity(&host, 41)), ("0-1\n".into(), "2\n".into()));
        assert_eq!(outcome(&pinning), (2, 0));
        // After MSI-X was off, the same number is another interrupt.
        pinning.forget();
        pinning.pin_new(2);
        assert_eq!(affinity(&host, 40), "2\n");
    }

    #[test]
    fn nothing_is_written_where_an_interrupt_has_one_processor() {
        let host = MadeUp::new("pin-one");
        set_up(&host, 40);
        host.write("proc/irq/40/smp_affinity_list", "3\n");
        let mut pinning = pinning(&host);
        pinning.pin_new(1);
        assert_eq!(
            affinity(&host, 40),
            "3\n",
            "of the operator's choice, although it serves elsewhere"
        );
        assert_eq!(outcome(&pinning), (1, 0));
    }

    #[test]
    fn without_remapping_even_this_would_mask_an_entry() {
        let host = MadeUp::new("pin-open");
        set_up(&host, 40);
        host.write("sys/kernel/irq/40/chip_name", "PCI-MSIX-0000:01:00.0\n");
        let mut pinning = pinning(&host);
        pinning.pin_new(1);
        assert_eq!((affinity(&host, 40).as_str(), outcome(&pinning)), ("0-3\n", (0, 1)));
    }

    #[test]
    fn what_cannot_be_pinned_is_counted_and_the_rest_is_pinned() {
        let host = MadeUp::new("pin-fails");
        set_up(&host, 40);
        set_up(&host, 41);
        host.write("proc/irq/40/effective_affinity_list", "0-3\n");
        let mut pinning = pinning(&host);
        pinning.pin_new(2);
        assert_eq!((affinity(&host, 40).as_str(), affinity(&host, 41).as_str()), ("0-3\n", "2\n"));
        assert_eq!(outcome(&pinning), (1, 1));
        pinning.pin_new(2);
        assert_eq!(outcome(&pinning), (1, 1), "not tried again");
    }

    #[test]
    fn a_function_without_interrupts_is_no_error() {
        let host = MadeUp::new("pin-none");
        let mut pinning = pinning(&host);
        pinning.pin_new(4);
        assert_eq!(outcome(&pinning), (0, 0));
        assert_eq!(function_interrupts(&host.paths(), &host.function()), []);
    }

    #[test]
    fn a_running_irqbalance_is_found_by_its_name() {
        let host = MadeUp::new("balance");
        host.write("proc/1/comm", "systemd\n");
        host.write("proc/irq/default_smp_affinity", "f\n");
        assert_eq!(Irqbalance::find(&host.paths()), None);
        host.write("proc/812/comm", "irqbalance\n");
        host.write("proc/812/cmdline", "/usr/sbin/irqbalance\0--foreground\0--banmod=vfio\0");
        let found = Irqbalance::find(&host.paths()).unwrap();
        assert_eq!(found.process, 812);
        assert!(found.spares_driver("vfio-pci") && found.spares_driver("mlx5_vfio_pci"));
    }

    #[test]
    fn what_irqbalance_was_told() {
        let told = |words: &[&str]| {
            let arguments: String = words.iter().map(|word| format!("{word}\0")).collect();
            Irqbalance::with_arguments(1, arguments.as_bytes())
        };
        let plain = told(&["irqbalance", "--foreground"]);
        assert!(!plain.spares_driver("vfio-pci") && !plain.spares(40) && !plain.has_script());
        for words in
            [&["irqbalance", "-m", "vfio"] as &[_], &["irqbalance", "--banmod", "vfio_pci"]]
        {
            assert!(told(words).spares_driver("mlx5_vfio_pci"), "{words:?}");
        }
        assert!(
            told(&["irqbalance", "--banmod=vfio-msi"]).spares_driver("vfio-pci"),
            "by its name"
        );
        assert!(!told(&["irqbalance", "--banmod=nvme"]).spares_driver("vfio-pci"));
        assert!(!told(&["irqbalance", "--banmod="]).spares_driver("vfio-pci"));
        assert!(!told(&["irqbalance", "--banmod"]).spares_driver("vfio-pci"));
        let numbers = told(&["irqbalance", "--banirq=40", "-i", "41", "-i42", "--banirq=x"]);
        assert!(numbers.spares(40) && numbers.spares(41) && numbers.spares(42));
        assert!(!numbers.spares(43));
        assert!(told(&["irqbalance", "--policyscript=/etc/policy"]).has_script());
        assert!(!told(&["--banmod=vfio"]).spares_driver("vfio-pci"), "its own name is no argument");
    }
}
