//! The window on KVM: memory slots for the mappable pages of a function.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use pvmsi_protocol::TableMode;
use vm_memory::{GuestAddress, MmapRegion};

use crate::bar_pages::BarPages;
use crate::function::BarMapping;
use crate::layout::{BarIndex, Layout};
use crate::window::{View, Window};

/// The memory slots of a VM that PV-MSI may use. One for all functions; share it in an [`Arc`].
#[derive(Debug)]
pub struct MemorySlots {
    vm: Arc<VmFd>,
    free: Mutex<Vec<u32>>,
}

/// A memory slot in use. It stays until it is given to [`MemorySlots::unmap`].
#[derive(Debug)]
pub struct MemorySlot {
    number: u32,
    address: GuestAddress,
    /// Held, not used: the pages must stay mapped while KVM refers to them.
    _memory: Arc<MmapRegion>,
}

impl MemorySlots {
    /// Slots with the numbers `slots`, which nobody else uses.
    pub fn new(vm: Arc<VmFd>, slots: Range<u32>) -> Self {
        Self { vm, free: Mutex::new(slots.rev().collect()) }
    }

    /// Shows `length` bytes of `memory` from `offset` on at a guest physical address. All three are multiples of the host's page size.
    ///
    /// # Errors
    /// No slot is left, the range is not inside `memory`, or KVM refuses (`EEXIST`: something else is there).
    pub fn map(
        &self,
        address: GuestAddress,
        memory: &Arc<MmapRegion>,
        offset: u64,
        length: u64,
    ) -> io::Result<MemorySlot> {
        let size = u64::try_from(memory.size()).map_err(io::Error::other)?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(io::Error::other("the pages do not lie inside the mapping"));
        }
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.pop().ok_or_else(|| io::Error::other("no memory slot is left"))?;
        let start = u64::try_from(memory.as_ptr().addr()).map_err(io::Error::other)?;
        let region = kvm_userspace_memory_region {
            slot: number,
            flags: 0,
            guest_phys_addr: address.0,
            memory_size: length,
            userspace_addr: start.saturating_add(offset),
        };
        // SAFETY: the range lies inside `memory` (checked above), which stays mapped as long as
        // the slot exists: the returned slot holds a reference, and it is dropped only in
        // `unmap`, after KVM has let go of the range. A slot that is leaked keeps its reference.
        let result = unsafe { self.vm.set_user_memory_region(region) };
        if let Err(error) = result {
            free.push(number);
            return Err(io::Error::from_raw_os_error(error.errno()));
        }
        Ok(MemorySlot { number, address, _memory: Arc::clone(memory) })
    }

    /// Takes a slot out of the guest's memory map. On return no vCPU can reach its pages.
    ///
    /// # Errors
    /// KVM refuses; the slot, which still exists, comes back.
    pub fn unmap(&self, slot: MemorySlot) -> Result<(), (MemorySlot, io::Error)> {
        let region = kvm_userspace_memory_region {
            slot: slot.number,
            guest_phys_addr: slot.address.0,
            ..Default::default()
        };
        // SAFETY: a size of 0 deletes the slot; no memory is referred to.
        if let Err(error) = unsafe { self.vm.set_user_memory_region(region) } {
            return Err((slot, io::Error::from_raw_os_error(error.errno())));
        }
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot.number);
        Ok(())
    }
}

/// Shows a function's mappable pages to a guest: all but the pages of table and pending bit array always, these only in direct mode.
#[derive(Debug)]
pub struct KvmWindow {
    slots: Arc<MemorySlots>,
    pieces: Vec<Piece>,
    table_can_be_direct: bool,
    page_size: u64,
}

/// Adjacent pages that are shown or hidden together.
#[derive(Debug)]
struct Piece {
    bar: BarIndex,
    of_bar: BarPages,
    memory: Arc<MmapRegion>,
    /// Where the pages start in `memory`.
    offset: u64,
    shown: Option<MemorySlot>,
}

impl KvmWindow {
    /// A window for a function with this layout and these mappings. Nothing is shown yet.
    pub fn new(slots: Arc<MemorySlots>, layout: &Layout, mappings: Vec<BarMapping>) -> Self {
        let mut pieces = Vec::new();
        for BarMapping { bar, offset, memory } in mappings {
            let length = u64::try_from(memory.size()).unwrap_or(0);
            let mapped = offset..offset.saturating_add(length);
            pieces.extend(layout.pages(bar, mapped).into_iter().map(|of_bar| {
                let offset = of_bar.pages.start.saturating_sub(offset);
                Piece { bar, of_bar, memory: Arc::clone(&memory), offset, shown: None }
            }));
        }
        let table_can_be_direct =
            layout.can_be_direct(pieces.iter().map(|piece| (piece.bar, &piece.of_bar)));
        Self { slots, pieces, table_can_be_direct, page_size: layout.page_size() }
    }

    fn hide(slots: &MemorySlots, piece: &mut Piece) -> io::Result<()> {
        let Some(slot) = piece.shown.take() else { return Ok(()) };
        slots.unmap(slot).map_err(|(slot, error)| {
            piece.shown = Some(slot);
            error
        })
    }
}

impl Piece {
    /// Where the piece shall be seen.
    fn wanted(&self, view: &View) -> Option<GuestAddress> {
        let base = view.bars.get(self.bar.as_usize()).copied().flatten()?;
        if self.of_bar.switched && view.table == TableMode::Trapped {
            return None;
        }
        base.0.checked_add(self.of_bar.pages.start).map(GuestAddress)
    }
}

impl Window for KvmWindow {
    fn show(&mut self, view: &View) -> io::Result<()> {
        let mut hidden = Ok(());
        for piece in &mut self.pieces {
            let wanted = piece.wanted(view);
            if piece.shown.as_ref().is_some_and(|slot| Some(slot.address) != wanted) {
                hidden = hidden.and(Self::hide(&self.slots, piece));
            }
        }
        hidden?;
        let mut failed = Ok(());
        for piece in &mut self.pieces {
            let Some(address) = piece.wanted(view).filter(|_| piece.shown.is_none()) else {
                continue;
            };
            let pages = &piece.of_bar.pages;
            let length = pages.end.saturating_sub(pages.start);
            let mapped = if address.0.is_multiple_of(self.page_size) {
                self.slots.map(address, &piece.memory, piece.offset, length)
            } else {
                Err(io::Error::other(
                    "the BAR does not start at a multiple of the host's page size",
                ))
            };
            match mapped {
                Ok(slot) => piece.shown = Some(slot),
                // A page beside the table that cannot be shown is trapped, which works as well: that of
                // the pending bits, too.
                Err(_) if !piece.of_bar.table => {}
                Err(error) => {
                    failed = Err(error);
                    break;
                }
            }
        }
        if failed.is_err() {
            for piece in self.pieces.iter_mut().filter(|piece| piece.of_bar.switched) {
                // The others go on when one fails.
                let _ = Self::hide(&self.slots, piece);
            }
        }
        failed
    }

    fn table_can_be_direct(&self) -> bool {
        self.table_can_be_direct
    }

    fn shows_table(&self) -> bool {
        self.pieces.iter().any(|piece| piece.of_bar.switched && piece.shown.is_some())
    }
}

impl Drop for KvmWindow {
    fn drop(&mut self) {
        for piece in &mut self.pieces {
            if let Err(error) = Self::hide(&self.slots, piece) {
                tracing::error!(%error, "a memory slot could not be taken out");
                // The memory must outlive the slot.
                std::mem::forget(piece.shown.take());
            }
        }
    }
}
