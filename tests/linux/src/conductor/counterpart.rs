//! The host's network function that shares a wire with the guest's.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Up, with broadcast and multicast, in `flags` of sysfs.
const ON: &str = "0x1003";

/// The same, down.
const OFF: &str = "0x1002";

/// Its interface, which is up while this lives. The host's kernel sends on an interface that is up
/// whenever it likes. The emulated wire keeps a frame until the guest's function listens, which it does
/// not always; the host's driver would warn that its frame does not leave.
pub(super) struct Counterpart {
    name: String,
    flags: PathBuf,
}

impl Counterpart {
    /// Switches it on.
    pub(super) fn switch_on() -> Result<Self> {
        for entry in fs::read_dir("/sys/class/net")? {
            let entry = entry?;
            let driver = fs::read_link(entry.path().join("device/driver")).unwrap_or_default();
            if driver.ends_with("virtio_net") {
                let flags = entry.path().join("flags");
                let name = entry.file_name().to_string_lossy().into_owned();
                fs::write(&flags, ON).context("the counterpart cannot be switched on")?;
                return Ok(Self { name, flags });
            }
        }
        bail!("the host has no counterpart of the network function")
    }

    /// Name of the interface.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Counterpart {
    fn drop(&mut self) {
        // A host that ends takes it along.
        let _ = fs::write(&self.flags, OFF);
    }
}
