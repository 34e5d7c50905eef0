//! The guest as a whole: processors, sleep, its end.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::system::{RebootCommand, reboot};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::Answer;
use super::driver::{seconds, works_on_all, write};

/// What `kexec` starts; the same kernel, with a file system that has no module of ours.
const NEXT_KERNEL: &str = "/boot/vmlinuz";
const NEXT_INITRD: &str = "/boot/initrd";

/// Seconds since the kernel began.
pub(super) fn uptime() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

/// The processors that are online.
pub(super) fn processors() -> Result<Vec<u32>> {
    let text = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut found = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        found.extend(first.parse::<u32>()?..=last.parse()?);
    }
    Ok(found)
}

/// Keeps this program on a processor.
pub(super) fn stay_on(processor: u32) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(usize::try_from(processor)?);
    sched_setaffinity(None, &set).context("cannot choose a processor")
}

/// Lets this program run anywhere.
pub(super) fn stay_anywhere() -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors()? {
        set.set(usize::try_from(processor)?);
    }
    sched_setaffinity(None, &set).context("cannot choose processors")
}

/// How often an interrupt was handled, on all processors.
pub(super) fn handled(interrupt: u32) -> Result<u64> {
    let path = format!("/sys/kernel/irq/{interrupt}/per_cpu_count");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().split(',').filter_map(|count| count.parse::<u64>().ok()).sum())
}

/// Switches the last processor off and on, and uses the function in between and afterwards.
pub(super) fn processor_off_on(driver: &str) -> Result<Answer> {
    let last = *processors()?.last().context("no processors")?;
    if last == 0 {
        bail!("the only processor cannot go");
    }
    let path = format!("/sys/devices/system/cpu/cpu{last}/online");
    let begin = Instant::now();
    write(&path, "0")?;
    works_on_all(driver)?;
    write(&path, "1")?;
    works_on_all(driver)?;
    seconds(begin)
}

/// Suspends to idle; input on the console wakes.
pub(super) fn suspend(driver: &str) -> Result<Answer> {
    let wakeup = format!("/sys/class/tty/{}/power/wakeup", console()?);
    write(&wakeup, "enabled")?;
    let begin = Instant::now();
    write("/sys/power/state", "freeze")?;
    works_on_all(driver)?;
    seconds(begin)
}

/// The console's terminal.
fn console() -> Result<String> {
    let active = fs::read_to_string("/sys/class/tty/console/active")?;
    Ok(active.split_whitespace().last().context("no console")?.to_owned())
}

/// Starts another kernel; answers only when that fails.
pub(super) fn kexec(command_line: &str) -> Result<Answer> {
    // kexec-tools loses what the device tree says about it.
    let command_line = &format!("{command_line} console={}", console()?);
    match load_kernel(command_line) {
        Ok(()) => {}
        // Not every kernel can by itself.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => run_kexec(command_line)?,
        Err(error) => return Err(error).context("the kernel cannot be loaded"),
    }
    reboot(RebootCommand::Kexec).context("the kernel does not start")?;
    bail!("the kernel did not start")
}

fn load_kernel(command_line: &str) -> io::Result<()> {
    let kernel = File::open(NEXT_KERNEL)?;
    let initrd = File::open(NEXT_INITRD)?;
    let line = CString::new(command_line)?;
    let length = line.as_bytes_with_nul().len();
    // SAFETY: both files are open, and the line is as long as is said.
    let status = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            length,
            line.as_ptr(),
            0_u64,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// arm64: where the next kernel lies, in the upper half of the guest's RAM. Linux leaves its tables
/// of LPIs where they are when it goes, in the lower half. A kernel that lies over them takes them
/// for reserved, and writes LPIs' configuration into its own code (`gic_check_reserved_range` in
/// `drivers/irqchip/irq-gic-v3-its.c`); only EFI firmware keeps them out of the way.
const NEXT_FROM: &str = "--mem-min=0x58000000";

/// The same by kexec-tools.
fn run_kexec(command_line: &str) -> Result<()> {
    let output = Command::new("/kexec/loader")
        .args(["--library-path", "/kexec/libraries", "/kexec/kexec", "--kexec-syscall", "-i", "-l"])
        .args([NEXT_KERNEL, &format!("--initrd={NEXT_INITRD}")])
        .args([format!("--command-line={command_line}").as_str(), NEXT_FROM])
        .output()
        .context("no kexec")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("kexec: {}: {}", output.status, told.trim());
    }
    Ok(())
}

/// Ends the machine.
pub(super) fn power_off() -> Result<Answer> {
    reboot(RebootCommand::PowerOff).context("the machine does not end")?;
    seconds(Instant::now())
}
