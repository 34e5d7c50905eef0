//! A PCI function with MSI-X in ordinary memory.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::arch::trace::{self, Access};
use crate::{FunctionId, MsiX, MsiXCapability, PciFunction, VectorIndex};

pub(super) const MSIX: u16 = 0x60;
pub(super) const ENABLE: u16 = 1 << 15;
pub(super) const FUNCTION_MASK: u16 = 1 << 14;

/// An access to the table: vector, word of its entry, value stored.
pub(super) type Store = (u16, usize, u32);

pub(super) struct Function {
    config: Mutex<[u8; 256]>,
    /// What was written to Message Control, only Enable and Function Mask.
    pub(super) controls: Mutex<Vec<u16>>,
    pub(super) delivered: Mutex<Vec<u16>>,
    table: Vec<AtomicU32>,
    pending: Vec<AtomicU32>,
}

impl Function {
    /// After a reset: all entries masked, capabilities PM, vendor specific and MSI-X.
    pub(super) fn new(vectors: u16) -> Self {
        let mut config = [0; 256];
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x01, 0x50]);
        config[0x50..0x52].copy_from_slice(&[0x09, 0x60]);
        config[0x60..0x62].copy_from_slice(&[0x11, 0x00]);
        config[0x62..0x64].copy_from_slice(&(vectors - 1).to_le_bytes());
        config[0x64..0x68].copy_from_slice(&0x0000_2003u32.to_le_bytes());
        config[0x68..0x6c].copy_from_slice(&0x0000_3004u32.to_le_bytes());
        let words = |count: usize| (0..count).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
        let function = Self {
            config: Mutex::new(config),
            controls: Mutex::default(),
            delivered: Mutex::default(),
            table: words(usize::from(vectors) * 4),
            pending: words(usize::from(vectors).div_ceil(64) * 2),
        };
        function.reset_table();
        function
    }

    /// What a reset does to the table.
    pub(super) fn reset_table(&self) {
        for (index, word) in self.table.iter().enumerate() {
            word.store(u32::from(index % 4 == 3), Ordering::SeqCst);
        }
    }

    pub(super) fn msix(&self) -> MsiX<&Self> {
        let table = NonNull::from(&self.table[..]).cast();
        let pending = NonNull::from(&self.pending[..]).cast();
        let capability = MsiXCapability::find(self).unwrap();
        // SAFETY: both are as long as the capability says and live as long as the borrow; tests
        // access them as atomics.
        unsafe { MsiX::new(self, capability, table, Some(pending)) }
    }

    pub(super) fn entry(&self, vector: u16) -> [u32; 4] {
        core::array::from_fn(|word| {
            self.table[usize::from(vector) * 4 + word].load(Ordering::SeqCst)
        })
    }

    pub(super) fn masked(&self, vector: u16) -> bool {
        self.entry(vector)[3] & 1 == 1
    }

    pub(super) fn poke(&self, vector: u16, word: usize, value: u32) {
        self.table[usize::from(vector) * 4 + word].store(value, Ordering::SeqCst);
    }

    pub(super) fn set_pending(&self, vector: u16) {
        self.pending[usize::from(vector / 32)].fetch_or(1 << (vector % 32), Ordering::SeqCst);
    }

    pub(super) fn poke_config(&self, offset: u16, value: u16) {
        self.config.lock().unwrap()[usize::from(offset)..][..2]
            .copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn control(&self) -> u16 {
        self.read_config_u16(MSIX + 2)
    }

    pub(super) fn take_controls(&self) -> Vec<u16> {
        core::mem::take(&mut self.controls.lock().unwrap())
    }

    pub(super) fn take_delivered(&self) -> Vec<u16> {
        core::mem::take(&mut self.delivered.lock().unwrap())
    }

    /// The stores of this thread to the table since the last call, in order.
    pub(super) fn take_stores(&self) -> Vec<Store> {
        let base = self.table.as_ptr() as usize;
        trace::take()
            .into_iter()
            .filter_map(|access| match access {
                Access::Read(_) => None,
                Access::Write(register, value) => {
                    let word = (register.as_ptr() as usize - base) / 4;
                    Some((u16::try_from(word / 4).unwrap(), word % 4, value))
                }
            })
            .collect()
    }
}

impl PciFunction for Function {
    fn id(&self) -> FunctionId {
        FunctionId::new(0, 0, 3, 0).unwrap()
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        assert_eq!(offset % 2, 0);
        let config = self.config.lock().unwrap();
        u16::from_le_bytes(config[usize::from(offset)..][..2].try_into().unwrap())
    }

    fn read_config_u32(&self, offset: u16) -> u32 {
        assert_eq!(offset % 4, 0);
        let config = self.config.lock().unwrap();
        u32::from_le_bytes(config[usize::from(offset)..][..4].try_into().unwrap())
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        assert_eq!(offset, MSIX + 2, "only Message Control is written");
        assert_eq!(value & !(ENABLE | FUNCTION_MASK), self.control() & !(ENABLE | FUNCTION_MASK));
        self.poke_config(offset, value);
        self.controls.lock().unwrap().push(value & (ENABLE | FUNCTION_MASK));
    }

    fn deliver(&self, vector: VectorIndex) {
        assert!(!self.masked(vector.0), "a masked vector never fires");
        self.delivered.lock().unwrap().push(vector.0);
    }
}
