//! Numbered Ethernet frames, sent and counted: what the guest's network function and its counterpart
//! in the host tell each other.

use std::ffi::CString;
use std::io::{Error, ErrorKind};
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Set aside for experiments by IEEE 802.
const PROTOCOL: u16 = 0x88B5;

/// Bytes of a frame: addresses, type, number, padding.
const FRAME: usize = 60;

/// Where the number stands.
const NUMBER: usize = 14;

/// A socket for frames of this protocol on an interface.
struct Socket(OwnedFd);

impl Socket {
    fn open(interface: &str) -> Result<Self> {
        // SAFETY: no memory is involved.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(PROTOCOL.to_be()),
            )
        };
        if fd < 0 {
            bail!("no packet socket: {}", Error::last_os_error());
        }
        // SAFETY: a new descriptor, which nobody else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        let name = CString::new(interface)?;
        // SAFETY: the name ends with a zero byte.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET)?,
            sll_protocol: PROTOCOL.to_be(),
            sll_ifindex: i32::try_from(index)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is complete, and its size is told.
        let status = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                u32::try_from(size_of::<libc::sockaddr_ll>())?,
            )
        };
        if status < 0 {
            bail!("no packets on {interface}: {}", Error::last_os_error());
        }
        Ok(socket)
    }

    fn send(&self, frame: &[u8]) -> Result<(), Error> {
        // SAFETY: the frame is as long as is said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits up to a tenth of a second.
    fn receive(&self, frame: &mut [u8]) -> Result<usize, Error> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, as is said.
        let ready = unsafe { libc::poll(&mut poll, 1, 100) };
        if ready <= 0 {
            return Ok(0);
        }
        // SAFETY: the buffer is as long as is said.
        let length = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        usize::try_from(length).map_err(|_| Error::last_os_error())
    }
}

/// Broadcasts the frames with these numbers, with pauses: each shall be an interrupt of its own, as far
/// as possible.
pub(crate) fn send(interface: &str, numbers: Range<u64>) -> Result<()> {
    let socket = Socket::open(interface)?;
    let mut frame = [0_u8; FRAME];
    let (addresses, rest) = frame.split_at_mut(12);
    let (destination, source) = addresses.split_at_mut(6);
    destination.fill(0xFF);
    // Locally administered.
    source.copy_from_slice(&[2, 0, 0, 0x50, 0x56, 0x4D]);
    if let Some(kind) = rest.first_chunk_mut() {
        *kind = PROTOCOL.to_be_bytes();
    }
    for number in numbers {
        if let Some(place) = frame.get_mut(NUMBER..).and_then(<[u8]>::first_chunk_mut) {
            *place = number.to_be_bytes();
        }
        let mut tries = 0_u32;
        while let Err(error) = socket.send(&frame) {
            tries = tries.saturating_add(1);
            if error.raw_os_error() != Some(libc::ENOBUFS) || tries > 1000 {
                return Err(error).with_context(|| format!("frame {number} cannot be sent"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// What has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Frames with different numbers.
    pub frames: u64,
    /// Frames that came again.
    pub doubled: u64,
}

/// Frames that are sent at a time: a receive ring has room for them, however late somebody looks at it.
const BATCH: u64 = 100;

/// The numbers of `count` frames, a batch after the other.
pub(crate) fn batches(count: u64) -> impl Iterator<Item = Range<u64>> {
    let first = (0..count.div_ceil(BATCH)).map(|batch| batch.saturating_mul(BATCH));
    first.map(move |first| first..count.min(first.saturating_add(BATCH)))
}

/// Who waits for frames gives up when none has come for this time. igb raises all its vectors every two
/// seconds, which makes up for a lost interrupt.
const SILENCE: Duration = Duration::from_secs(1);

/// A thread that listens.
pub(crate) struct Listener {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
    thread: JoinHandle<Result<()>>,
}

impl Listener {
    /// Begins to listen.
    pub(crate) fn start(interface: &str) -> Result<Self> {
        let socket = Socket::open(interface)?;
        let stop = Arc::new(AtomicBool::new(false));
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&heard));
        let thread = std::thread::spawn(move || listen(&socket, &stopped, &told));
        Ok(Self { stop, heard, thread })
    }

    /// Waits for so many frames since the beginning, as long as some come.
    pub(crate) fn wait(&self, frames: u64) {
        let (mut last, mut since) = (self.heard(), Instant::now());
        while last.frames < frames && since.elapsed() < SILENCE {
            std::thread::sleep(Duration::from_millis(2));
            let now = self.heard();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
    }

    fn heard(&self) -> Heard {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when nothing has come for a tenth of a second.
    pub(crate) fn stop(self) -> Result<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        let Self { heard, thread, .. } = self;
        match thread.join() {
            Ok(ended) => ended?,
            Err(_) => bail!("the listening thread has failed"),
        }
        Ok(*heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn listen(socket: &Socket, stop: &AtomicBool, told: &Mutex<Heard>) -> Result<()> {
    let mut numbers = std::collections::HashSet::new();
    let mut frame = [0_u8; 2048];
    loop {
        match socket.receive(&mut frame) {
            Ok(0) if stop.load(Ordering::Relaxed) => return Ok(()),
            Ok(0) => {}
            Ok(length) => {
                let content = frame.get(..length).unwrap_or_default();
                let Some(number) = content.get(NUMBER..).and_then(<[u8]>::first_chunk) else {
                    continue;
                };
                let mut heard = told.lock().unwrap_or_else(PoisonError::into_inner);
                if numbers.insert(u64::from_be_bytes(*number)) {
                    heard.frames = heard.frames.saturating_add(1);
                } else {
                    heard.doubled = heard.doubled.saturating_add(1);
                }
            }
            // The interface may go down and come back.
            Err(error)
                if error.kind() == ErrorKind::WouldBlock
                    || error.raw_os_error() == Some(libc::ENETDOWN) => {}
            Err(error) => return Err(error).context("cannot listen"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_each_frame_once() {
        let ends = |count| batches(count).map(|batch| (batch.start, batch.end)).collect::<Vec<_>>();
        assert_eq!(ends(0), []);
        assert_eq!(ends(1), [(0, 1)]);
        assert_eq!(ends(100), [(0, 100)]);
        assert_eq!(ends(250), [(0, 100), (100, 200), (200, 250)]);
    }
}
