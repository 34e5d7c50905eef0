//! The client: storage that the kernel provides, and one function per call.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::mem::{MaybeUninit, align_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use pvmsi_guest::{
    CallBuffer, CallError, Client, Delay, FunctionId, GuestMessage, Kind, VectorIndex, VectorSetup,
    VectorUpdate,
};

use crate::answer::{
    pvmsi_agreement, pvmsi_function_state, pvmsi_grant, pvmsi_table_state, pvmsi_vector_answer,
    pvmsi_vector_state,
};
use crate::doorbell::{Bell, pvmsi_doorbell};
use crate::pointer::{array, optional_output, output, output_array, shared};
use crate::status::{pvmsi_detail, pvmsi_status};

/// Makes calls, one after the other, through one call buffer. Storage is the kernel's, the
/// content is not: pvmsi_client_init fills it.
///
/// A client may be used with interrupts off and from any processor, by one caller at a time
/// (PVMSI_STATUS_CLIENT_IN_USE tells). It may be moved in memory while it is not in use.
#[repr(C)]
pub struct pvmsi_client {
    opaque: [u64; 16],
}

/// Memory for calls. 4096 bytes serve every call except pvmsi_msix_enable, pvmsi_configure and
/// pvmsi_update of some hundred vectors, see pvmsi_call_buffer_bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_call_buffer {
    /// Where the kernel sees it: ordinary, cached RAM that nobody else uses as long as the client
    /// exists.
    pub start: *mut c_void,
    /// Where it begins in the guest's physical address space, in which it is contiguous; a
    /// multiple of 4096, below 16 TiB.
    pub physical: u64,
    /// Its length in bytes, 4096 to 65,536.
    pub length: u32,
}

/// How the kernel waits. Only pvmsi_msix_enable, pvmsi_msix_enable_with and pvmsi_configure use
/// it, when the host is busy; 5 seconds in total at most.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_delay {
    /// Waits for about so many microseconds. It may spin, and must where interrupts are off. It
    /// must not use the client.
    pub wait_us: Option<unsafe extern "C" fn(context: *mut c_void, microseconds: u32)>,
    /// What `wait_us` shall be given.
    pub context: *mut c_void,
}

/// The new message of one vector.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_vector_update {
    /// Message Address: where the guest wants the interrupt from now on.
    pub address: u64,
    /// Message Data.
    pub data: u32,
    /// The vector index; no vector may stand twice in one call.
    pub vector: u16,
}

/// How a vector shall start, in pvmsi_configure.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_vector_setup {
    /// Message Address: where the guest wants the interrupt. 0: not known yet, pvmsi_update says
    /// it later; events wait until then.
    pub address: u64,
    /// Message Data.
    pub data: u32,
    /// The vector's mask bit from now on.
    pub masked: bool,
}

/// Bytes of call buffer that `vectors` vectors need at most, in pvmsi_msix_enable,
/// pvmsi_msix_set_many, pvmsi_configure and pvmsi_update. 2048 vectors need less than 40 KiB.
#[unsafe(no_mangle)]
pub extern "C" fn pvmsi_call_buffer_bytes(vectors: u16) -> u32 {
    u32::try_from(CallBuffer::bytes_for(vectors)).unwrap_or(u32::MAX)
}

/// The number of a PCI function, as calls take it.
///
/// Returns PVMSI_STATUS_ADDRESS when `device` is over 31 or `function` over 7,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// `id`: where the number shall be written; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_function_id(
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
    id: *mut u32,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    pvmsi_status::of(unsafe { output(id) }.and_then(|id| {
        let found = FunctionId::new(segment, bus, device, function);
        id.write(found.ok_or(pvmsi_status::Address)?.0);
        Ok(())
    }))
}

/// Makes a client. pvmsi_negotiate comes next. What stood in the storage before is forgotten, so
/// no call may be running with it.
///
/// Returns PVMSI_STATUS_CALL_BUFFER, PVMSI_STATUS_DOORBELL, PVMSI_STATUS_POINTER.
///
/// # Safety
/// Each is not NULL, else PVMSI_STATUS_POINTER, and only `client` is used after the call:
/// - `client`: the storage.
/// - `doorbell`: what its kind says it is; a doorbell of this host, or one that disturbs nothing.
/// - `buffer`: memory as described there, and `start` in it. A wrong physical address makes the
///   host overwrite other memory of the guest.
/// - `delay`: how to wait, and `wait_us` in it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_client_init(
    client: *mut pvmsi_client,
    doorbell: *const pvmsi_doorbell,
    buffer: *const pvmsi_call_buffer,
    delay: *const pvmsi_delay,
) -> pvmsi_status {
    let init = || {
        // SAFETY: condition 1 of the crate.
        let client = unsafe { output(client.cast::<State>()) }?;
        // SAFETY: as above.
        let doorbell = unsafe { shared(doorbell) }?;
        // SAFETY: the kernel says that the doorbell is what its kind says.
        let doorbell = unsafe { Bell::new(doorbell) }?;
        // SAFETY: as above.
        let buffer = unsafe { shared(buffer) }?;
        // SAFETY: as above.
        let delay = unsafe { shared(delay) }?;
        let delay =
            Wait { wait_us: delay.wait_us.ok_or(pvmsi_status::Pointer)?, context: delay.context };
        let start = NonNull::new(buffer.start.cast()).ok_or(pvmsi_status::Pointer)?;
        let length = usize::try_from(buffer.length).unwrap_or(usize::MAX);
        // SAFETY: the description of `pvmsi_call_buffer` asks for exactly that.
        let buffer = unsafe { CallBuffer::new(start, length, buffer.physical) };
        let buffer = buffer.ok_or(pvmsi_status::CallBuffer)?;
        client.write(State {
            ready: READY,
            in_use: AtomicU32::new(0),
            detail: UnsafeCell::new(pvmsi_detail::NONE),
            client: UnsafeCell::new(Client::with_delay(buffer, doorbell, delay)),
        });
        Ok(())
    };
    pvmsi_status::of(init())
}

/// Details of the client's last call, if the host answered it with an error.
///
/// Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `detail`: where the details shall be written; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_client_detail(
    client: *mut pvmsi_client,
    detail: *mut pvmsi_detail,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    pvmsi_status::of(unsafe { output(detail) }.and_then(|detail| {
        // SAFETY: conditions 1 and 2 of the crate.
        detail.write(unsafe { Lease::new(client) }?.detail());
        Ok(())
    }))
}

/// Agrees on version, features and limits. Do this once, before any other call.
///
/// Returns PVMSI_STATUS_NOT_SUPPORTED when nobody answers or the host speaks another major
/// version: use the standard vector table then. PVMSI_STATUS_HARDWARE,
/// PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `agreement`: where the answer shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_negotiate(
    client: *mut pvmsi_client,
    agreement: *mut pvmsi_agreement,
) -> pvmsi_status {
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, agreement, |client| client.negotiate().map(Into::into)) }
}

/// What the service can do for a function, and how it stands.
///
/// Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `state`: where the answer shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_query_function(
    client: *mut pvmsi_client,
    function: u32,
    state: *mut pvmsi_function_state,
) -> pvmsi_status {
    let query =
        |client: &mut KernelClient| client.query_function(FunctionId(function)).map(Into::into);
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, state, query) }
}

/// Looks at `count` vectors from `first` on.
///
/// Asks as often as the buffer makes necessary, so the vectors may come from different states
/// when the host changes something meanwhile. On an error some of `states` may have been written.
///
/// Returns what the host answers, PVMSI_STATUS_PARAMETER when the range is empty or not inside
/// the table, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `states`: an array of `count` elements for the answer; not NULL, else PVMSI_STATUS_POINTER.
/// - `generation`: where the number of the last state seen shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_query_vectors(
    client: *mut pvmsi_client,
    function: u32,
    first: u16,
    count: u16,
    states: *mut pvmsi_vector_state,
    generation: *mut u32,
) -> pvmsi_status {
    // SAFETY: conditions 1 and 2 of the crate.
    let states = match unsafe { output_array(states, count) } {
        Ok(states) => states,
        Err(status) => return status,
    };
    let query = |client: &mut KernelClient| {
        let mut free = states.iter_mut();
        let generation =
            client.query_vectors(FunctionId(function), VectorIndex(first), count, |_, state| {
                if let Some(place) = free.next() {
                    place.write(state.into());
                }
            });
        generation.map(|generation| generation.0)
    };
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, generation, query) }
}

/// Sets the MSI-X interrupts of a function up and asks for its table, for kernels that have an
/// MSI-X layer of their own, below pvmsi_msix_enable: MSI-X Enable, Function Mask and the vector
/// table are left alone.
///
/// The kernel sets MSI-X Enable and Function Mask before; memory decoding is on, and the function
/// is in D0. `vectors` of them are asked for. Those of `setups` start as it says, the others
/// masked and without a message. After the call the kernel
/// 1. writes no message into the table, but the table message back after a reset (or calls
///    pvmsi_restore), and gives messages, the first ones and others, by pvmsi_update;
/// 2. raises the interrupt of a vector that `answers` has as pending itself, when it unmasks it
///    (now, if it is not masked): that event comes no other way;
/// 3. clears Function Mask. From here on it masks and unmasks by vector control.
///
/// Clearing MSI-X Enable ends it, and so does pvmsi_release.
///
/// While the host is busy it waits, and may be called again later: PVMSI_STATUS_BUSY says that it
/// has given up and nothing is assigned.
///
/// Returns what the host answers (PVMSI_STATUS_NOT_SUPPORTED, PVMSI_STATUS_NO_SUCH_FUNCTION,
/// PVMSI_STATUS_DENIED, PVMSI_STATUS_NO_RESOURCES: nothing has changed, and the standard table is
/// there; PVMSI_STATUS_HARDWARE: the function is in its default state),
/// PVMSI_STATUS_PARAMETER also when the call buffer is too short, PVMSI_STATUS_COUNT for no
/// vector, or more setups than vectors, PVMSI_STATUS_NOT_INITIALISED,
/// PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `setups`: an array of `count` elements, for vector 0 and the next ones; NULL only with
///   `count` 0, else PVMSI_STATUS_POINTER.
/// - `answers`: an array of `vectors` elements, of which those of the granted vectors are
///   written; after an error some of it may have been. Not NULL, else PVMSI_STATUS_POINTER.
/// - `grant`: where the answer shall be written; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_configure(
    client: *mut pvmsi_client,
    function: u32,
    vectors: u16,
    setups: *const pvmsi_vector_setup,
    count: u16,
    answers: *mut pvmsi_vector_answer,
    grant: *mut pvmsi_grant,
) -> pvmsi_status {
    let arrays = || {
        // SAFETY: condition 1 of the crate.
        let setups = unsafe { array(setups, count) }?;
        // SAFETY: as above.
        let answers = unsafe { output_array(answers, vectors) }?;
        // SAFETY: as above; `call_for` writes there.
        unsafe { output(grant) }?;
        if vectors == 0 || count > vectors {
            return Err(pvmsi_status::Count);
        }
        Ok((setups, answers))
    };
    let (setups, answers) = match arrays() {
        Ok(arrays) => arrays,
        Err(status) => return status,
    };
    let configure = |client: &mut KernelClient| {
        let setups = setups.iter().map(VectorSetup::from);
        let function = FunctionId(function);
        let granted = client.configure(function, Kind::MsiX, vectors, setups, |vector, answer| {
            if let Some(place) = answers.get_mut(vector.as_usize()) {
                place.write(answer.into());
            }
        });
        granted.map(Into::into)
    };
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, grant, configure) }
}

/// Gives assigned vectors new messages, in one go: the first ones and affinity changes, below
/// pvmsi_msix_set or after pvmsi_configure. Never busy.
///
/// Returns what the host answers, PVMSI_STATUS_PARAMETER also when the call buffer is too short,
/// PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `updates`: an array of `count` elements; not NULL, else PVMSI_STATUS_POINTER.
/// - `generation`: where the number of the state after the call shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_update(
    client: *mut pvmsi_client,
    function: u32,
    updates: *const pvmsi_vector_update,
    count: u16,
    generation: *mut u32,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    let updates = match unsafe { array(updates, count) } {
        Ok(updates) => updates,
        Err(status) => return status,
    };
    let update = |client: &mut KernelClient| {
        let updates = updates.iter().map(VectorUpdate::from);
        client.update(FunctionId(function), updates).map(|answer| answer.generation.0)
    };
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, generation, update) }
}

/// Puts a function back to its default: no vectors assigned, table trapped. Never busy; succeeds
/// for every function of this machine.
///
/// pvmsi_msix_disable does it without a call, and so does clearing MSI-X Enable; this is for
/// kernels that keep MSI-X enabled after pvmsi_configure, and for functions that another kernel
/// has left behind.
///
/// Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `generation`: where the number of the state after the call shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_release(
    client: *mut pvmsi_client,
    function: u32,
    generation: *mut u32,
) -> pvmsi_status {
    let release = |client: &mut KernelClient| {
        client.release(FunctionId(function)).map(|answer| answer.generation.0)
    };
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, generation, release) }
}

/// Puts the table messages of all assigned vectors back, after a reset that the host could not
/// see. Mask bits stay as the function has them. pvmsi_msix_after_reset does more.
///
/// Returns what the host answers, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `client`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `state`: where the answer shall be written; may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_restore(
    client: *mut pvmsi_client,
    function: u32,
    state: *mut pvmsi_table_state,
) -> pvmsi_status {
    let restore = |client: &mut KernelClient| {
        let answer = client.restore(FunctionId(function))?;
        Ok(pvmsi_table_state::new(answer.mode, answer.reasons, answer.generation))
    };
    // SAFETY: the caller's conditions.
    unsafe { call_for(client, state, restore) }
}

impl From<&pvmsi_vector_setup> for VectorSetup {
    fn from(setup: &pvmsi_vector_setup) -> Self {
        let pvmsi_vector_setup { address, data, masked } = *setup;
        Self { message: (address != 0).then_some(GuestMessage { address, data }), masked }
    }
}

impl From<&pvmsi_vector_update> for VectorUpdate {
    fn from(update: &pvmsi_vector_update) -> Self {
        let pvmsi_vector_update { address, data, vector } = *update;
        Self { vector: VectorIndex(vector), message: GuestMessage { address, data } }
    }
}

/// The client behind the storage.
pub(crate) type KernelClient = Client<'static, Bell, Wait>;

/// The kernel's wait.
pub(crate) struct Wait {
    wait_us: unsafe extern "C" fn(*mut c_void, u32),
    context: *mut c_void,
}

impl Delay for Wait {
    fn delay_us(&mut self, microseconds: u32) {
        // SAFETY: condition 3 of the crate; the kernel gets the context that it gave.
        unsafe { (self.wait_us)(self.context, microseconds) }
    }
}

/// What stands in a `pvmsi_client`.
#[repr(C)]
struct State {
    /// The first field, so that it can be read before the rest is known to be there.
    ready: u64,
    /// 1 while a call runs.
    in_use: AtomicU32,
    detail: UnsafeCell<pvmsi_detail>,
    client: UnsafeCell<KernelClient>,
}

/// Tells an initialised client from other memory.
const READY: u64 = u64::from_le_bytes(*b"pvmsi/cl");

const _: () = assert!(size_of::<State>() <= size_of::<pvmsi_client>());
const _: () = assert!(align_of::<State>() <= align_of::<pvmsi_client>());

/// A client that nobody else uses until this is dropped.
pub(crate) struct Lease<'a>(&'a State);

impl<'a> Lease<'a> {
    /// # Safety
    /// Conditions 1 and 2 of the crate.
    pub(crate) unsafe fn new(client: *mut pvmsi_client) -> Result<Self, pvmsi_status> {
        // SAFETY: condition 1; any content is a number.
        if *unsafe { shared(client.cast::<u64>()) }? != READY {
            return Err(pvmsi_status::NotInitialised);
        }
        // SAFETY: conditions 1 and 2: `pvmsi_client_init` has written a state.
        let state = unsafe { shared(client.cast::<State>()) }?;
        if state.in_use.swap(1, Ordering::Acquire) != 0 {
            return Err(pvmsi_status::ClientInUse);
        }
        Ok(Self(state))
    }

    /// The client itself; say afterwards what came of it with [`note`](Self::note).
    pub(crate) fn client(&mut self) -> &mut KernelClient {
        // SAFETY: the lease is the only one, and it is borrowed for as long as the reference lives.
        unsafe { &mut *self.0.client.get() }
    }

    /// What a call returns to C.
    fn end(mut self, error: Option<CallError>) -> pvmsi_status {
        self.note(error.as_ref());
        error.map_or(pvmsi_status::Success, Into::into)
    }

    pub(crate) fn note(&mut self, error: Option<&CallError>) {
        let detail = error.map_or(pvmsi_detail::NONE, pvmsi_detail::of);
        // SAFETY: the lease is the only one.
        unsafe { *self.0.detail.get() = detail }
    }

    fn detail(&self) -> pvmsi_detail {
        // SAFETY: the lease is the only one.
        unsafe { *self.0.detail.get() }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.0.in_use.store(0, Ordering::Release);
    }
}

/// Makes a call and writes its result where C wants it, if it does.
///
/// # Safety
/// Conditions 1 and 2 of the crate.
unsafe fn call_for<T>(
    client: *mut pvmsi_client,
    result: *mut T,
    call: impl FnOnce(&mut KernelClient) -> Result<T, CallError>,
) -> pvmsi_status {
    // SAFETY: the caller's conditions.
    let result: Option<&mut MaybeUninit<T>> = match unsafe { optional_output(result) } {
        Ok(result) => result,
        Err(status) => return status,
    };
    // SAFETY: the caller's conditions.
    let mut lease = match unsafe { Lease::new(client) } {
        Ok(lease) => lease,
        Err(status) => return status,
    };
    let error = match call(lease.client()) {
        Ok(value) => {
            if let Some(result) = result {
                result.write(value);
            }
            None
        }
        Err(error) => Some(error),
    };
    lease.end(error)
}
