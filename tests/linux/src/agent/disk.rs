//! Reads of the NVMe drive, past the page cache, and compared with what it must hold.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use serde_json::json;

use super::{Answer, object};

/// What each 64-bit word is XORed with; the word's byte offset is the other half.
const PATTERN: u64 = 0x5650_4D53_4950_4D53;

/// What O_DIRECT wants of addresses, sizes and offsets.
const BLOCK: usize = 4096;

/// Bound of waiting for a drive; the driver's own bounds are shorter.
const PATIENCE: Duration = Duration::from_secs(90);

/// A drive, open for reading past the page cache.
pub(super) struct Disk {
    file: File,
    bytes: u64,
    buffer: Vec<u8>,
    start: usize,
}

impl Disk {
    /// Waits until the driver shows it.
    pub(super) fn wait() -> Result<Self> {
        let begin = Instant::now();
        loop {
            match Self::open() {
                Ok(disk) => return Ok(disk),
                Err(error) if begin.elapsed() >= PATIENCE => {
                    return Err(error.context("the drive does not come up"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn open() -> Result<Self> {
        // A controller's own folder shows a path of the namespace, which cannot be read.
        let name = std::fs::read_dir("/sys/block")?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .find(|name| name.starts_with("nvme") && !name.contains('c'))
            .context("no namespace")?;
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(format!("/dev/{name}"), flags, Mode::empty())?);
        let bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        if bytes == 0 {
            bail!("the namespace is empty");
        }
        Ok(Self { file, bytes, buffer: Vec::new(), start: 0 })
    }

    /// Reads a piece, around the end of the drive, and verifies it.
    pub(super) fn verify(&mut self, piece: u64, length: usize) -> Result<()> {
        if self.buffer.len() < length.saturating_add(BLOCK) {
            self.buffer = vec![0; length.saturating_add(BLOCK)];
            self.start = self.buffer.as_ptr().align_offset(BLOCK);
        }
        let size = u64::try_from(length)?;
        let pieces = self.bytes.checked_div(size).unwrap_or(0).max(1);
        let offset = piece.checked_rem(pieces).unwrap_or(0).saturating_mul(size);
        let end = self.start.saturating_add(length);
        let buffer = self.buffer.get_mut(self.start..end).context("no room")?;
        self.file.read_exact_at(buffer, offset).map_err(|error| wrong(offset, &error))?;
        let (words, _) = buffer.as_chunks::<8>();
        for (word, at) in words.iter().zip((offset..).step_by(8)) {
            if u64::from_le_bytes(*word) != at ^ PATTERN {
                bail!("wrong data at byte {at} of the drive");
            }
        }
        Ok(())
    }
}

fn wrong(offset: u64, error: &io::Error) -> anyhow::Error {
    anyhow::anyhow!("the read at byte {offset} failed: {error}")
}

/// Reads so many pieces.
pub(super) fn read(count: u64, bytes: u64) -> Result<Answer> {
    let length = usize::try_from(bytes)?;
    if length == 0 || !length.is_multiple_of(BLOCK) {
        bail!("a piece is a multiple of {BLOCK} bytes");
    }
    let mut disk = Disk::wait()?;
    let begin = Instant::now();
    for piece in 0..count {
        disk.verify(piece, length)?;
    }
    object(json!({
        "seconds": begin.elapsed().as_secs_f64(),
        "bytes": count.saturating_mul(bytes),
    }))
}
