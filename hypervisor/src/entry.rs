//! A function in the list of a service: its lock, and what a caller finds behind it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

use pvmsi_protocol::{FunctionId, Reasons, TableMode};
use thiserror::Error;

use crate::layout::BarIndex;
use crate::switch::{Decoded, Operation, Switch};
use crate::sync::{Mutex, MutexGuard, RwLock, this_thread};

/// A function did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FunctionError {
    /// It has been removed, or its service is gone.
    #[error("function {0} has been removed")]
    Removed(FunctionId),
    /// A [`Routes`](crate::Routes), [`Window`](crate::Window) or [`PciFunction`](crate::PciFunction) has asked for the function that it is called for, which would wait for itself.
    #[error("function {0} was asked for by a seam that is called for it")]
    Reentered(FunctionId),
}

/// A function has another table mode, or other reasons for not being direct. See [`Service::on_change`](crate::Service::on_change).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeChange {
    /// The function.
    pub function: FunctionId,
    /// Who answers the table now.
    pub mode: TableMode,
    /// Why it is not direct.
    pub reasons: Reasons,
    /// Counts the function's changes, from 1: of two that overtake each other the one with the higher number is true.
    pub number: u64,
}

/// Who is told of changes.
pub(crate) type Observer = Arc<dyn Fn(ModeChange) + Send + Sync>;

/// A function: where it is decoded, to be looked up on each exit, and its switch.
pub(crate) struct Entry {
    pub(crate) id: FunctionId,
    pub(crate) decoded: Decoded,
    observer: Option<Observer>,
    /// Changes so far; written with the lock held.
    changes: AtomicU64,
    /// None before it is built, and when it has been taken out of the service.
    switch: Mutex<Option<Switch>>,
    /// The thread that has the lock, 0 for none.
    holder: AtomicUsize,
}

impl Entry {
    /// Without a switch: the address is reserved.
    fn new(id: FunctionId, observer: Option<Observer>) -> Self {
        Self {
            id,
            decoded: Decoded::default(),
            observer,
            changes: AtomicU64::new(0),
            switch: Mutex::new(None),
            holder: AtomicUsize::new(0),
        }
    }

    /// Waits for whoever has the function.
    fn lock(&self) -> Result<Locked<'_>, FunctionError> {
        let me = this_thread();
        // A thread finds its own number only where it has written it, and not taken it away.
        if self.holder.load(Ordering::Relaxed) == me {
            return Err(FunctionError::Reentered(self.id));
        }
        // A panic in another call cannot be undone, but the state is still the best there is.
        let slot = self.switch.lock().unwrap_or_else(PoisonError::into_inner);
        self.holder.store(me, Ordering::Relaxed);
        Ok(Locked { holder: &self.holder, slot })
    }

    /// Gives the function's switch to one caller at a time. When the lock is free again, the observer is told what has become of the mode.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Switch) -> T) -> Result<T, FunctionError> {
        let mut locked = self.lock()?;
        let switch = locked.slot.as_mut().ok_or(FunctionError::Removed(self.id))?;
        let Some(observer) = &self.observer else { return Ok(act(switch)) };
        let stands = |switch: &Switch| (switch.mode(), switch.reasons());
        let before = stands(switch);
        let result = act(switch);
        let (mode, reasons) = stands(switch);
        if (mode, reasons) != before {
            let number = self.changes.fetch_add(1, Ordering::Relaxed).saturating_add(1);
            drop(locked);
            observer(ModeChange { function: self.id, mode, reasons, number });
        }
        Ok(result)
    }

    /// Changes the function.
    pub(crate) fn operate<T>(
        &self,
        act: impl FnOnce(Operation<'_>) -> T,
    ) -> Result<T, FunctionError> {
        self.with(|switch| act(Operation::begin(switch, &self.decoded)))
    }
}

/// A function's lock, held.
struct Locked<'a> {
    holder: &'a AtomicUsize,
    slot: MutexGuard<'a, Option<Switch>>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // The lock goes after this.
        self.holder.store(0, Ordering::Relaxed);
    }
}

/// The functions of a service.
#[derive(Default)]
pub(crate) struct Functions(RwLock<BTreeMap<FunctionId, Arc<Entry>>>);

impl Functions {
    pub(crate) fn get(&self, id: FunctionId) -> Result<Arc<Entry>, FunctionError> {
        let functions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(&id).map(Arc::clone).ok_or(FunctionError::Removed(id))
    }

    /// In the order of their addresses.
    pub(crate) fn all(&self) -> Vec<Arc<Entry>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }

    /// What a guest physical address hits.
    pub(crate) fn find(&self, address: u64) -> Option<(Arc<Entry>, BarIndex, u64)> {
        let functions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        functions.values().find_map(|entry| {
            let (bar, offset) = entry.decoded.find(address)?;
            Some((Arc::clone(entry), bar, offset))
        })
    }

    /// Adds what `build` makes of `parts`. The list is free meanwhile: whoever builds may ask for other functions.
    ///
    /// # Errors
    /// The address is taken; `parts` come back.
    pub(crate) fn add<T>(
        &self,
        id: FunctionId,
        observer: Option<Observer>,
        parts: T,
        build: impl FnOnce(T) -> Switch,
    ) -> Result<Arc<Entry>, T> {
        let entry = Arc::new(Entry::new(id, observer));
        // Nobody else has it: this does not wait.
        let Ok(mut locked) = entry.lock() else { return Err(parts) };
        {
            let mut functions = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if functions.contains_key(&id) {
                return Err(parts);
            }
            functions.insert(id, Arc::clone(&entry));
        }
        let reserved = Listed { functions: self, id };
        let switch = locked.slot.insert(build(parts));
        entry.decoded.publish(switch);
        std::mem::forget(reserved);
        drop(locked);
        Ok(entry)
    }

    /// Takes a function out: its pages, its routes, its interrupts, its open files.
    pub(crate) fn remove(&self, entry: &Entry) -> Result<(), FunctionError> {
        let mut locked = entry.lock()?;
        let switch = locked.slot.take().ok_or(FunctionError::Removed(entry.id))?;
        // Last: nobody finds that the function is gone while its pages are mapped.
        let _listed = Listed { functions: self, id: entry.id };
        drop(switch);
        entry.decoded.withdraw();
        Ok(())
    }
}

/// An address of the list, which becomes free when this goes, also in a panic.
struct Listed<'a> {
    functions: &'a Functions,
    id: FunctionId,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.functions.0.write().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
