//! Interrupts of a function: moved, masked, and asked for.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::device::{Device, Registers};
use super::{Answer, object, system};

/// Bytes of an entry of a vector table.
const ENTRY: u64 = 16;

/// Vector control, in an entry.
const CONTROL: usize = 12;

/// igb: Extended Interrupt Cause Set; a bit raises a vector.
const IGB_CAUSE_SET: u64 = 0x1520;

/// What a move leaves behind is gone after this time: x86 frees the old vector by a timer that the
/// first interrupt by the new one has started, and moves the interrupt again only then. And the
/// handler of the last interrupt has let its function raise the next one.
const SETTLED: Duration = Duration::from_millis(20);

/// An interrupt that takes longer is lost; drivers wait for 30 seconds or more.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves each interrupt that may be moved `count` times, and has it raised after each.
pub(super) fn affinity(driver: &str, count: u64) -> Result<Answer> {
    moves(driver, count, Duration::ZERO)
}

/// Moves each interrupt that may be moved in turn, and has it raised after each, for some time.
pub(super) fn affinity_for(driver: &str, time: Duration) -> Result<Answer> {
    moves(driver, TURN, time)
}

/// Moves of an interrupt before the next one's turn.
const TURN: u64 = 10;

fn moves(driver: &str, count: u64, time: Duration) -> Result<Answer> {
    let device = Device::of(driver)?;
    let processors = system::processors()?;
    let source = Source::of(&device)?;
    let begin = Instant::now();
    let (mut moved, mut vectors, mut lost) = (0_u64, 0_u64, 0_u64);
    let interrupts = device.interrupts()?.into_iter().enumerate();
    loop {
        for (vector, interrupt) in interrupts.clone() {
            if !source.raises(vector) {
                continue;
            }
            let now = effective(interrupt)?.unwrap_or(0);
            // The first one is a move already.
            let mut targets = processors
                .iter()
                .copied()
                .cycle()
                .skip_while(move |&processor| processor != now)
                .skip(1);
            let mut movable = true;
            for _ in 0..count {
                let target = targets.next().context("no processors")?;
                let Some(arrived) = move_to(&source, vector, interrupt, target)? else {
                    movable = false;
                    break;
                };
                moved = moved.saturating_add(1);
                lost = lost.saturating_add(u64::from(!arrived));
            }
            vectors = vectors.saturating_add(u64::from(movable));
        }
        if vectors == 0 || begin.elapsed() >= time {
            break;
        }
    }
    object(json!({
        "seconds": begin.elapsed().as_secs_f64(),
        "count": moved,
        "vectors": vectors,
        "lost": lost,
    }))
}

/// Moves an interrupt to a processor and has it raised until it has moved: x86 moves it with the next
/// one, and not while an earlier move is cleaned up. Whether all have arrived; `None` where the
/// kernel moves this one itself.
fn move_to(source: &Source, vector: usize, interrupt: u32, target: u32) -> Result<Option<bool>> {
    let path = format!("/proc/irq/{interrupt}/smp_affinity_list");
    match fs::write(path, target.to_string()) {
        Ok(()) => {}
        Err(error) if is_refused(&error) => return Ok(None),
        Err(error) => bail!("interrupt {interrupt} does not move: {error}"),
    }
    let raise = || {
        sleep(SETTLED);
        source.arrives(vector, interrupt)
    };
    let begin = Instant::now();
    let mut arrived = raise()?;
    while arrived && effective(interrupt)? != Some(target) {
        if begin.elapsed() >= PATIENCE {
            bail!("interrupt {interrupt} has not moved to processor {target}");
        }
        arrived = raise()?;
    }
    // The first one that comes the new way has the old way cleaned up.
    Ok(Some(arrived && raise()?))
}

/// The processor that an interrupt goes to.
fn effective(interrupt: u32) -> Result<Option<u32>> {
    let list = fs::read_to_string(format!("/proc/irq/{interrupt}/effective_affinity_list"))?;
    Ok(list.trim().parse().ok())
}

/// Moves each interrupt that may be moved, and can be raised, to the last processor.
pub(super) fn gather(driver: &str) -> Result<Answer> {
    let device = Device::of(driver)?;
    let source = Source::of(&device)?;
    let last = *system::processors()?.last().context("no processors")?;
    for (vector, interrupt) in device.interrupts()?.into_iter().enumerate() {
        if source.raises(vector) && move_to(&source, vector, interrupt, last)? == Some(false) {
            bail!("interrupt {interrupt} was moved and lost");
        }
    }
    object(json!({}))
}

/// Masks and unmasks the first vector, behind its driver's back.
pub(super) fn mask_unmask(driver: &str, count: u64) -> Result<Answer> {
    let device = Device::of(driver)?;
    let table = device.table()?;
    let registers = device.map(table.bar, table.offset, usize::try_from(ENTRY)?)?;
    let interrupt = *device.interrupts()?.first().context("no interrupt")?;
    let source = Source::of(&device)?;
    let begin = Instant::now();
    for _ in 0..count {
        registers.write(CONTROL, 1)?;
        registers.write(CONTROL, 0)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let lost = u64::from(!source.arrives(0, interrupt)?);
    object(json!({ "seconds": seconds, "count": count, "lost": lost }))
}

/// Whether the kernel does not let one move an interrupt: EIO in older ones, EPERM in newer ones.
fn is_refused(error: &Error) -> bool {
    error.kind() == ErrorKind::PermissionDenied || error.raw_os_error() == Some(libc::EIO)
}

/// What makes a function raise a vector.
enum Source {
    /// An admin command, by vector 0.
    Nvme(File),
    /// Its register.
    Igb(Registers),
}

impl Source {
    fn of(device: &Device) -> Result<Self> {
        if device.driver == "nvme" {
            let controller = device.entry("nvme", "nvme").context("no controller")?;
            let path = format!("/dev/{controller}");
            let file = OpenOptions::new().read(true).write(true).open(&path);
            return Ok(Self::Nvme(file.with_context(|| format!("cannot open {path}"))?));
        }
        Ok(Self::Igb(device.map(0, IGB_CAUSE_SET, 4)?))
    }

    /// Whether it can be had for this vector.
    fn raises(&self, vector: usize) -> bool {
        match self {
            Self::Nvme(_) => vector == 0,
            Self::Igb(_) => true,
        }
    }

    /// Has a vector raised, and waits for its handler.
    fn arrives(&self, vector: usize, interrupt: u32) -> Result<bool> {
        let before = system::handled(interrupt)?;
        let begin = Instant::now();
        match self {
            Self::Nvme(file) => identify(file)?,
            Self::Igb(registers) => {
                let bit = u32::try_from(vector).ok().and_then(|vector| 1_u32.checked_shl(vector));
                registers.write(0, bit.context("no such vector")?)?;
            }
        }
        while system::handled(interrupt)? == before {
            if begin.elapsed() >= PATIENCE {
                return Ok(false);
            }
            sleep(Duration::from_millis(1));
        }
        Ok(true)
    }
}

/// `struct nvme_admin_cmd` of the kernel's interface.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    command_2: u32,
    command_3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    data_length: u32,
    command_10: u32,
    command_11: u32,
    command_12: u32,
    command_13: u32,
    command_14: u32,
    command_15: u32,
    timeout_ms: u32,
    result: u32,
}

/// NVME_IOCTL_ADMIN_CMD.
const ADMIN_COMMAND: libc::c_ulong = 0xC048_4E41;

/// Identify the controller.
fn identify(controller: &File) -> Result<()> {
    let mut data = [0_u8; 4096];
    let mut command = AdminCommand {
        opcode: 6,
        address: data.as_mut_ptr().addr().try_into()?,
        data_length: 4096,
        command_10: 1,
        ..AdminCommand::default()
    };
    // SAFETY: the command is what the request takes, and its buffer lives on.
    let status = unsafe {
        libc::ioctl(controller.as_raw_fd(), ADMIN_COMMAND as _, std::ptr::from_mut(&mut command))
    };
    if status != 0 {
        bail!("the drive does not identify itself: {status}, {}", Error::last_os_error());
    }
    Ok(())
}
