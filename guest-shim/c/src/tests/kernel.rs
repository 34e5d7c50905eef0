//! A function with MSI-X in ordinary memory, and a kernel's callbacks to it.

use core::ffi::c_void;
use std::cell::{Cell, RefCell};

use crate::tests::host::blank;
use crate::{
    pvmsi_function, pvmsi_function_id, pvmsi_msix, pvmsi_msix_capability, pvmsi_msix_find,
    pvmsi_msix_init, pvmsi_status,
};

const MSIX: usize = 0x60;

/// The function. Its capability says eight vectors, in BAR 2 from 0x1000 on.
pub(super) struct Kernel {
    config: RefCell<[u8; 256]>,
    table: [Cell<u32>; 8 * 4],
    pending: [Cell<u32>; 2],
    pub(super) delivered: RefCell<Vec<u16>>,
}

impl Kernel {
    pub(super) fn new() -> Box<Self> {
        let mut config = [0; 256];
        config[0x06] = 0x10;
        config[0x34] = 0x60;
        config[MSIX..MSIX + 12]
            .copy_from_slice(&[0x11, 0, 7, 0, 0x02, 0x10, 0, 0, 0x04, 0x20, 0, 0]);
        Box::new(Self {
            config: RefCell::new(config),
            table: core::array::from_fn(|word| Cell::new(u32::from(word % 4 == 3))),
            pending: [const { Cell::new(0) }; 2],
            delivered: RefCell::default(),
        })
    }

    pub(super) fn function(&self) -> pvmsi_function {
        let mut id = 0;
        // SAFETY: the pointer is valid.
        let status = unsafe { pvmsi_function_id(0, 1, 2, 3, &mut id) };
        assert_eq!((status, id), (pvmsi_status::Success, 0x113));
        pvmsi_function {
            context: core::ptr::from_ref(self).cast_mut().cast(),
            read_config_u16: Some(read_config_u16),
            read_config_u32: Some(read_config_u32),
            write_config_u16: Some(write_config_u16),
            deliver: Some(deliver),
            id,
        }
    }

    pub(super) fn capability(&self) -> pvmsi_msix_capability {
        let mut capability = blank();
        // SAFETY: the pointers are valid.
        let status = unsafe { pvmsi_msix_find(&self.function(), &mut capability) };
        assert_eq!(status, pvmsi_status::Success);
        capability
    }

    pub(super) fn table(&self) -> *mut c_void {
        self.table.as_ptr().cast_mut().cast()
    }

    pub(super) fn msix(&self) -> pvmsi_msix {
        let mut msix = blank();
        let pending = self.pending.as_ptr().cast_mut().cast();
        // SAFETY: table and pending bits are as long as the capability says, and outlive the test.
        let status = unsafe {
            pvmsi_msix_init(&mut msix, &self.function(), &self.capability(), self.table(), pending)
        };
        assert_eq!(status, pvmsi_status::Success);
        msix
    }

    /// Address (low half), address (high half), data, vector control.
    pub(super) fn entry(&self, vector: usize) -> [u32; 4] {
        core::array::from_fn(|word| self.table[vector * 4 + word].get())
    }

    pub(super) fn reset_table(&self) {
        for (word, cell) in self.table.iter().enumerate() {
            cell.set(u32::from(word % 4 == 3));
        }
    }

    pub(super) fn set_pending(&self, vector: u16) {
        self.pending[0].set(1 << vector);
    }

    /// MSI-X Enable and Function Mask.
    pub(super) fn control(&self) -> u16 {
        self.read(MSIX + 2) & 0xc000
    }

    pub(super) fn poke(&self, offset: usize, value: u8) {
        self.config.borrow_mut()[offset] = value;
    }

    fn read(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.config.borrow()[offset..][..2].try_into().unwrap())
    }
}

fn kernel<'a>(context: *mut c_void) -> &'a Kernel {
    // SAFETY: `Kernel::function` gives this pointer.
    unsafe { &*context.cast() }
}

unsafe extern "C" fn read_config_u16(context: *mut c_void, offset: u16) -> u16 {
    kernel(context).read(offset.into())
}

unsafe extern "C" fn read_config_u32(context: *mut c_void, offset: u16) -> u32 {
    let kernel = kernel(context);
    u32::from(kernel.read(usize::from(offset) + 2)) << 16 | u32::from(kernel.read(offset.into()))
}

unsafe extern "C" fn write_config_u16(context: *mut c_void, offset: u16, value: u16) {
    kernel(context).config.borrow_mut()[usize::from(offset)..][..2]
        .copy_from_slice(&value.to_le_bytes());
}

unsafe extern "C" fn deliver(context: *mut c_void, vector: u16) {
    kernel(context).delivered.borrow_mut().push(vector);
}
