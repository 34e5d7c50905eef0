//! A client of the C side, and the host that answers it: whatever a test wants.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use pvmsi_conformance::guest::linux::wire::{self, Client};
use pvmsi_protocol::{Features, Header, Limits, NegotiateAnswer, Version};

/// Guest physical address of the buffer.
const ADDRESS: u64 = 0x7_ffff_f000;
/// More than a test needs, less than a guard page covers.
pub(crate) const LARGEST: usize = 0x1_0000;
/// A multiple of the pages of every kernel.
const PAGE: usize = 65536;

/// A buffer with a page before it and a page behind it that end the process when they are touched.
struct Guarded {
    start: NonNull<u8>,
    length: usize,
    mapping: NonNull<u8>,
    mapped: usize,
}

/// Which end of the buffer touches a guard page, where not both do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    Start,
    End,
}

impl Guarded {
    fn new(length: usize, flush: Flush) -> Self {
        let inside = length.next_multiple_of(PAGE);
        let mapped = inside + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel puts it.
        let mapping =
            unsafe { libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        let mapping = NonNull::new(mapping.cast::<u8>()).unwrap();
        // SAFETY: the mapping has a page before this and one behind it.
        let inner = unsafe { mapping.add(PAGE) };
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: these pages are this mapping's.
        assert_eq!(unsafe { libc::mprotect(inner.as_ptr().cast(), inside, rights) }, 0);
        let skipped = if flush == Flush::Start { 0 } else { inside - length };
        // SAFETY: less than what is inside.
        let start = unsafe { inner.add(skipped) };
        // What was there before the first call is no header.
        // SAFETY: so many bytes can be written.
        unsafe { start.write_bytes(0xa5, length) };
        Self { start, length, mapping, mapped }
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: so many bytes are there, and nobody writes meanwhile.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }.to_vec()
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        // SAFETY: inside the buffer, as was just checked.
        let to = unsafe { self.start.add(at) };
        // SAFETY: as above, and the bytes are elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and used by nobody any more.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

/// What the host does when it is rung.
pub(crate) enum Reply {
    /// Nothing: it is not there.
    Silent,
    /// It answers with this status and body; the rest of the header is as in the request.
    Body(u32, Vec<u8>),
    /// It writes these bytes to the start of the buffer.
    Bytes(Vec<u8>),
}

/// Buffer and host.
pub(crate) struct Session {
    buffer: Guarded,
    reply: RefCell<Reply>,
    /// Header and body of the last request.
    request: RefCell<Option<Vec<u8>>>,
    rings: Cell<u32>,
}

impl Session {
    /// A client that has agreed on version 1.0 and on limits that nothing exceeds.
    pub(crate) fn new(length: usize, flush: Flush) -> (Rc<Self>, Client<impl Fn(u32)>) {
        let (session, mut client) = Self::unsettled(length, flush);
        client.agree(&NegotiateAnswer {
            version: Version::V1_0,
            features: Features::all(),
            limits: Limits { buffer_bytes: u32::MAX, vectors: u16::MAX },
        });
        (session, client)
    }

    /// A client that has agreed on nothing.
    pub(crate) fn unsettled(length: usize, flush: Flush) -> (Rc<Self>, Client<impl Fn(u32)>) {
        wire::check_layout().unwrap();
        let session = Rc::new(Self {
            buffer: Guarded::new(length, flush),
            reply: RefCell::new(Reply::Silent),
            request: RefCell::new(None),
            rings: Cell::new(0),
        });
        let host = Rc::clone(&session);
        let ring = move |page| host.ring(page);
        let (start, length) = (session.buffer.start, u32::try_from(length).unwrap());
        // SAFETY: the doorbell keeps the session, so that the buffer lives as long as the client;
        // beside the client only the host uses it, and a test between calls.
        let client = unsafe { Client::new(start, length, ADDRESS, ring) };
        (session, client)
    }

    pub(crate) fn reply(&self, reply: Reply) {
        *self.reply.borrow_mut() = reply;
    }

    /// Header and body of the request since the last time that a test has asked.
    pub(crate) fn request(&self) -> Option<Vec<u8>> {
        self.request.borrow_mut().take()
    }

    pub(crate) fn rings(&self) -> u32 {
        self.rings.get()
    }

    /// The host writes into the buffer although its answer is done.
    pub(crate) fn scribble(&self, at: usize, bytes: &[u8]) {
        self.buffer.write(at, bytes);
    }

    fn ring(&self, page: u32) {
        assert_eq!(u64::from(page), ADDRESS >> 12);
        self.rings.set(self.rings.get() + 1);
        let bytes = self.buffer.read();
        let header = Header::from_bytes(bytes.first_chunk().unwrap());
        let end = Header::SIZE + usize::try_from(header.body_length).unwrap();
        *self.request.borrow_mut() = Some(bytes[..end].to_vec());
        match &*self.reply.borrow() {
            Reply::Silent => {}
            Reply::Body(status, body) => {
                let length = u32::try_from(body.len()).unwrap();
                let header = header.answered(pvmsi_protocol::Status(*status), length);
                self.buffer.write(Header::SIZE, body);
                self.buffer.write(0, &header.to_bytes());
            }
            Reply::Bytes(bytes) => self.buffer.write(0, bytes),
        }
    }
}
