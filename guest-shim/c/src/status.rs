//! Errors, each with one meaning and what the kernel should do.

use core::ffi::{CStr, c_char};

use pvmsi_guest::{CallError, MsiXError, Parameter};

/// What became of a call. Every error is negative; a call that fails has changed nothing, unless
/// its description says otherwise.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pvmsi_status {
    /// Done.
    Success = 0,
    /// The host does not know the call, the version, or the whole service. Use the standard
    /// vector table; do not ask again.
    NotSupported = -1,
    /// No function of this machine has that address. Check the address; rescan the bus.
    NoSuchFunction = -2,
    /// The request itself is wrong; pvmsi_client_detail says which part of it. Mend the caller;
    /// repeating is useless.
    Parameter = -3,
    /// The host was busy for longer than the call waits. Ask later.
    Busy = -4,
    /// The host has no vector left. Ask for fewer, ask later, or use the standard vector table.
    NoResources = -5,
    /// The operator does not allow it for this function. Use the standard vector table.
    Denied = -6,
    /// The host or the function failed, or the host's answer is none. Reset the function, or use
    /// the standard vector table.
    Hardware = -7,
    /// MSI-X is enabled already. Call pvmsi_msix_disable first.
    Enabled = -8,
    /// 0 vectors, or more than the vector table has; or more setups than vectors. Ask for fewer.
    Count = -9,
    /// A vector that was not granted. Use vectors below the number that pvmsi_msix_enable
    /// granted.
    Vector = -10,
    /// The vectors belong to the host's service, and no client was given. Pass a client.
    ClientMissing = -11,
    /// A pointer is NULL or misaligned. Mend the caller.
    Pointer = -12,
    /// The object was never initialised. Call its init function first.
    NotInitialised = -13,
    /// Another processor, or the code that this interrupts, is in a call with this client.
    /// Serialise calls with a lock that keeps interrupts off, or give each processor a client.
    ClientInUse = -14,
    /// The call buffer is not aligned to 4096 bytes, not below 16 TiB, or not 4096 to 65,536
    /// bytes long. Give another one.
    CallBuffer = -15,
    /// There is no doorbell of this kind on this processor, or its number is out of range. Take
    /// the one that pvmsi_discover has filled in.
    Doorbell = -16,
    /// The function has no MSI-X capability, or there is none at that offset. Use MSI or INTx.
    NoMsix = -17,
    /// Bus, device or function number out of range: a bus has 32 devices, a device 8 functions.
    /// Mend the caller.
    Address = -18,
}

/// Which part of a request is wrong, with PVMSI_STATUS_PARAMETER.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pvmsi_parameter {
    /// None, or the host does not say.
    None = 0,
    /// The header of the call buffer.
    Header = 1,
    /// The version.
    Version = 2,
    /// The length of the call buffer: too short for so many vectors (see
    /// pvmsi_call_buffer_bytes), or not all of it in RAM.
    BufferLength = 3,
    /// The length of the request in the call buffer.
    BodyLength = 4,
    /// The request in the call buffer cannot be read.
    Body = 5,
    /// The call buffer has no room for the answer.
    AnswerRoom = 6,
    /// The function does not have this kind of interrupt.
    Kind = 7,
    /// The number of vectors: 0, or more than there can be.
    Count = 8,
    /// A vector outside the table, or not assigned.
    Vector = 9,
    /// A vector that stands twice in one call.
    DuplicateVector = 10,
    /// A message that the platform cannot deliver.
    Message = 11,
    /// The sequence number of a repeated call.
    Sequence = 12,
    /// A message that another vector of the function has as well: an interrupt translation service
    /// takes each event from one vector.
    SharedMessage = 13,
}

/// Stands in pvmsi_detail when the error concerns no single vector.
pub const PVMSI_NO_VECTOR: u32 = 0xffff_ffff;

/// Details of an error that the host has answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_detail {
    /// Which part of the request was wrong, with PVMSI_STATUS_PARAMETER.
    pub parameter: pvmsi_parameter,
    /// The vector that it concerns, or PVMSI_NO_VECTOR.
    pub vector: u32,
    /// The host expects to be ready after so many microseconds, with PVMSI_STATUS_BUSY; else 0.
    pub delay_us: u32,
}

/// What a status means and what to do, as one sentence for a log. Never NULL; the text is
/// constant.
#[unsafe(no_mangle)]
pub extern "C" fn pvmsi_status_text(status: i32) -> *const c_char {
    pvmsi_status::ALL
        .into_iter()
        .find(|known| *known as i32 == status)
        .map_or(c"unknown status", pvmsi_status::text)
        .as_ptr()
}

impl pvmsi_status {
    pub(crate) const ALL: [Self; 19] = [
        Self::Success,
        Self::NotSupported,
        Self::NoSuchFunction,
        Self::Parameter,
        Self::Busy,
        Self::NoResources,
        Self::Denied,
        Self::Hardware,
        Self::Enabled,
        Self::Count,
        Self::Vector,
        Self::ClientMissing,
        Self::Pointer,
        Self::NotInitialised,
        Self::ClientInUse,
        Self::CallBuffer,
        Self::Doorbell,
        Self::NoMsix,
        Self::Address,
    ];

    const fn text(self) -> &'static CStr {
        match self {
            Self::Success => c"done",
            Self::NotSupported => c"not supported; use the standard vector table, do not ask again",
            Self::NoSuchFunction => c"no such function; check the address, rescan the bus",
            Self::Parameter => c"parameter error; mend the caller, repeating is useless",
            Self::Busy => c"busy for too long; ask later",
            Self::NoResources => {
                c"no resources; ask for fewer vectors, ask later, or use the standard vector table"
            }
            Self::Denied => c"denied by policy; use the standard vector table",
            Self::Hardware => {
                c"hardware error; reset the function, or use the standard vector table"
            }
            Self::Enabled => c"MSI-X is enabled already; disable it first",
            Self::Count => c"0 vectors, or more than the table has; ask for fewer",
            Self::Vector => c"vector not granted; use vectors below the number granted",
            Self::ClientMissing => c"the vectors belong to the host's service; pass a client",
            Self::Pointer => c"a pointer is NULL or misaligned; mend the caller",
            Self::NotInitialised => c"the object was never initialised; call its init function",
            Self::ClientInUse => c"the client is in use; serialise calls, or use another client",
            Self::CallBuffer => {
                c"bad call buffer; it must be aligned to 4096 bytes and 4096 to 65536 bytes long"
            }
            Self::Doorbell => c"no such doorbell; take the one that pvmsi_discover has filled in",
            Self::NoMsix => c"no MSI-X capability; use MSI or INTx",
            Self::Address => c"device or function number out of range; mend the caller",
        }
    }

    /// What a function returns to C.
    pub(crate) fn of(result: Result<(), Self>) -> Self {
        result.err().unwrap_or(Self::Success)
    }
}

impl From<CallError> for pvmsi_status {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotSupported => Self::NotSupported,
            CallError::NoSuchFunction => Self::NoSuchFunction,
            CallError::Parameter(_) => Self::Parameter,
            CallError::Busy(_) => Self::Busy,
            CallError::NoResources => Self::NoResources,
            CallError::Denied => Self::Denied,
            CallError::Hardware => Self::Hardware,
        }
    }
}

impl From<MsiXError> for pvmsi_status {
    fn from(error: MsiXError) -> Self {
        match error {
            MsiXError::Call(error) => error.into(),
            MsiXError::Enabled => Self::Enabled,
            MsiXError::Count { .. } => Self::Count,
            MsiXError::Vector { .. } => Self::Vector,
            MsiXError::ClientMissing => Self::ClientMissing,
        }
    }
}

impl From<Parameter> for pvmsi_parameter {
    fn from(parameter: Parameter) -> Self {
        match parameter {
            Parameter::Header => Self::Header,
            Parameter::Version => Self::Version,
            Parameter::BufferLength => Self::BufferLength,
            Parameter::BodyLength => Self::BodyLength,
            Parameter::Body => Self::Body,
            Parameter::AnswerRoom => Self::AnswerRoom,
            Parameter::Kind => Self::Kind,
            Parameter::Count => Self::Count,
            Parameter::Vector => Self::Vector,
            Parameter::DuplicateVector => Self::DuplicateVector,
            Parameter::Message => Self::Message,
            Parameter::Sequence => Self::Sequence,
            Parameter::SharedMessage => Self::SharedMessage,
        }
    }
}

impl pvmsi_detail {
    /// Nothing to say.
    pub(crate) const NONE: Self =
        Self { parameter: pvmsi_parameter::None, vector: PVMSI_NO_VECTOR, delay_us: 0 };

    pub(crate) fn of(error: &CallError) -> Self {
        match error {
            CallError::Parameter(detail) => Self {
                parameter: detail.parameter.into(),
                vector: detail.vector.map_or(PVMSI_NO_VECTOR, u32::from),
                ..Self::NONE
            },
            CallError::Busy(busy) => Self { delay_us: busy.delay_us, ..Self::NONE },
            _ => Self::NONE,
        }
    }
}
