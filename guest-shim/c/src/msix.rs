//! MSI-X of one function: storage that the kernel provides, and what a driver does with it.

use core::ffi::c_void;
use core::mem::{align_of, size_of};
use core::ptr::NonNull;
use core::slice;

use pvmsi_guest::{GuestMessage, MsiX, MsiXError, VectorIndex, VectorUpdate, World};

use crate::answer::{pvmsi_message, pvmsi_table_mode};
use crate::client::{KernelClient, Lease, pvmsi_client, pvmsi_vector_update};
use crate::function::{KernelFunction, pvmsi_function, pvmsi_msix_capability};
use crate::pointer::{array, output, shared};
use crate::status::pvmsi_status;

/// The MSI-X interrupts of one function. Storage is the kernel's, the content is not:
/// pvmsi_msix_init fills it.
///
/// - pvmsi_msix_mask and pvmsi_msix_unmask may run anywhere at any time, interrupt handlers
///   included: the last store to an entry decides.
/// - pvmsi_msix_enable, pvmsi_msix_enable_with, pvmsi_msix_disable and pvmsi_msix_after_reset
///   change all vectors: one such call at a time, while no other one of this function runs.
/// - pvmsi_msix_set of a vector must not run beside mask, unmask or set of the same vector (a
///   kernel holds the interrupt's lock). In the paravirtual world it may.
#[repr(C)]
pub struct pvmsi_msix {
    opaque: [u64; 128],
}

/// How the interrupts of a function are set up.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pvmsi_world {
    /// MSI-X is not enabled.
    Disabled = 0,
    /// The standard way: the guest writes messages into the table, the service is not involved.
    Legacy = 1,
    /// By calls: the host owns the table's messages.
    Paravirtual = 2,
}

/// How the interrupts of a function stand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_msix_state {
    /// Which world the function is in.
    pub world: pvmsi_world,
    /// Who answered the table when the host last said so.
    pub mode: pvmsi_table_mode,
    /// Why it was not direct, PVMSI_REASON_...; 0 exactly when it was.
    pub reasons: u32,
    /// The number of the state that `mode` and `reasons` describe; 0 outside the paravirtual
    /// world.
    pub generation: u32,
    /// The host's answer that led to the legacy world; PVMSI_STATUS_SUCCESS in any other world,
    /// or when no client was given.
    pub refusal: pvmsi_status,
    /// How many vectors may be used; 0 while MSI-X is disabled.
    pub granted: u16,
}

/// Prepares the interrupts of a function, which nobody has enabled yet. Nothing is accessed. What
/// stood in the storage before is forgotten.
///
/// Returns PVMSI_STATUS_NO_MSIX when the capability's table size is not 1 to 2048,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// Each is not NULL unless stated, else PVMSI_STATUS_POINTER, and what `function` and
/// `capability` point to is copied:
/// - `msix`: the storage.
/// - `function`: the function, and all functions in it.
/// - `capability`: what pvmsi_msix_find has found.
/// - `table`: where the kernel has mapped the function's vector table, `table_size` times 16
///   bytes, as device memory (uncached), on every processor, as long as `msix` is used. Nothing
///   else writes there.
/// - `pending`: where it has mapped the pending bit array, 8 bytes for every 64 entries or part
///   of them, in the same way; may be NULL: only pvmsi_msix_is_pending looks at it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_init(
    msix: *mut pvmsi_msix,
    function: *const pvmsi_function,
    capability: *const pvmsi_msix_capability,
    table: *mut c_void,
    pending: *mut c_void,
) -> pvmsi_status {
    let init = || {
        // SAFETY: condition 1 of the crate.
        let msix = unsafe { output(msix.cast::<State>()) }?;
        // SAFETY: as above.
        let function = KernelFunction::new(unsafe { shared(function) }?)?;
        // SAFETY: as above.
        let capability = unsafe { shared(capability) }?;
        if !(1..=TABLE_SIZE_MAX).contains(&capability.table_size) {
            return Err(pvmsi_status::NoMsix);
        }
        let table = registers(table).ok_or(pvmsi_status::Pointer)?;
        let pending = match NonNull::new(pending) {
            Some(pending) => Some(registers(pending.as_ptr()).ok_or(pvmsi_status::Pointer)?),
            None => None,
        };
        msix.write(State {
            ready: READY,
            // SAFETY: the caller's conditions are the same.
            msix: unsafe { MsiX::new(function, capability.into(), table, pending) },
        });
        Ok(())
    };
    pvmsi_status::of(init())
}

/// Switches MSI-X on with `count` vectors, all masked and without a message.
///
/// pvmsi_msix_set and pvmsi_msix_unmask each vector next. Memory decoding must be on, and the
/// function in D0. A driver that cannot live with fewer vectors calls pvmsi_msix_disable.
///
/// Without a client, or where the host does not support the service, does not know the function,
/// denies it or has no vector left, the table is programmed in the standard way;
/// pvmsi_msix_get_state tells.
///
/// Returns PVMSI_STATUS_BUSY, PVMSI_STATUS_HARDWARE or PVMSI_STATUS_PARAMETER (the call buffer is
/// too short) when the call fails otherwise: MSI-X is off again, and enabling without a client
/// uses the standard table. PVMSI_STATUS_ENABLED, PVMSI_STATUS_COUNT,
/// PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `client`: initialised and negotiated; NULL where the kernel has none.
/// - `granted`: where the number of vectors shall be written that there are, `count` or fewer;
///   not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_enable(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    count: u16,
    granted: *mut u16,
) -> pvmsi_status {
    // SAFETY: the caller's conditions.
    unsafe { enable(msix, client, &[], count, granted) }
}

/// As pvmsi_msix_enable, with messages for the vectors that already have one: no pvmsi_msix_set
/// is needed for those. All vectors start masked.
///
/// Returns the same as pvmsi_msix_enable.
///
/// # Safety
/// - `msix`, `client`, `granted`: as in pvmsi_msix_enable.
/// - `messages`: an array of `count` messages, address 0 for a vector without one; not NULL, else
///   PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_enable_with(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    messages: *const pvmsi_message,
    count: u16,
    granted: *mut u16,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    let messages = match unsafe { array(messages, count) } {
        Ok(messages) => messages,
        Err(status) => return status,
    };
    // SAFETY: the caller's conditions.
    unsafe { enable(msix, client, messages, count, granted) }
}

/// Says where the interrupt of `vector` shall go: at first, and at each change of its affinity.
///
/// Paravirtual: one call, never busy, no access to the table. Legacy: the entry is masked,
/// written and unmasked again if it was.
///
/// Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_CLIENT_MISSING, what the host answers (the old
/// message stays), PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_CLIENT_IN_USE,
/// PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `client`: initialised and negotiated; NULL where the kernel has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_set(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    vector: u16,
    address: u64,
    data: u32,
) -> pvmsi_status {
    let update = pvmsi_vector_update { address, data, vector };
    // SAFETY: the caller's conditions.
    unsafe { set_many(msix, client, slice::from_ref(&update), true) }
}

/// As pvmsi_msix_set for several vectors; paravirtual: all in one call.
///
/// Returns the same as pvmsi_msix_set. After an error no vector has changed (paravirtual), or
/// those before the wrong one have (legacy).
///
/// # Safety
/// - `msix`, `client`: as in pvmsi_msix_set.
/// - `updates`: an array of `count` elements; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_set_many(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    updates: *const pvmsi_vector_update,
    count: u16,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    let updates = match unsafe { array(updates, count) } {
        Ok(updates) => updates,
        Err(status) => return status,
    };
    // SAFETY: the caller's conditions.
    unsafe { set_many(msix, client, updates, false) }
}

/// Masks a vector: when this returns, the function starts no interrupt of it any more. One store
/// to the table and one load that makes sure it has arrived.
///
/// A host whose kernel moves interrupts can clear the mask bit of a direct table (H-517): an
/// interrupt that comes all the same is no fault of the function's. Mask it again.
///
/// Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
///
/// # Safety
/// `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_mask(msix: *mut pvmsi_msix, vector: u16) -> pvmsi_status {
    // SAFETY: the caller's condition.
    pvmsi_status::of(
        unsafe { state(msix) }.and_then(|state| Ok(state.msix.mask(VectorIndex(vector))?)),
    )
}

/// Unmasks a vector. What was pending is delivered: by the function itself, or by the kernel's
/// `deliver` when the event came before the table was switched. One store to the table.
///
/// Returns PVMSI_STATUS_VECTOR, PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
///
/// # Safety
/// `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_unmask(msix: *mut pvmsi_msix, vector: u16) -> pvmsi_status {
    // SAFETY: the caller's condition.
    pvmsi_status::of(
        unsafe { state(msix) }.and_then(|state| Ok(state.msix.unmask(VectorIndex(vector))?)),
    )
}

/// Switches MSI-X off: masks the vectors and clears MSI-X Enable, which also releases the vectors
/// on the host. Events that were held are dropped. No call is made; nothing happens when it is
/// off already.
///
/// Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
///
/// # Safety
/// `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_disable(msix: *mut pvmsi_msix) -> pvmsi_status {
    // SAFETY: the caller's condition.
    pvmsi_status::of(unsafe { state(msix) }.map(|state| state.msix.disable()))
}

/// Makes the interrupts work again after a reset of the function, a power state that loses its
/// state, or a resume. Nothing happens while MSI-X is disabled.
///
/// The kernel has restored memory decoding, BARs and power state before. Vectors are masked as
/// pvmsi_msix_mask and pvmsi_msix_unmask left them.
///
/// Paravirtual: one call; the messages are not used, unless the host has given the vectors up (a
/// host without the service, after a migration): then the function continues in the legacy world.
/// Legacy: the messages are written again; a vector without one stays masked until set and
/// unmask.
///
/// Returns PVMSI_STATUS_CLIENT_MISSING (nothing was done), what the host answers (Function Mask
/// is set then, so no interrupt is delivered: repeat, or disable), PVMSI_STATUS_NOT_INITIALISED,
/// PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `client`: initialised and negotiated; NULL where the kernel has none.
/// - `messages`: an array of `count` messages, from vector 0 on, address 0 for a vector without
///   one; NULL only with `count` 0, else PVMSI_STATUS_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_after_reset(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    messages: *const pvmsi_message,
    count: u16,
) -> pvmsi_status {
    // SAFETY: condition 1 of the crate.
    let messages = match unsafe { array(messages, count) } {
        Ok(messages) => messages,
        Err(status) => return status,
    };
    let act = |msix: &MsiX<_>, client: Option<&mut KernelClient>| {
        msix.after_reset(client, |vector| message(messages, vector))
    };
    // SAFETY: the caller's conditions.
    unsafe { run(msix, client, act) }
}

/// Asks the host how the table stands, for pvmsi_msix_get_state: the host may take the table back
/// and return it at any time. Outside the paravirtual world nothing happens.
///
/// Returns PVMSI_STATUS_CLIENT_MISSING, what the host answers, PVMSI_STATUS_NOT_INITIALISED,
/// PVMSI_STATUS_CLIENT_IN_USE, PVMSI_STATUS_POINTER.
///
/// # Safety
/// - `msix`: initialised; not NULL, else PVMSI_STATUS_POINTER.
/// - `client`: initialised and negotiated; NULL where the kernel has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_refresh(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
) -> pvmsi_status {
    // SAFETY: the caller's conditions.
    unsafe { run(msix, client, |msix, client| msix.refresh(client)) }
}

/// World, mode, reasons, grant: what is known without a call. Any time, anywhere.
///
/// Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
///
/// # Safety
/// Each is not NULL, else PVMSI_STATUS_POINTER:
/// - `msix`: initialised.
/// - `state`: where it shall be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_get_state(
    msix: *const pvmsi_msix,
    state: *mut pvmsi_msix_state,
) -> pvmsi_status {
    let get = || {
        // SAFETY: condition 1 of the crate.
        let output = unsafe { output(state) }?;
        // SAFETY: the caller's condition.
        let msix = &unsafe { self::state(msix) }?.msix;
        output.write(pvmsi_msix_state {
            world: msix.world().into(),
            mode: msix.mode().into(),
            reasons: msix.reasons().bits(),
            generation: msix.generation().0,
            refusal: msix.refusal().map_or(pvmsi_status::Success, Into::into),
            granted: msix.granted(),
        });
        Ok(())
    };
    pvmsi_status::of(get())
}

/// Whether an event of `vector` waits for the vector to be unmasked: one that was held at the
/// switch, or one in the pending bit array where the kernel has mapped it.
///
/// Returns PVMSI_STATUS_NOT_INITIALISED, PVMSI_STATUS_POINTER.
///
/// # Safety
/// Each is not NULL, else PVMSI_STATUS_POINTER:
/// - `msix`: initialised.
/// - `pending`: where the answer shall be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_is_pending(
    msix: *const pvmsi_msix,
    vector: u16,
    pending: *mut bool,
) -> pvmsi_status {
    let get = || {
        // SAFETY: condition 1 of the crate.
        let pending = unsafe { output(pending) }?;
        // SAFETY: the caller's condition.
        pending.write(unsafe { state(msix) }?.msix.is_pending(VectorIndex(vector)));
        Ok(())
    };
    pvmsi_status::of(get())
}

impl From<World> for pvmsi_world {
    fn from(world: World) -> Self {
        match world {
            World::Disabled => Self::Disabled,
            World::Legacy => Self::Legacy,
            World::Paravirtual => Self::Paravirtual,
        }
    }
}

/// What stands in a `pvmsi_msix`.
#[repr(C)]
struct State {
    /// The first field, so that it can be read before the rest is known to be there.
    ready: u64,
    msix: MsiX<KernelFunction>,
}

/// Tells an initialised object from other memory.
const READY: u64 = u64::from_le_bytes(*b"pvmsi/mx");

/// Table Size has 11 bits, and counts from 1.
const TABLE_SIZE_MAX: u16 = 2048;

const _: () = assert!(size_of::<State>() <= size_of::<pvmsi_msix>());
const _: () = assert!(align_of::<State>() <= align_of::<pvmsi_msix>());

/// # Safety
/// Conditions 1 and 2 of the crate.
unsafe fn state<'a>(msix: *const pvmsi_msix) -> Result<&'a State, pvmsi_status> {
    // SAFETY: condition 1; any content is a number.
    if *unsafe { shared(msix.cast::<u64>()) }? != READY {
        return Err(pvmsi_status::NotInitialised);
    }
    // SAFETY: conditions 1 and 2: `pvmsi_msix_init` has written a state.
    unsafe { shared(msix.cast::<State>()) }
}

/// Does something that may call the host, with or without a client.
///
/// # Safety
/// Conditions 1 and 2 of the crate; `client` may be null.
unsafe fn run(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    act: impl FnOnce(&MsiX<KernelFunction>, Option<&mut KernelClient>) -> Result<(), MsiXError>,
) -> pvmsi_status {
    // SAFETY: the caller's conditions.
    match unsafe { begin(msix, client) } {
        Ok((msix, mut lease)) => end(act(msix, lease.as_mut().map(Lease::client)), lease),
        Err(status) => status,
    }
}

/// What is the same before whatever [`run`] does.
///
/// # Safety
/// As [`run`].
unsafe fn begin<'a>(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
) -> Result<(&'a MsiX<KernelFunction>, Option<Lease<'a>>), pvmsi_status> {
    // SAFETY: the caller's conditions.
    let msix = &unsafe { state(msix) }?.msix;
    if client.is_null() {
        return Ok((msix, None));
    }
    // SAFETY: the caller's conditions.
    Ok((msix, Some(unsafe { Lease::new(client) }?)))
}

/// What is the same behind it.
fn end(result: Result<(), MsiXError>, lease: Option<Lease<'_>>) -> pvmsi_status {
    if let Some(mut lease) = lease {
        lease.note(match &result {
            Err(MsiXError::Call(error)) => Some(error),
            _ => None,
        });
    }
    pvmsi_status::of(result.map_err(Into::into))
}

/// Enables, with messages for the first vectors.
///
/// # Safety
/// As [`run`], and condition 1 of the crate for `granted`.
unsafe fn enable(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    messages: &[pvmsi_message],
    count: u16,
    granted: *mut u16,
) -> pvmsi_status {
    // SAFETY: the caller's condition.
    let granted = match unsafe { output(granted) } {
        Ok(granted) => granted,
        Err(status) => return status,
    };
    let act = |msix: &MsiX<_>, client: Option<&mut KernelClient>| {
        let listed = u16::try_from(messages.len()).unwrap_or(u16::MAX);
        let message = |vector| message(messages, vector);
        granted.write(msix.enable_first_with(client, count, listed, message)?);
        Ok(())
    };
    // SAFETY: the caller's conditions.
    unsafe { run(msix, client, act) }
}

/// Gives vectors messages; `checked`: a vector that was not granted is found without a call.
///
/// # Safety
/// As [`run`].
unsafe fn set_many(
    msix: *mut pvmsi_msix,
    client: *mut pvmsi_client,
    updates: &[pvmsi_vector_update],
    checked: bool,
) -> pvmsi_status {
    let act = |msix: &MsiX<_>, client: Option<&mut KernelClient>| {
        let granted = msix.granted();
        if let Some(update) = updates.first().filter(|update| checked && update.vector >= granted) {
            return Err(MsiXError::Vector { vector: VectorIndex(update.vector), granted });
        }
        msix.set_many(client, updates.iter().map(VectorUpdate::from))
    };
    // SAFETY: the caller's conditions.
    unsafe { run(msix, client, act) }
}

fn message(messages: &[pvmsi_message], vector: VectorIndex) -> Option<GuestMessage> {
    let pvmsi_message { address, data } = *messages.get(vector.as_usize())?;
    (address != 0).then_some(GuestMessage { address, data })
}

fn registers(pointer: *mut c_void) -> Option<NonNull<u32>> {
    NonNull::new(pointer.cast::<u32>()).filter(|registers| registers.is_aligned())
}
