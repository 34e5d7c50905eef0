//! The host's side: the *function* seam.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use pvmsi_hypervisor::{
    Bar, BarIndex, BarMapping, Isolation, Layout, PciFunction, SetUpError, TableError, VectorTable,
};
use pvmsi_protocol::{Delivery, TableMessage, VECTORS_MAX, VectorIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::config::MSIX_CONTROL;
use crate::config_space::{ConfigEffect, ConfigSpace};
use crate::device::SoftwareDevice;
use crate::registers::{BAR_BYTES, PENDING, TABLE};

const BAR: BarIndex = BarIndex(0);

/// How a software function shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftwareOptions {
    /// Entries of the vector table, 1 to 2048.
    pub vectors: u16,
    /// What the function says of its isolation. It always blocks foreign messages; `false` is for tests of the refusal.
    pub isolated: bool,
}

impl Default for SoftwareOptions {
    fn default() -> Self {
        Self { vectors: 64, isolated: true }
    }
}

/// The host's side of a software function.
#[derive(Debug)]
pub struct SoftwareFunction {
    layout: Layout,
    options: SoftwareOptions,
    config: ConfigSpace,
    device: Arc<SoftwareDevice>,
}

impl SoftwareFunction {
    /// A function after power-on. `page_size` is the host's, in bytes.
    ///
    /// # Errors
    /// When `vectors` is not 1 to 2048, the pages are larger than 64 KiB, or there is no memory for the BAR.
    pub fn new(options: SoftwareOptions, page_size: u64) -> io::Result<Self> {
        if options.vectors == 0 || options.vectors > VECTORS_MAX {
            return Err(io::Error::other("a software function has 1 to 2048 vectors"));
        }
        if page_size > 0x1_0000 {
            return Err(io::Error::other("a software function needs host pages of at most 64 KiB"));
        }
        let mut bars = [None; BarIndex::COUNT];
        if let Some(bar) = bars.get_mut(BAR.as_usize()) {
            *bar = Some(Bar { size: BAR_BYTES, is_64bit: false, prefetchable: false });
        }
        let layout = Layout::new(bars, options.vectors, (BAR, TABLE), (BAR, PENDING), page_size)
            .map_err(io::Error::other)?;
        let device = Arc::new(SoftwareDevice::new(options.vectors)?);
        Ok(Self { layout, options, config: ConfigSpace::new(options.vectors), device })
    }

    /// The device side.
    pub fn device(&self) -> Arc<SoftwareDevice> {
        Arc::clone(&self.device)
    }
}

impl PciFunction for SoftwareFunction {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn isolation(&self) -> Isolation {
        if self.options.isolated {
            Isolation::Isolated
        } else {
            Isolation::NotIsolated("the software function was created with isolated=no".into())
        }
    }

    fn mappings(&self) -> io::Result<Vec<BarMapping>> {
        Ok(vec![BarMapping { bar: BAR, offset: 0, memory: self.device.memory() }])
    }

    fn delivery(&self) -> Delivery {
        Delivery::Host
    }

    fn set_enabled(&mut self, enabled: bool) -> Result<(), SetUpError> {
        Ok(self.device.set_enabled(enabled)?)
    }

    fn set_up_interrupts(
        &mut self,
        first: VectorIndex,
        events: &[&EventFd],
    ) -> Result<(), SetUpError> {
        Ok(self.device.set_up_interrupts(first, events)?)
    }

    fn table(&mut self) -> &mut dyn VectorTable {
        self
    }

    fn settle(&mut self) {
        self.device.settle();
    }

    fn config_read(&mut self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
        let enable = (MSIX_CONTROL + 1).checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        if let Some(byte) = enable.and_then(|at| data.get_mut(at)) {
            *byte |= u8::from(self.device.enabled()) << 7;
        }
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        match self.config.write(offset, data) {
            ConfigEffect::None => {}
            ConfigEffect::FunctionLevelReset => self.device.reset(),
            ConfigEffect::SelfTest => self.device.self_test(),
        }
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if bar == BAR {
            self.device.read(offset, data);
        }
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        if bar == BAR {
            self.device.write(offset, data);
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        self.device.reset();
        Ok(())
    }
}

impl VectorTable for SoftwareFunction {
    fn message(&mut self, vector: VectorIndex) -> Result<TableMessage, TableError> {
        let message = self.device.table_message(vector)?;
        Ok(if self.device.gives_zeros() { TableMessage::default() } else { message })
    }

    fn messages(
        &mut self,
        vectors: Range<u16>,
        take: &mut dyn FnMut(VectorIndex, TableMessage),
    ) -> Result<(), TableError> {
        if self.device.gives_zeros() {
            vectors.for_each(|vector| take(VectorIndex(vector), TableMessage::default()));
            return Ok(());
        }
        Ok(self.device.table_messages(vectors, take)?)
    }

    fn set_message(
        &mut self,
        vector: VectorIndex,
        message: TableMessage,
    ) -> Result<(), TableError> {
        Ok(self.device.set_table_message(vector, message)?)
    }

    fn masked(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        Ok(self.device.masked(vector)? && !self.device.gives_zeros())
    }

    fn set_masked(&mut self, vector: VectorIndex, masked: bool) -> Result<(), TableError> {
        Ok(self.device.set_masked(vector, masked)?)
    }

    fn control(&mut self, vector: VectorIndex) -> Result<u32, TableError> {
        let control = self.device.control(vector)?;
        Ok(if self.device.gives_zeros() { 0 } else { control })
    }

    fn set_control(&mut self, vector: VectorIndex, control: u32) -> Result<(), TableError> {
        Ok(self.device.set_control(vector, control)?)
    }

    fn pending(&mut self, vector: VectorIndex) -> Result<bool, TableError> {
        Ok(self.device.pending(vector)?)
    }
}
