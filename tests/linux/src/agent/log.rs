//! The kernel's log: what must not stand there.

use std::fs::File;
use std::io::{ErrorKind, Read};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use serde_json::json;

use super::{Answer, object};

/// Words of lines that say that something is wrong.
pub(crate) const BAD: &[&str] = &[
    "WARNING:",
    "BUG:",
    "nobody cared",
    "completion polled",
    ", aborting",
    "timeout, ",
    "No irq handler for vector",
    "Call Trace",
    "Oops",
    "Unhandled fault",
    "hung_task",
    "soft lockup",
    "NETDEV WATCHDOG",
    "Tx Unit Hang",
    "Internal error",
];

/// Words of those among them that say that an interrupt did not arrive.
const LOST: &[&str] = &["completion polled", "timeout, "];

/// A reader of /dev/kmsg.
pub(crate) struct KernelLog {
    file: File,
}

impl KernelLog {
    /// From the first line that the kernel still has.
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open("/dev/kmsg", flags, Mode::empty()).context("no /dev/kmsg")?;
        Ok(Self { file: file.into() })
    }

    /// Lines since the last call that say that something is wrong.
    pub(crate) fn bad_lines(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut record = [0_u8; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    let line = text.split_once(';').map_or(&*text, |(_, line)| line);
                    let line = line.lines().next().unwrap_or_default();
                    if BAD.iter().any(|bad| line.contains(bad)) {
                        found.push(line.to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Lines were overwritten before they were read; the next read goes on after them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {
                    found.push("the kernel's log was overwritten unread".to_owned());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot read /dev/kmsg"),
            }
        }
        Ok(found)
    }

    /// For the conductor.
    pub(crate) fn answer(&mut self) -> Result<Answer> {
        let bad = self.bad_lines()?;
        let lost = bad.iter().filter(|line| LOST.iter().any(|lost| line.contains(lost))).count();
        object(json!({ "bad": bad, "lost": lost }))
    }
}
