//! PCI functions of the guest, as sysfs and their configuration space show them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use anyhow::{Context, Result, bail};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde_json::{Value, json};

const DEVICES: &str = "/sys/bus/pci/devices";

/// Capability id of MSI-X.
const MSI_X: u8 = 0x11;

/// A function that a driver of the lab serves.
pub(super) struct Device {
    /// Its address.
    pub address: String,
    /// The driver that it is for.
    pub driver: &'static str,
}

/// Where a vector table lies.
pub(super) struct Table {
    /// The BAR.
    pub bar: u8,
    /// From the BAR's start.
    pub offset: u64,
    /// Guest physical.
    pub address: u64,
    /// Entries.
    pub entries: u64,
}

impl Device {
    /// The functions that the lab's drivers serve.
    pub(super) fn all() -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(DEVICES).context("no PCI bus")? {
            let path = entry?.path();
            let Some(driver) = driver_of(&path)? else { continue };
            let address = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Self { address, driver });
        }
        Ok(found)
    }

    /// The function of a driver.
    pub(super) fn of(driver: &str) -> Result<Self> {
        Self::all()?
            .into_iter()
            .find(|device| device.driver == driver)
            .with_context(|| format!("there is no function for {driver}"))
    }

    /// For the conductor.
    pub(super) fn describe(&self) -> Result<Value> {
        let table = self.table()?;
        Ok(json!({
            "address": self.address,
            "driver": self.driver,
            "table": table.address,
            "entries": table.entries,
        }))
    }

    /// Its MSI-X table. Costs accesses of its configuration space.
    pub(super) fn table(&self) -> Result<Table> {
        Table::of(&self.path(""))
    }

    /// Its folder, or a file there.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        Path::new(DEVICES).join(&self.address).join(name)
    }

    /// The only entry of a folder of its own whose name starts so.
    pub(super) fn entry(&self, folder: &str, prefix: &str) -> Option<String> {
        fs::read_dir(self.path(folder))
            .ok()?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with(prefix))
    }

    /// The interrupts of its vectors, by vector.
    pub(super) fn interrupts(&self) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("msi_irqs")).context("it has no MSI-X interrupts")? {
            found.push(entry?.file_name().to_string_lossy().parse()?);
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Maps a BAR.
    pub(super) fn map(&self, bar: u8, offset: u64, length: usize) -> Result<Registers> {
        Registers::map(&self.path(&format!("resource{bar}")), offset, length)
    }
}

impl Table {
    /// From the configuration space; only what is needed is read, since reads cost exits.
    fn of(function: &Path) -> Result<Self> {
        let config = File::open(function.join("config")).context("no configuration space")?;
        let read = |at: u64| -> Result<u32> {
            let mut word = [0_u8; 4];
            config.read_exact_at(&mut word, at).context("cannot read the configuration space")?;
            Ok(u32::from_le_bytes(word))
        };
        let mut at = u64::from(read(0x34)? & 0xFC);
        for _ in 0..48 {
            if at == 0 {
                break;
            }
            let header = read(at)?;
            let [id, next, ..] = header.to_le_bytes();
            if id == MSI_X {
                let place = read(at.saturating_add(4))?;
                let bar = u8::try_from(place & 7)?;
                let offset = u64::from(place & !7);
                return Ok(Self {
                    bar,
                    offset,
                    address: resource(function, bar)?.saturating_add(offset),
                    entries: u64::from(header >> 16 & 0x7FF).saturating_add(1),
                });
            }
            at = u64::from(next & 0xFC);
        }
        bail!("{} has no MSI-X", function.display())
    }
}

/// Start of a BAR.
fn resource(function: &Path, bar: u8) -> Result<u64> {
    let text = fs::read_to_string(function.join("resource"))?;
    text.lines()
        .nth(usize::from(bar))
        .and_then(|line| line.split_whitespace().next())
        .and_then(|start| u64::from_str_radix(start.trim_start_matches("0x"), 16).ok())
        .with_context(|| format!("{} has no BAR {bar}", function.display()))
}

fn driver_of(function: &Path) -> Result<Option<&'static str>> {
    let read = |name: &str| -> Result<String> {
        Ok(fs::read_to_string(function.join(name))?.trim().to_owned())
    };
    Ok(match (read("class")?.as_str(), read("vendor")?.as_str(), read("device")?.as_str()) {
        ("0x010802", ..) => Some("nvme"),
        (_, "0x8086", "0x10c9") => Some("igb"),
        _ => None,
    })
}

/// Registers of a function, mapped.
pub(super) struct Registers {
    base: NonNull<u8>,
    length: usize,
    /// Of what was asked for, from the mapping's start.
    skip: usize,
}

impl Registers {
    fn map(resource: &Path, offset: u64, length: usize) -> Result<Self> {
        let file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .open(resource)
            .with_context(|| format!("cannot open {}", resource.display()))?;
        let page = u64::try_from(rustix::param::page_size())?;
        let skip = usize::try_from(offset.checked_rem(page).unwrap_or(0))?;
        let start = offset.saturating_sub(u64::try_from(skip)?);
        let length = length.saturating_add(skip);
        // SAFETY: a new mapping, which only this type uses.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                start,
            )
        }
        .with_context(|| format!("cannot map {}", resource.display()))?;
        let base = NonNull::new(base.cast()).context("mapped at 0")?;
        Ok(Self { base, length, skip })
    }

    /// Writes a 32-bit register.
    pub(super) fn write(&self, offset: usize, value: u32) -> Result<()> {
        let at = self.skip.saturating_add(offset);
        if !at.is_multiple_of(4) || at.saturating_add(4) > self.length {
            bail!("no register at {offset:#x}");
        }
        // SAFETY: within the mapping, as was checked.
        let register = unsafe { self.base.add(at) }.cast::<u32>();
        // SAFETY: aligned and mapped.
        unsafe { register.write_volatile(value) };
        Ok(())
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and nobody else has the address.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
