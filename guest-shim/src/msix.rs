//! MSI-X for a driver that does not care whether the host offers the service.
//!
//! [`MsiX::enable`] asks the host once. From its answer on the function is in
//! one of two worlds:
//!
//! | | paravirtual | legacy |
//! |---|---|---|
//! | who writes address and data into the table | the host | this type |
//! | `set` | one call, the table is untouched | entry masked, written, mask bit put back |
//! | `mask`, `unmask` | one store to vector control | the same |
//! | after a reset | one call puts the messages back | the caller gives them again |
//!
//! # Concurrency
//! All state is in atomics, and no method waits for another processor.
//!
//! - `mask` and `unmask` may run anywhere at any time, interrupt handlers
//!   included. Their effect is one store: the last store to an entry decides.
//! - `enable`, `disable` and `after_reset` change all vectors: the driver makes one such
//!   call at a time, while no other method runs. `refresh` and the observers may run any time.
//! - `set` of a vector in the legacy world must not run beside `mask`, `unmask` or `set` of the *same*
//!   vector, as with every MSI-X table: a kernel holds the interrupt's lock, and keeps
//!   interrupts off. In the paravirtual world `set` does not touch the table, and the host orders calls.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};

use pvmsi_protocol::{
    CallError, Generation, GuestMessage, Kind, Reasons, Status, TableMode, VectorIndex,
    VectorSetup, VectorUpdate,
};

use crate::capability::{
    MESSAGE_CONTROL, MESSAGE_CONTROL_ENABLE, MESSAGE_CONTROL_FUNCTION_MASK, MsiXCapability,
    PciFunction,
};
use crate::table::{MASK, VectorTable};
use crate::vector_bits::VectorBits;
use crate::{Client, Delay, Doorbell, Grant, MsiXError};

/// How the interrupts of a function are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// MSI-X is not enabled.
    Disabled,
    /// The standard way: the guest writes messages into the table, the service is not involved.
    Legacy,
    /// By calls: the host owns the table's messages.
    Paravirtual,
}

/// The MSI-X interrupts of one function. See the [crate's documentation](crate) for an example.
///
/// Methods that may have to call the host take `Option<&mut Client>`: `None` where the kernel has
/// no client. Any client will do, it need not be the one that `enable` was given.
#[derive(Debug)]
pub struct MsiX<F> {
    function: F,
    capability: MsiXCapability,
    table: VectorTable,
    /// Vectors below this number may be used; 0 while disabled.
    granted: AtomicU16,
    world: AtomicU8,
    direct: AtomicBool,
    reasons: AtomicU32,
    generation: AtomicU32,
    /// The [`Status`] of the error that led to the legacy world; 0 without one.
    refusal: AtomicU32,
    /// The vectors that are known to have nothing in vector control but the mask bit. Stores must preserve what others have.
    plain: VectorBits,
    /// The mask bits as `mask` and `unmask` left them, for `set` and after a reset.
    masked: VectorBits,
    /// Events from before the switch that wait for their vector to be unmasked.
    held: VectorBits,
}

impl<F: PciFunction> MsiX<F> {
    /// The interrupts of `function`, which nobody has enabled yet. Nothing is accessed.
    ///
    /// `table` is where the kernel has mapped `capability.table`, `pending` (optional, only for
    /// [`is_pending`](Self::is_pending)) where it has mapped `capability.pba`.
    ///
    /// # Safety
    /// 1. `table` is aligned to 4 bytes and mapped as device memory (uncached) for `capability.table_size` × 16 bytes, on every processor, for as long as this value exists.
    /// 2. `pending`, if given, is so for 8 bytes for every 64 entries or part of them.
    /// 3. They are this function's table and pending bit array, and nothing else in the guest writes there.
    pub const unsafe fn new(
        function: F,
        capability: MsiXCapability,
        table: NonNull<u32>,
        pending: Option<NonNull<u32>>,
    ) -> Self {
        Self {
            function,
            // SAFETY: the caller's conditions.
            table: unsafe { VectorTable::new(table, pending, capability.table_size) },
            capability,
            granted: AtomicU16::new(0),
            world: AtomicU8::new(World::Disabled as u8),
            direct: AtomicBool::new(false),
            reasons: AtomicU32::new(Reasons::NOT_ASSIGNED.bits()),
            generation: AtomicU32::new(0),
            refusal: AtomicU32::new(Status::SUCCESS.0),
            plain: const { VectorBits::new() },
            masked: const { VectorBits::new() },
            held: const { VectorBits::new() },
        }
    }

    /// Switches MSI-X on with `count` vectors, all masked and without a message. Returns how many
    /// there are: fewer than `count` when the host grants fewer.
    ///
    /// [`set`](Self::set) and [`unmask`](Self::unmask) each vector next. Memory decoding must be on, and the
    /// function must be in D0. A driver that cannot live with a short grant calls
    /// [`disable`](Self::disable).
    ///
    /// Without a client, or where the host does not support the service, does not know the
    /// function, denies it or has no vector left, the table is programmed in the standard way;
    /// [`refusal`](Self::refusal) tells.
    ///
    /// # Errors
    /// [`MsiXError::Call`] when the call fails otherwise (busy beyond the client's bounds,
    /// hardware error, call buffer too short): MSI-X is off again. `enable` without a client then uses
    /// the standard table. [`MsiXError::Enabled`], [`MsiXError::Count`].
    pub fn enable<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        count: u16,
    ) -> Result<u16, MsiXError> {
        self.enable_first_with(client, count, 0, |_| None)
    }

    /// As [`enable`](Self::enable), with messages for the vectors that already have one: no
    /// [`set`](Self::set) is needed for those. All vectors start masked.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn enable_with<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        count: u16,
        messages: impl Fn(VectorIndex) -> Option<GuestMessage>,
    ) -> Result<u16, MsiXError> {
        self.enable_first_with(client, count, count, messages)
    }

    /// As [`enable_with`](Self::enable_with), where only the first `listed` vectors can have a
    /// message: nothing is said of the others, which makes the call shorter.
    ///
    /// # Errors
    /// As [`enable`](Self::enable).
    pub fn enable_first_with<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        count: u16,
        listed: u16,
        messages: impl Fn(VectorIndex) -> Option<GuestMessage>,
    ) -> Result<u16, MsiXError> {
        if self.granted() != 0 {
            return Err(MsiXError::Enabled);
        }
        let table_size = self.table.size();
        if count == 0 || count > table_size {
            return Err(MsiXError::Count { requested: count, table_size });
        }
        self.prepare();
        let listed = listed.min(count);
        let answer = client.map(|client| self.configure(client, count, listed, &messages));
        let granted = match answer.transpose() {
            Ok(Some(granted)) => {
                self.enter_paravirtual(granted);
                granted.granted
            }
            Err(error) if !is_refusal(&error) => {
                self.held.fill(false);
                self.write_control(0);
                return Err(error.into());
            }
            refused => self.start_legacy(refused.err(), count, listed, messages),
        };
        self.granted.store(granted, Ordering::SeqCst);
        self.write_control(MESSAGE_CONTROL_ENABLE);
        Ok(granted)
    }

    /// Says where the interrupt of `vector` shall go: at first, and at each change of its affinity.
    ///
    /// Paravirtual: one `update`, never busy, no access to the table. Legacy: the entry is masked,
    /// written and unmasked again if it was.
    ///
    /// # Errors
    /// [`MsiXError::Vector`], [`MsiXError::ClientMissing`], or [`MsiXError::Call`] with what the
    /// host answers: the old message stays.
    pub fn set<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        vector: VectorIndex,
        message: GuestMessage,
    ) -> Result<(), MsiXError> {
        self.check(vector)?;
        self.set_many(client, core::iter::once(VectorUpdate { vector, message }))
    }

    /// As [`set`](Self::set) for several vectors; paravirtual: all in one call. No vector may stand twice.
    ///
    /// # Errors
    /// As [`set`](Self::set). Paravirtual: no vector has changed. Legacy: the vectors before the
    /// wrong one have.
    pub fn set_many<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        vectors: impl ExactSizeIterator<Item = VectorUpdate>,
    ) -> Result<(), MsiXError> {
        if self.world() == World::Paravirtual {
            // The host checks the vectors against what it has assigned.
            let client = client.ok_or(MsiXError::ClientMissing)?;
            client.update(self.function.id(), vectors)?;
            return Ok(());
        }
        for VectorUpdate { vector, message } in vectors {
            self.check(vector)?;
            self.write_entry(vector, message);
        }
        Ok(())
    }

    /// Masks a vector: when this returns, the function starts no interrupt of it any more.
    ///
    /// One store to the table and one load that makes sure it has arrived; a load more where the
    /// vector was neither masked nor unmasked before.
    ///
    /// A host whose kernel moves interrupts can clear the mask bit of a direct table (H-517): an
    /// interrupt that comes all the same is no fault of the function's. Mask it again.
    ///
    /// # Errors
    /// [`MsiXError::Vector`].
    pub fn mask(&self, vector: VectorIndex) -> Result<(), MsiXError> {
        self.check(vector)?;
        self.masked.set(vector);
        self.write_mask(vector, true);
        self.flush(vector);
        Ok(())
    }

    /// Unmasks a vector. What was pending is delivered: by the function itself, or by
    /// [`PciFunction::deliver`] when the event came before the table was switched.
    ///
    /// One store to the table; a load more where the vector was neither masked nor unmasked before.
    ///
    /// # Errors
    /// [`MsiXError::Vector`].
    pub fn unmask(&self, vector: VectorIndex) -> Result<(), MsiXError> {
        self.check(vector)?;
        self.masked.clear(vector);
        self.write_mask(vector, false);
        if self.held.clear(vector) {
            self.function.deliver(vector);
        }
        Ok(())
    }

    /// Switches MSI-X off: masks the vectors and clears MSI-X Enable, which also releases the
    /// vectors on the host. Events that were held are dropped. No call is made; nothing happens when it is off already.
    pub fn disable(&self) {
        let granted = self.granted.swap(0, Ordering::SeqCst);
        if granted == 0 {
            return;
        }
        self.write_control(MESSAGE_CONTROL_ENABLE | MESSAGE_CONTROL_FUNCTION_MASK);
        for vector in (0..granted).map(VectorIndex).filter(|vector| !self.masked.get(*vector)) {
            self.write_mask(vector, true);
        }
        self.write_control(0);
        self.held.fill(false);
        self.set_world(World::Disabled);
    }

    /// Makes the interrupts work again after a reset of the function, a power state that loses
    /// its state, or a resume. Nothing happens while MSI-X is disabled.
    ///
    /// The kernel has restored memory decoding, BARs and power state before. Vectors are masked
    /// as [`mask`](Self::mask) and [`unmask`](Self::unmask) left them.
    ///
    /// Paravirtual: one `restore`; `messages` is not used, unless the host has given the vectors
    /// up (a host without the service, after a migration): then the function continues in the
    /// legacy world. Legacy: `messages` gives each vector's message again; a vector without one
    /// stays masked until `set` and `unmask`.
    ///
    /// # Errors
    /// [`MsiXError::ClientMissing`] (nothing was done), or [`MsiXError::Call`] with what the host answers: Function
    /// Mask is set then, so no interrupt is delivered. Repeat, or [`disable`](Self::disable).
    pub fn after_reset<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
        messages: impl FnMut(VectorIndex) -> Option<GuestMessage>,
    ) -> Result<(), MsiXError> {
        match self.world() {
            World::Disabled => return Ok(()),
            World::Legacy => self.rewrite_table(messages),
            World::Paravirtual => {
                let client = client.ok_or(MsiXError::ClientMissing)?;
                self.write_control(MESSAGE_CONTROL_ENABLE | MESSAGE_CONTROL_FUNCTION_MASK);
                match client.restore(self.function.id()) {
                    Ok(answer) if !answer.reasons.contains(Reasons::NOT_ASSIGNED) => {
                        self.note_mode(answer.mode, answer.reasons, answer.generation);
                        self.rewrite_masks();
                    }
                    Err(error) if !is_refusal(&error) => return Err(error.into()),
                    answer => {
                        // Clearing MSI-X Enable makes sure that both sides agree on the default.
                        self.write_control(0);
                        self.enter_legacy(answer.err());
                        self.rewrite_table(messages);
                    }
                }
            }
        }
        self.write_control(MESSAGE_CONTROL_ENABLE);
        Ok(())
    }

    /// Asks the host how the table stands, for [`mode`](Self::mode), [`reasons`](Self::reasons)
    /// and [`generation`](Self::generation): the host may take the table back and return it at any time. Outside the
    /// paravirtual world nothing happens.
    ///
    /// # Errors
    /// [`MsiXError::ClientMissing`], or [`MsiXError::Call`] with what the host answers.
    pub fn refresh<D: Doorbell, W: Delay>(
        &self,
        client: Option<&mut Client<'_, D, W>>,
    ) -> Result<(), MsiXError> {
        if self.world() == World::Paravirtual {
            let client = client.ok_or(MsiXError::ClientMissing)?;
            let answer = client.query_function(self.function.id())?;
            self.note_mode(answer.mode, answer.reasons, answer.generation);
        }
        Ok(())
    }

    /// Whether an event of `vector` waits for the vector to be unmasked: one that was held at the
    /// switch, or one in the pending bit array where the kernel has mapped it.
    pub fn is_pending(&self, vector: VectorIndex) -> bool {
        self.held.get(vector) || self.table.is_pending(vector) == Some(true)
    }

    /// Which world the function is in.
    pub fn world(&self) -> World {
        match self.world.load(Ordering::SeqCst) {
            world if world == World::Legacy as u8 => World::Legacy,
            world if world == World::Paravirtual as u8 => World::Paravirtual,
            _ => World::Disabled,
        }
    }

    /// Who answered the table when the host last said so; [`TableMode::Trapped`] outside the paravirtual world.
    pub fn mode(&self) -> TableMode {
        if self.direct.load(Ordering::SeqCst) { TableMode::Direct } else { TableMode::Trapped }
    }

    /// Why the table was not direct when the host last said so; [`Reasons::NOT_ASSIGNED`] outside the paravirtual world.
    pub fn reasons(&self) -> Reasons {
        Reasons::from_bits_retain(self.reasons.load(Ordering::SeqCst))
    }

    /// The number of the state that [`mode`](Self::mode) and [`reasons`](Self::reasons) describe; 0 outside the paravirtual world.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::SeqCst))
    }

    /// The host's answer that led to the legacy world; `None` in any other world, or when no client was given.
    pub fn refusal(&self) -> Option<CallError> {
        CallError::decode(Status(self.refusal.load(Ordering::SeqCst)), &[])
    }

    /// How many vectors may be used; 0 while MSI-X is disabled.
    pub fn granted(&self) -> u16 {
        self.granted.load(Ordering::SeqCst)
    }

    /// The capability that was given to [`new`](Self::new).
    pub const fn capability(&self) -> &MsiXCapability {
        &self.capability
    }

    /// The function.
    pub const fn function(&self) -> &F {
        &self.function
    }

    /// MSI-X Enable under Function Mask, all vectors masked, nothing held.
    fn prepare(&self) {
        if self.read_control() & MESSAGE_CONTROL_ENABLE != 0 {
            // Left by firmware or a previous kernel. Whatever it had assigned ends here.
            self.write_control(0);
        }
        self.held.fill(false);
        self.masked.fill(true);
        self.plain.fill(false);
        self.write_control(MESSAGE_CONTROL_ENABLE | MESSAGE_CONTROL_FUNCTION_MASK);
    }

    fn configure<D: Doorbell, W: Delay>(
        &self,
        client: &mut Client<'_, D, W>,
        count: u16,
        listed: u16,
        messages: &impl Fn(VectorIndex) -> Option<GuestMessage>,
    ) -> Result<Grant, CallError> {
        let setups = (0..listed)
            .map(|vector| VectorSetup { message: messages(VectorIndex(vector)), masked: true });
        client.configure(self.function.id(), Kind::MsiX, count, setups, |vector, answer| {
            if answer.pending {
                self.held.set(vector);
            }
        })
    }

    fn enter_paravirtual(&self, grant: Grant) {
        self.refusal.store(Status::SUCCESS.0, Ordering::SeqCst);
        self.note_mode(grant.mode, grant.reasons, grant.generation);
        self.set_world(World::Paravirtual);
    }

    /// Programs the table in the standard way, under Function Mask.
    fn start_legacy(
        &self,
        refusal: Option<CallError>,
        count: u16,
        listed: u16,
        messages: impl Fn(VectorIndex) -> Option<GuestMessage>,
    ) -> u16 {
        // All entries: those that are not used may hold somebody's old message.
        for vector in (0..self.table.size()).map(VectorIndex) {
            let control = self.look_at(vector);
            if control & MASK == 0 {
                self.table.write_vector_control(vector, control | MASK);
            }
        }
        for vector in (0..listed).map(VectorIndex) {
            if let Some(message) = messages(vector) {
                self.table.write_message(vector, message);
            }
        }
        self.enter_legacy(refusal);
        count
    }

    fn enter_legacy(&self, refusal: Option<CallError>) {
        let refusal = refusal.map_or(Status::SUCCESS, |error| error.status());
        self.refusal.store(refusal.0, Ordering::SeqCst);
        self.set_world(World::Legacy);
    }

    /// Writes messages and mask bits of all vectors, under Function Mask.
    fn rewrite_table(&self, mut messages: impl FnMut(VectorIndex) -> Option<GuestMessage>) {
        self.write_control(MESSAGE_CONTROL_ENABLE | MESSAGE_CONTROL_FUNCTION_MASK);
        for vector in (0..self.granted()).map(VectorIndex) {
            self.write_mask(vector, true);
            match messages(vector) {
                Some(message) => self.table.write_message(vector, message),
                // Unmasked without a message the function would write anywhere.
                None => {
                    self.masked.set(vector);
                }
            }
        }
        self.rewrite_masks();
    }

    fn rewrite_masks(&self) {
        for vector in (0..self.granted()).map(VectorIndex) {
            self.write_mask(vector, self.masked.get(vector));
        }
    }

    fn write_entry(&self, vector: VectorIndex, message: GuestMessage) {
        if self.masked.get(vector) {
            self.table.write_message(vector, message);
            return;
        }
        self.write_mask(vector, true);
        self.table.write_message(vector, message);
        self.write_mask(vector, false);
        self.flush(vector);
        if self.masked.get(vector) {
            // Masked meanwhile, which the store above has undone.
            self.write_mask(vector, true);
        }
    }

    /// Changes the mask bit and nothing else.
    fn write_mask(&self, vector: VectorIndex, masked: bool) {
        // Where all other bits are 0, which is the rule, one store does it from the second time on.
        let other_bits = if self.plain.get(vector) { 0 } else { self.look_at(vector) & !MASK };
        self.table.write_vector_control(vector, other_bits | if masked { MASK } else { 0 });
    }

    /// Reads vector control, and remembers whether there is anything else.
    #[inline(never)]
    fn look_at(&self, vector: VectorIndex) -> u32 {
        let control = self.table.vector_control(vector);
        if control & !MASK == 0 {
            self.plain.set(vector);
        }
        control
    }

    /// Makes sure that stores to the entry have arrived: a load pushes posted writes ahead of it.
    fn flush(&self, vector: VectorIndex) {
        self.table.vector_control(vector);
    }

    fn note_mode(&self, mode: TableMode, reasons: Reasons, generation: Generation) {
        self.direct.store(mode == TableMode::Direct, Ordering::SeqCst);
        self.reasons.store(reasons.bits(), Ordering::SeqCst);
        self.generation.store(generation.0, Ordering::SeqCst);
    }

    fn set_world(&self, world: World) {
        if world != World::Paravirtual {
            self.note_mode(TableMode::Trapped, Reasons::NOT_ASSIGNED, Generation(0));
        }
        self.world.store(world as u8, Ordering::SeqCst);
    }

    fn check(&self, vector: VectorIndex) -> Result<(), MsiXError> {
        let granted = self.granted();
        if vector.0 < granted { Ok(()) } else { Err(MsiXError::Vector { vector, granted }) }
    }

    fn read_control(&self) -> u16 {
        self.function.read_config_u16(self.control_offset())
    }

    /// Sets MSI-X Enable and Function Mask as in `bits`, in one write, and leaves the other bits.
    fn write_control(&self, bits: u16) {
        const OURS: u16 = MESSAGE_CONTROL_ENABLE | MESSAGE_CONTROL_FUNCTION_MASK;
        let others = self.read_control() & !OURS;
        self.function.write_config_u16(self.control_offset(), others | bits);
    }

    fn control_offset(&self) -> u16 {
        self.capability.offset.saturating_add(MESSAGE_CONTROL)
    }
}

/// Whether the standard table is the answer to this error. Other errors are the caller's or the host's failure.
fn is_refusal(error: &CallError) -> bool {
    matches!(
        error,
        CallError::NotSupported
            | CallError::NoSuchFunction
            | CallError::Denied
            | CallError::NoResources
    )
}
