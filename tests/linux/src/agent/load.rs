//! Load: the drive is read and verified while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Result, bail};

use super::disk::Disk;

/// Bytes of a read: small, so that there are many interrupts.
const PIECE: usize = 4096;

/// A thread that reads.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

impl Load {
    /// Begins to read.
    pub(super) fn start() -> Result<Self> {
        let mut disk = Disk::wait()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut pieces = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                disk.verify(pieces, PIECE)?;
                pieces = pieces.saturating_add(1);
            }
            Ok(pieces)
        });
        Ok(Self { stop, thread })
    }

    /// Ends, and tells how many pieces were read.
    pub(super) fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(Ok(0)) => bail!("nothing was read meanwhile: that was no load"),
            Ok(pieces) => pieces,
            Err(_) => bail!("the reading thread has failed"),
        }
    }
}
