//! Counters in the host's kernel: its own tracepoints, counted by perf, never sampled, so that none
//! is missed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Error, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use perf_event_open_sys::bindings::{PERF_TYPE_TRACEPOINT, perf_event_attr};
use perf_event_open_sys::{ioctls, perf_event_open};

/// Where tracefs is mounted.
const EVENTS: &str = "/sys/kernel/tracing/events";

/// `VFIO_DEVICE_SET_IRQS`.
const SET_IRQS: u64 = 0x3B6E;

/// `KVM_SET_GSI_ROUTING`.
const SET_GSI_ROUTING: u64 = 0x4008_AE6A;

/// `KVM_IRQFD`.
const IRQFD: u64 = 0x4020_AE76;

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
}

/// What the kernel has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Exits of all virtual processors, except for host interrupts and waiting.
    pub exits: u64,
    /// Those that the VMM serves.
    pub vmm: u64,
    /// Those for the console: all of them are the VMM's.
    pub console: u64,
    /// Those for accesses on the table's pages.
    pub table: u64,
    /// Those that write an entry's message: its data word, which Linux writes with each message.
    pub messages: u64,
    /// `VFIO_DEVICE_SET_IRQS`.
    pub set_irqs: u64,
    /// `KVM_SET_GSI_ROUTING`.
    pub routing: u64,
    /// `KVM_IRQFD`.
    pub irqfds: u64,
    /// Exits of PV-MSI's doorbell.
    pub doorbells: u64,
}

impl Counts {
    /// What was counted since.
    pub(super) fn since(&self, before: &Self) -> Self {
        Self {
            exits: self.exits.saturating_sub(before.exits),
            vmm: self.vmm.saturating_sub(before.vmm),
            console: self.console.saturating_sub(before.console),
            table: self.table.saturating_sub(before.table),
            messages: self.messages.saturating_sub(before.messages),
            set_irqs: self.set_irqs.saturating_sub(before.set_irqs),
            routing: self.routing.saturating_sub(before.routing),
            irqfds: self.irqfds.saturating_sub(before.irqfds),
            doorbells: self.doorbells.saturating_sub(before.doorbells),
        }
    }
}

/// `VFIO_DEVICE_SET_IRQS`, of a guest's whole life.
pub(super) struct SetIrqs(Counter);

impl SetIrqs {
    /// Starts to count.
    pub(super) fn start() -> Result<Self> {
        ioctl(SET_IRQS).map(Self)
    }

    /// How many so far.
    pub(super) fn read(&self) -> Result<u64> {
        self.0.read()
    }
}

/// The counters of a guest, the only one of this host.
pub(super) struct Counters {
    exits: Counter,
    vmm: Counter,
    console: Counter,
    table: Counter,
    messages: Counter,
    set_irqs: Counter,
    routing: Counter,
    irqfds: Counter,
    doorbells: Counter,
}

impl Counters {
    /// Starts to count; `table`: a function's vector table, `pages`: where it lies, `register`: the
    /// doorbell is a register.
    pub(super) fn start(table: Range, pages: Range, register: bool) -> Result<Self> {
        let doorbell = if register { DOORBELL_REGISTER } else { DOORBELL };
        Ok(Self {
            exits: Counter::new("kvm/kvm_exit", EXITS)?,
            // One that a signal has caused ends with an error.
            vmm: Counter::new("kvm/kvm_userspace_exit", "errno == 0")?,
            console: Counter::new(CONSOLE.0, CONSOLE.1)?,
            table: Counter::new("kvm/kvm_mmio", &accesses(pages))?,
            messages: Counter::new("kvm/kvm_mmio", &data_writes(table))?,
            set_irqs: ioctl(SET_IRQS)?,
            routing: ioctl(SET_GSI_ROUTING)?,
            irqfds: ioctl(IRQFD)?,
            doorbells: Counter::new(doorbell.0, doorbell.1)?,
        })
    }

    /// What was counted so far.
    pub(super) fn read(&self) -> Result<Counts> {
        Ok(Counts {
            exits: self.exits.read()?,
            vmm: self.vmm.read()?,
            console: self.console.read()?,
            table: self.table.read()?,
            messages: self.messages.read()?,
            set_irqs: self.set_irqs.read()?,
            routing: self.routing.read()?,
            irqfds: self.irqfds.read()?,
            doorbells: self.doorbells.read()?,
        })
    }
}

fn ioctl(number: u64) -> Result<Counter> {
    Counter::new("syscalls/sys_enter_ioctl", &format!("cmd == {number:#x}"))
}

/// An access that KVM cannot complete by itself is traced when it exits; a read a second time, as
/// type 1, when its value is there.
fn accesses(range: Range) -> String {
    format!("type != 1 && gpa >= {:#x} && gpa < {:#x}", range.start, range.end)
}

/// Writes of the third word of an entry. A table begins at a multiple of 8 bytes, and a filter knows no
/// more of an address than whether it has one of some bits.
fn data_writes(table: Range) -> String {
    let Range { start, end } = table;
    let third = if start & 8 == 0 { "gpa & 8" } else { "!(gpa & 8)" };
    format!("type == 2 && gpa >= {start:#x} && gpa < {end:#x} && {third} && !(gpa & 4)")
}

/// Interrupts and NMIs of the host, windows for interrupts of the guest, and HLT say how long
/// something took, not what it cost. The numbers are those of SVM, which the lab emulates.
#[cfg(target_arch = "x86_64")]
const EXITS: &str =
    "exit_reason != 0x60 && exit_reason != 0x61 && exit_reason != 0x64 && exit_reason != 0x78";

/// Traps, but for WFI and WFE.
#[cfg(target_arch = "aarch64")]
const EXITS: &str = "ret == 2 && esr_ec != 1";

/// COM1.
#[cfg(target_arch = "x86_64")]
const CONSOLE: (&str, &str) = ("kvm/kvm_pio", "port >= 0x3f8 && port <= 0x3ff");

/// The serial port of QEMU's machine, and of ours.
#[cfg(target_arch = "aarch64")]
const CONSOLE: (&str, &str) = ("kvm/kvm_mmio", "type != 1 && gpa >= 0x9000000 && gpa < 0x9001000");

/// The port of `pvmsi run`.
#[cfg(target_arch = "x86_64")]
const DOORBELL: (&str, &str) = ("kvm/kvm_pio", "port == 0x5650");

/// The register of `pvmsi run`.
#[cfg(target_arch = "x86_64")]
const DOORBELL_REGISTER: (&str, &str) = ("kvm/kvm_mmio", "type != 1 && gpa == 0xfebff000");

/// The call that rings (W-220): its number is in X0.
#[cfg(target_arch = "aarch64")]
const DOORBELL: (&str, &str) = ("kvm/kvm_hvc_arm64", "r0 == 0xc6005651");

/// The register of `pvmsi run`.
#[cfg(target_arch = "aarch64")]
const DOORBELL_REGISTER: (&str, &str) = ("kvm/kvm_mmio", "type != 1 && gpa == 0xa000000");

/// A tracepoint, counted on all processors.
struct Counter {
    processors: Vec<File>,
}

impl Counter {
    fn new(tracepoint: &str, filter: &str) -> Result<Self> {
        let path = format!("{EVENTS}/{tracepoint}/id");
        let id = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let mut attributes = perf_event_attr {
            type_: PERF_TYPE_TRACEPOINT,
            size: u32::try_from(size_of::<perf_event_attr>())?,
            config: id.trim().parse()?,
            ..perf_event_attr::default()
        };
        let filter_text = CString::new(filter)?;
        let mut processors = Vec::new();
        for processor in 0..processors_of_host()? {
            // SAFETY: the attributes are valid, and their size is told.
            let fd = unsafe { perf_event_open(&mut attributes, -1, processor, -1, 0) };
            if fd < 0 {
                bail!("cannot count {tracepoint}: {}", Error::last_os_error());
            }
            // SAFETY: a new descriptor, which nobody else owns.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            set_filter(fd.as_raw_fd(), &filter_text)
                .with_context(|| format!("{tracepoint}: no filter {filter}"))?;
            processors.push(File::from(fd));
        }
        Ok(Self { processors })
    }

    fn read(&self) -> Result<u64> {
        let mut sum = 0_u64;
        for mut file in &self.processors {
            let mut value = [0_u8; 8];
            file.read_exact(&mut value).context("cannot read a counter")?;
            sum = sum.saturating_add(u64::from_ne_bytes(value));
        }
        Ok(sum)
    }
}

fn set_filter(fd: RawFd, filter: &CString) -> Result<()> {
    // SAFETY: the descriptor is a counter's, and the text ends with a zero byte.
    let status = unsafe { ioctls::SET_FILTER(fd, filter.as_ptr().cast_mut()) };
    if status < 0 {
        bail!("{}", Error::last_os_error());
    }
    Ok(())
}

/// All of them stay online.
fn processors_of_host() -> Result<i32> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    Ok(last.parse::<i32>()?.saturating_add(1))
}
