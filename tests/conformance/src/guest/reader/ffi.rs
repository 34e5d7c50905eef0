//! The C side: its structures, its functions, and what it calls.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use pvmsi_protocol::GuestMessage;

use crate::guest::{Doorbell, GuestMachine};

/// Where the guest has its call buffer.
const BUFFER: u64 = 0x2_0000;
const BUFFER_BYTES: u32 = 0x1_0000;
/// Where the C side sees the vector table: an address that nothing else in the machine has.
const TABLE: u64 = 1 << 48;
const VECTORS: u16 = 2048;
const ENTRY_BYTES: u64 = 16;

/// `struct reader_host`.
#[repr(C)]
struct Host {
    ctx: *mut c_void,
    cpuid: Option<unsafe extern "C" fn(*mut c_void, u32, *mut u32)>,
    smccc: Option<unsafe extern "C" fn(*mut c_void, *mut u64)>,
    out32: Option<unsafe extern "C" fn(*mut c_void, u16, u32)>,
    load32: Option<unsafe extern "C" fn(*mut c_void, u64) -> u32>,
    store32: Option<unsafe extern "C" fn(*mut c_void, u64, u32)>,
    config_read16: Option<unsafe extern "C" fn(*mut c_void, u32, u32) -> u16>,
    config_write16: Option<unsafe extern "C" fn(*mut c_void, u32, u32, u16)>,
    wait: Option<unsafe extern "C" fn(*mut c_void, u32)>,
    buffer: *mut u8,
    physical: u64,
    length: u32,
    bell: u32,
    bell_at: u64,
    ready: bool,
    most: u32,
    features: u32,
    largest: u32,
    parameter: u32,
    vector: i32,
}

/// `struct reader_vector`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Vector {
    address: u64,
    table_address: u64,
    data: u32,
    table_data: u32,
    has_message: bool,
    enabled: bool,
    has_table: bool,
    pending: bool,
}

/// `struct reader_function`.
#[repr(C)]
struct Function {
    host: *mut Host,
    function: u32,
    msix_cap: u32,
    table: u64,
    vectors: *mut Vector,
    room: u16,
    count: u16,
    assigned: bool,
    refused: bool,
    mode: u32,
    reasons: u32,
    generation: u32,
    interrupt: Option<unsafe extern "C" fn(*mut Function, u16)>,
}

unsafe extern "C" {
    static reader_layout: [usize; 3];
    fn reader_find(host: *mut Host) -> bool;
    fn reader_negotiate(host: *mut Host) -> u32;
    fn reader_configure(function: *mut Function, vectors: u16) -> u32;
    fn reader_set_message(function: *mut Function, vector: u16, address: u64, data: u32) -> u32;
    fn reader_enable(function: *mut Function, vector: u16, enabled: bool);
    fn reader_restore(function: *mut Function) -> u32;
    fn reader_release(function: *mut Function);
}

/// The guest half in C on a machine.
///
/// The structures are on the heap and are accessed through these pointers alone: the C side keeps
/// pointers from one to the other. Every call of the C side in this module is sound because:
/// 1. pointers to its structures come from boxes of this value, and nothing in Rust refers to them
///    during the call (the callbacks take only `ctx`, and what is said at `deliver`);
/// 2. the layouts are those of C, which [`Half::new`] has compared;
/// 3. `ctx` is the machine, which outlives this value.
pub(super) struct Half<'m> {
    machine: NonNull<&'m dyn GuestMachine>,
    host: NonNull<Host>,
    function: NonNull<Function>,
    vectors: NonNull<[Vector]>,
}

/// A value on the heap, until [`Half`] is dropped.
fn leaked<T: ?Sized>(value: Box<T>) -> NonNull<T> {
    NonNull::from(Box::leak(value))
}

impl<'m> Half<'m> {
    pub(super) fn new(machine: &'m dyn GuestMachine, capability: u16) -> Result<Self, String> {
        // SAFETY: a constant of the C side.
        let theirs = unsafe { reader_layout };
        let ours = [size_of::<Host>(), size_of::<Function>(), size_of::<Vector>()];
        if theirs != ours {
            return Err(format!("the structures of reader.h have {theirs:?} bytes, not {ours:?}"));
        }
        let start = usize::try_from(BUFFER).map_err(|error| error.to_string())?;
        // SAFETY: the buffer lies inside RAM, which has RAM_BYTES bytes.
        let buffer = unsafe { machine.ram().add(start) };
        let id = machine.function();
        let machine = leaked(Box::new(machine));
        let vectors = leaked(vec![Vector::default(); VECTORS.into()].into_boxed_slice());
        let host = leaked(Box::new(Host {
            ctx: machine.as_ptr().cast(),
            cpuid: Some(cpuid),
            smccc: None,
            out32: Some(out32),
            load32: Some(load32),
            store32: Some(store32),
            config_read16: Some(config_read16),
            config_write16: Some(config_write16),
            wait: Some(wait),
            buffer: buffer.as_ptr(),
            physical: BUFFER,
            length: BUFFER_BYTES,
            bell: 0,
            bell_at: 0,
            ready: false,
            most: 0,
            features: 0,
            largest: 0,
            parameter: 0,
            vector: 0,
        }));
        let function = leaked(Box::new(Function {
            host: host.as_ptr(),
            function: id.0,
            msix_cap: capability.into(),
            table: TABLE,
            vectors: vectors.as_ptr().cast(),
            room: VECTORS,
            count: 0,
            assigned: false,
            refused: false,
            mode: 0,
            reasons: 0,
            generation: 0,
            interrupt: Some(interrupt),
        }));
        Ok(Self { machine, host, function, vectors })
    }

    pub(super) fn find(&mut self) -> bool {
        // SAFETY: see `Half`.
        unsafe { reader_find(self.host.as_ptr()) }
    }

    pub(super) fn negotiate(&mut self) -> Result<(), String> {
        // SAFETY: see `Half`.
        outcome(unsafe { reader_negotiate(self.host.as_ptr()) })
    }

    pub(super) fn configure(&mut self, vectors: u16) -> Result<(), String> {
        // SAFETY: see `Half`.
        outcome(unsafe { reader_configure(self.function.as_ptr(), vectors) })
    }

    pub(super) fn set_message(
        &mut self,
        vector: u16,
        GuestMessage { address, data }: GuestMessage,
    ) -> Result<(), String> {
        // SAFETY: see `Half`.
        outcome(unsafe { reader_set_message(self.function.as_ptr(), vector, address, data) })
    }

    pub(super) fn set_enabled(&mut self, vector: u16, enabled: bool) -> Result<(), String> {
        if vector >= self.count() {
            return Err(format!("vector {vector} is not there"));
        }
        // SAFETY: see `Half`.
        unsafe { reader_enable(self.function.as_ptr(), vector, enabled) };
        Ok(())
    }

    pub(super) fn restore(&mut self) -> Result<(), String> {
        // It falls back to the standard table where the service fails: interrupts work.
        // SAFETY: see `Half`.
        unsafe { reader_restore(self.function.as_ptr()) };
        Ok(())
    }

    pub(super) fn release(&mut self) {
        // SAFETY: see `Half`.
        unsafe { reader_release(self.function.as_ptr()) };
    }

    /// How many vectors work.
    pub(super) fn count(&self) -> u16 {
        // SAFETY: the box is this value's, and the C side is not running.
        unsafe { self.function.as_ref() }.count
    }

    /// The function shall do without the service.
    pub(super) fn refuse(&mut self) {
        // SAFETY: as in `count`.
        unsafe { self.function.as_mut() }.refused = true;
    }

    /// No vector has a message, or is unmasked.
    pub(super) fn forget(&mut self) {
        // SAFETY: as in `count`.
        unsafe { self.vectors.as_mut() }.fill(Vector::default());
    }

    /// Gives the vectors that have no message one.
    pub(super) fn remember(&mut self, messages: &dyn Fn(u16) -> Option<GuestMessage>) {
        // SAFETY: as in `count`.
        let vectors = unsafe { self.vectors.as_mut() };
        let without = (0..).zip(vectors).filter(|(_, vector)| !vector.has_message);
        for (index, vector) in without {
            if let Some(GuestMessage { address, data }) = messages(index) {
                *vector = Vector { address, data, has_message: true, ..*vector };
            }
        }
    }
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        // SAFETY: it comes from a box, and is dropped once.
        drop(unsafe { Box::from_raw(self.function.as_ptr()) });
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(self.host.as_ptr()) });
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(self.vectors.as_ptr()) });
        // SAFETY: likewise.
        drop(unsafe { Box::from_raw(self.machine.as_ptr()) });
    }
}

fn outcome(status: u32) -> Result<(), String> {
    match status {
        0 => Ok(()),
        status => Err(format!("status {status:#x}")),
    }
}

/// The machine behind a context.
///
/// # Safety
/// The context is [`Host::ctx`], and the [`Half`] that it belongs to lives for `'a`.
unsafe fn machine<'a>(ctx: *mut c_void) -> &'a dyn GuestMachine {
    let machine: *const &dyn GuestMachine = ctx.cast_const().cast();
    // SAFETY: by the contract it points to the machine of a `Half`.
    unsafe { *machine }
}

unsafe extern "C" fn cpuid(ctx: *mut c_void, leaf: u32, words: *mut u32) {
    // SAFETY: the C side passes its context.
    let leaf = unsafe { machine(ctx) }.cpuid(leaf);
    // SAFETY: the C side passes four words.
    unsafe { ptr::copy_nonoverlapping(leaf.as_ptr(), words, leaf.len()) };
}

unsafe extern "C" fn out32(ctx: *mut c_void, port: u16, value: u32) {
    // SAFETY: the C side passes its context.
    unsafe { machine(ctx) }.ring(Doorbell::Port(port), value);
}

/// A word of the vector table; `None` where there is none.
fn entry(machine: &dyn GuestMachine, address: u64) -> Option<NonNull<u32>> {
    let offset = address.checked_sub(TABLE)?;
    let inside = offset < u64::from(VECTORS).saturating_mul(ENTRY_BYTES);
    let word = usize::try_from(offset / 4).ok().filter(|_| inside)?;
    // SAFETY: the table of the suite's machine has room for all vectors that MSI-X knows.
    Some(unsafe { machine.table().add(word) })
}

unsafe extern "C" fn load32(ctx: *mut c_void, address: u64) -> u32 {
    // SAFETY: the C side passes its context.
    match entry(unsafe { machine(ctx) }, address) {
        // SAFETY: a word of the table, which nobody else accesses meanwhile.
        Some(word) => unsafe { word.read_volatile() },
        None => u32::MAX,
    }
}

unsafe extern "C" fn store32(ctx: *mut c_void, address: u64, value: u32) {
    // SAFETY: the C side passes its context.
    let machine = unsafe { machine(ctx) };
    match entry(machine, address) {
        // SAFETY: as in `load32`.
        Some(word) => unsafe { word.write_volatile(value) },
        None => machine.ring(Doorbell::Register(address), value),
    }
}

unsafe extern "C" fn config_read16(ctx: *mut c_void, _function: u32, offset: u32) -> u16 {
    let offset = u16::try_from(offset).unwrap_or(u16::MAX);
    // SAFETY: the C side passes its context.
    unsafe { machine(ctx) }.read_config_u16(offset)
}

unsafe extern "C" fn config_write16(ctx: *mut c_void, _function: u32, offset: u32, value: u16) {
    let offset = u16::try_from(offset).unwrap_or(u16::MAX);
    // SAFETY: the C side passes its context.
    unsafe { machine(ctx) }.write_config_u16(offset, value);
}

unsafe extern "C" fn wait(ctx: *mut c_void, microseconds: u32) {
    // SAFETY: the C side passes its context.
    unsafe { machine(ctx) }.delay_us(microseconds);
}

unsafe extern "C" fn interrupt(function: *mut Function, vector: u16) {
    // SAFETY: the C side passes its function, and no reference to it exists in Rust.
    let host = unsafe { (*function).host };
    // SAFETY: the host is the function's for as long as there is a function.
    let ctx = unsafe { (*host).ctx };
    // SAFETY: the context of the C side.
    unsafe { machine(ctx) }.deliver(vector);
}
