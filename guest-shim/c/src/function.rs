//! A PCI function, as the kernel gives access to it.

use core::ffi::c_void;

use pvmsi_guest::{FunctionId, MsiXCapability, PciFunction, TableLocation, VectorIndex};

use crate::pointer::{output, shared};
use crate::status::pvmsi_status;

/// What the kernel provides for a PCI function. All functions get `context`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pvmsi_function {
    /// What the functions below shall be given.
    pub context: *mut c_void,
    /// Reads 16 bits of config space at a byte offset that is a multiple of 2.
    pub read_config_u16: Option<unsafe extern "C" fn(context: *mut c_void, offset: u16) -> u16>,
    /// Reads 32 bits of config space at a byte offset that is a multiple of 4.
    pub read_config_u32: Option<unsafe extern "C" fn(context: *mut c_void, offset: u16) -> u32>,
    /// Writes 16 bits of config space at a byte offset that is a multiple of 2.
    pub write_config_u16:
        Option<unsafe extern "C" fn(context: *mut c_void, offset: u16, value: u16)>,
    /// Makes the handler of `vector` run once, as if the function had sent the vector's message:
    /// an event was pending when the table was switched. Called at most once for such an event,
    /// from pvmsi_msix_unmask, after the vector is unmasked, in the context of that call. Sending
    /// the vector's interrupt to the own processor is the usual way.
    pub deliver: Option<unsafe extern "C" fn(context: *mut c_void, vector: u16)>,
    /// Segment, bus, device and function number, from pvmsi_function_id.
    pub id: u32,
}

/// The MSI-X capability of a function.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_msix_capability {
    /// Bytes from the start of its BAR to the vector table.
    pub table_offset: u32,
    /// Bytes from the start of its BAR to the pending bit array.
    pub pending_offset: u32,
    /// Byte offset of the capability in config space.
    pub offset: u16,
    /// Number of entries of the vector table, 1 to 2048.
    pub table_size: u16,
    /// Index of the base address register of the vector table.
    pub table_bar: u8,
    /// Index of the base address register of the pending bit array.
    pub pending_bar: u8,
}

/// Walks the function's capability list to MSI-X.
///
/// Returns PVMSI_STATUS_NO_MSIX, PVMSI_STATUS_POINTER.
///
/// # Safety
/// Each is not NULL, else PVMSI_STATUS_POINTER:
/// - `function`: the function, and all functions in it.
/// - `capability`: where the capability shall be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pvmsi_msix_find(
    function: *const pvmsi_function,
    capability: *mut pvmsi_msix_capability,
) -> pvmsi_status {
    let find = || {
        // SAFETY: condition 1 of the crate.
        let capability = unsafe { output(capability) }?;
        // SAFETY: as above.
        let function = KernelFunction::new(unsafe { shared(function) }?)?;
        let found = MsiXCapability::find(&function).ok_or(pvmsi_status::NoMsix)?;
        capability.write(found.into());
        Ok(())
    };
    pvmsi_status::of(find())
}

/// The function behind C's description.
#[derive(Debug)]
pub(crate) struct KernelFunction {
    id: FunctionId,
    context: *mut c_void,
    read_config_u16: unsafe extern "C" fn(*mut c_void, u16) -> u16,
    read_config_u32: unsafe extern "C" fn(*mut c_void, u16) -> u32,
    write_config_u16: unsafe extern "C" fn(*mut c_void, u16, u16),
    deliver: unsafe extern "C" fn(*mut c_void, u16),
}

impl KernelFunction {
    /// Inlined, as a copy of what it returns is larger than the checks.
    #[inline(always)]
    pub(crate) fn new(function: &pvmsi_function) -> Result<Self, pvmsi_status> {
        let missing = pvmsi_status::Pointer;
        Ok(Self {
            id: FunctionId(function.id),
            context: function.context,
            read_config_u16: function.read_config_u16.ok_or(missing)?,
            read_config_u32: function.read_config_u32.ok_or(missing)?,
            write_config_u16: function.write_config_u16.ok_or(missing)?,
            deliver: function.deliver.ok_or(missing)?,
        })
    }
}

impl PciFunction for KernelFunction {
    fn id(&self) -> FunctionId {
        self.id
    }

    fn read_config_u16(&self, offset: u16) -> u16 {
        // SAFETY: condition 3 of the crate; the kernel gets the context that it gave.
        unsafe { (self.read_config_u16)(self.context, offset) }
    }

    fn read_config_u32(&self, offset: u16) -> u32 {
        // SAFETY: as above.
        unsafe { (self.read_config_u32)(self.context, offset) }
    }

    fn write_config_u16(&self, offset: u16, value: u16) {
        // SAFETY: as above.
        unsafe { (self.write_config_u16)(self.context, offset, value) }
    }

    fn deliver(&self, vector: VectorIndex) {
        // SAFETY: as above.
        unsafe { (self.deliver)(self.context, vector.0) }
    }
}

impl From<MsiXCapability> for pvmsi_msix_capability {
    fn from(capability: MsiXCapability) -> Self {
        let MsiXCapability { offset, table_size, table, pba } = capability;
        Self {
            table_offset: table.offset,
            pending_offset: pba.offset,
            offset,
            table_size,
            table_bar: table.bar,
            pending_bar: pba.bar,
        }
    }
}

impl From<&pvmsi_msix_capability> for MsiXCapability {
    fn from(capability: &pvmsi_msix_capability) -> Self {
        Self {
            offset: capability.offset,
            table_size: capability.table_size,
            table: TableLocation { bar: capability.table_bar, offset: capability.table_offset },
            pba: TableLocation { bar: capability.pending_bar, offset: capability.pending_offset },
        }
    }
}
