//! The function's first BAR, as a processor of the guest reaches it: directly where the guest's memory map shows it, by the service where not.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use pvmsi_hypervisor::{BarIndex, BarMapping, FunctionHandle, Layout, View, Window};
use pvmsi_protocol::{TableMode, VectorIndex};
use vm_memory::VolatileMemory;

const BAR: BarIndex = BarIndex(0);
const MASK_BIT: u32 = 1;
/// Vector control, from an entry's start.
const CONTROL: u64 = 12;

/// The guest's memory map, as the service leaves it.
#[derive(Clone)]
pub(crate) struct Map(Arc<Mutex<View>>);

impl Map {
    /// Shows nothing.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(View::NOTHING)))
    }

    fn view(&self) -> View {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window for Map {
    fn show(&mut self, view: &View) -> io::Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = *view;
        Ok(())
    }

    fn table_can_be_direct(&self) -> bool {
        true
    }
}

/// The BAR.
pub(crate) struct Bar {
    map: Map,
    mappings: Vec<BarMapping>,
    /// Pages that come and go with the table.
    switched: Vec<Range<u64>>,
    layout: Layout,
    function: FunctionHandle,
}

impl Bar {
    /// Of a function whose table is in it.
    ///
    /// # Errors
    /// Where the table is elsewhere.
    pub(crate) fn new(
        map: Map,
        mappings: Vec<BarMapping>,
        layout: Layout,
        function: FunctionHandle,
    ) -> Result<Self> {
        ensure!(layout.table().0 == BAR, "the vector table is not in the first BAR");
        let switched = layout.switched_pages(BAR);
        Ok(Self { map, mappings, switched, layout, function })
    }

    /// Whether the table is the guest's.
    pub(crate) fn is_direct(&self) -> bool {
        self.map.view().table == TableMode::Direct
    }

    /// Whether a vector's mask bit reads as set.
    ///
    /// # Errors
    /// Where nobody answers.
    pub(crate) fn is_masked(&self, vector: u16) -> Result<bool> {
        Ok(self.read(self.control(vector)?)? & MASK_BIT != 0)
    }

    /// Writes a vector's mask bit, and waits until the function has seen it.
    ///
    /// # Errors
    /// Where nobody answers.
    pub(crate) fn set_masked(&self, vector: u16, masked: bool) -> Result<()> {
        let control = self.control(vector)?;
        self.write(control, u32::from(masked))?;
        self.read(control).map(drop)
    }

    /// Reads a register.
    ///
    /// # Errors
    /// Where nobody answers.
    pub(crate) fn read(&self, offset: u64) -> Result<u32> {
        let Some(word) = self.shown(offset)? else {
            let mut bytes = [0; 4];
            self.function.bar_read(BAR, offset, &mut bytes)?;
            return Ok(u32::from_le_bytes(bytes));
        };
        let (memory, at) = word;
        Ok(u32::from_le(memory.memory.get_ref::<u32>(at)?.load()))
    }

    /// Writes a register.
    ///
    /// # Errors
    /// Where nobody answers.
    pub(crate) fn write(&self, offset: u64, value: u32) -> Result<()> {
        let Some((memory, at)) = self.shown(offset)? else {
            return Ok(self.function.bar_write(BAR, offset, &value.to_le_bytes())?);
        };
        memory.memory.get_ref::<u32>(at)?.store(value.to_le());
        Ok(())
    }

    fn control(&self, vector: u16) -> Result<u64> {
        let entry = self.layout.entry_offset(VectorIndex(vector)).context("no such vector")?;
        Ok(entry.saturating_add(CONTROL))
    }

    /// Where a register is in this process; `None` where an access is the service's.
    fn shown(&self, offset: u64) -> Result<Option<(&BarMapping, usize)>> {
        let view = self.map.view();
        ensure!(view.bars.first().is_some_and(Option::is_some), "the function does not answer");
        let switched = self.switched.iter().any(|pages| pages.contains(&offset));
        if switched && view.table == TableMode::Trapped {
            return Ok(None);
        }
        let found = self.mappings.iter().find_map(|mapping| {
            let at = usize::try_from(offset.checked_sub(mapping.offset)?).ok()?;
            (mapping.bar == BAR && at < mapping.memory.size()).then_some((mapping, at))
        });
        found.map(Some).context("the register cannot be mapped")
    }
}
