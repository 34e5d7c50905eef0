//! What the machine says at the start.

use crate::arch::Platform;

/// RAM, vCPUs and command line.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub(crate) ram_end: u64,
    pub(crate) vcpus: usize,
    pub(crate) command_line: &'static str,
    pub(crate) platform: Platform,
}

impl Start {
    /// The end of the RAM below 4 GiB, a guest physical address.
    pub fn ram_end(&self) -> u64 {
        self.ram_end
    }

    /// How many vCPUs the machine has, as far as the guest uses them.
    pub fn vcpus(&self) -> usize {
        self.vcpus
    }

    /// What only this architecture's machine has to say.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The number after `key=` on the command line; the first one counts.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.text(key).and_then(|value| value.parse().ok())
    }

    /// The word after `key=` on the command line; the first one counts.
    pub fn text(&self, key: &str) -> Option<&'static str> {
        self.command_line
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }
}
