//! The network function: its link.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::device::Device;

/// Bound of waiting for a link.
const PATIENCE: Duration = Duration::from_secs(60);

/// Interface is up, of its flags.
const UP: u64 = 1;

/// Waits for the driver's interface, switches it on, and waits for its link.
pub(super) fn wait(device: &Device) -> Result<()> {
    let begin = Instant::now();
    let mut on = false;
    loop {
        if let Some(name) = device.entry("net", "") {
            if !on {
                switch(device, true)?;
                on = true;
            }
            let carrier = fs::read_to_string(format!("/sys/class/net/{name}/carrier"));
            if carrier.is_ok_and(|carrier| carrier.trim() == "1") {
                return Ok(());
            }
        }
        if begin.elapsed() >= PATIENCE {
            bail!("the interface of {} has no link", device.address);
        }
        sleep(Duration::from_millis(5));
    }
}

/// The interface of the guest's network function.
pub(super) fn interface() -> Result<String> {
    Device::of("igb")?.entry("net", "").context("no interface")
}

/// Switches the interface on or off.
pub(super) fn switch(device: &Device, on: bool) -> Result<()> {
    let name = device.entry("net", "").context("no interface")?;
    let path = format!("/sys/class/net/{name}/flags");
    let flags = fs::read_to_string(&path)?;
    let flags = u64::from_str_radix(flags.trim().trim_start_matches("0x"), 16)?;
    let flags = if on { flags | UP } else { flags & !UP };
    fs::write(&path, format!("{flags:#x}")).with_context(|| format!("cannot write {path}"))
}
