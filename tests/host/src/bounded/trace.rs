//! What the host's kernel is asked for, by its tracepoints.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const TRACEFS: &str = "/sys/kernel/tracing";
/// Buffers of our own.
const INSTANCE: &str = "/sys/kernel/tracing/instances/pvmsi";
/// A request of `VFIO_DEVICE_SET_IRQS` as the kernel carries it out: for which kind of interrupt and for how
/// many vectors. Arguments of `vfio_pci_set_irqs_ioctl` (Linux `drivers/vfio/pci/vfio_pci_intrs.c`).
const PROBE: &str = "p:pvmsi/set_irqs vfio_pci_set_irqs_ioctl index=%dx:u32 count=%r8:u32";
/// The tracepoint of the system call, for `VFIO_DEVICE_SET_IRQS` alone.
const CALLS: (&str, &str) = ("syscalls/sys_enter_ioctl", "cmd == 0x3b6e");
const REQUESTS: &str = "pvmsi/set_irqs";

/// Requests that change interrupts, traced.
pub(crate) struct Trace {
    buffer: PathBuf,
}

/// What was seen since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `VFIO_DEVICE_SET_IRQS`.
    pub(crate) requests: usize,
    /// Vectors of the largest.
    pub(crate) vectors: usize,
}

impl Trace {
    /// Starts to trace.
    ///
    /// # Errors
    /// Where the kernel has no such tracepoints.
    pub(crate) fn start() -> Result<Self> {
        let instance = Path::new(INSTANCE);
        write(&Path::new(TRACEFS).join("kprobe_events"), PROBE)?;
        fs::create_dir_all(instance).context("no trace instance can be made")?;
        write(&instance.join("events").join(CALLS.0).join("filter"), CALLS.1)?;
        for event in [CALLS.0, REQUESTS] {
            write(&instance.join("events").join(event).join("enable"), "1")?;
        }
        Ok(Self { buffer: instance.join("trace") })
    }

    /// Forgets what was seen.
    ///
    /// # Errors
    /// Where the buffer cannot be written.
    pub(crate) fn clear(&self) -> Result<()> {
        write(&self.buffer, "")
    }

    /// What was seen since.
    ///
    /// # Errors
    /// Where the buffer cannot be read, or is not understood.
    pub(crate) fn read(&self) -> Result<Seen> {
        let text = fs::read_to_string(&self.buffer).context("the trace cannot be read")?;
        seen(&text)
    }
}

/// Files that this process has open.
///
/// # Errors
/// Where that cannot be read.
pub(crate) fn open_files() -> Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {text:?} to {}", path.display()))
}

/// Lines of a trace: those of the system call, and those of the request.
fn seen(text: &str) -> Result<Seen> {
    let mut seen = Seen::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.contains("sys_ioctl(") {
            seen.requests = seen.requests.saturating_add(1);
        } else if line.contains("set_irqs:") {
            let count = line.split_whitespace().find_map(|word| word.strip_prefix("count="));
            let count = count.with_context(|| format!("no count in: {line}"))?;
            seen.vectors = seen.vectors.max(count.parse()?);
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_their_vectors_are_counted() {
        let text = "\
# tracer: nop
#
 pvmsi-bounded-l-99 [000] ..... 12.1: sys_ioctl(fd: 9, cmd: 3b6e, arg: 7ffc0)
 pvmsi-bounded-l-99 [000] ..... 12.2: set_irqs: (vfio_pci_set_irqs_ioctl+0x0/0x90 [x]) index=2 count=16
 pvmsi-bounded-l-99 [001] ..... 12.3: sys_ioctl(fd: 9, cmd: 3b6e, arg: 7ffc0)
 pvmsi-bounded-l-99 [001] ..... 12.4: set_irqs: (vfio_pci_set_irqs_ioctl+0x0/0x90 [x]) index=2 count=3
";
        assert_eq!(seen(text).unwrap(), Seen { requests: 2, vectors: 16 });
        assert_eq!(seen("# nothing\n").unwrap(), Seen::default());
        assert!(seen("x [0] 1: set_irqs: (f+0x0/0x1) index=2\n").is_err());
    }
}
