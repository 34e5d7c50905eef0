//! What the host answers, as C sees it.

use pvmsi_guest::{
    Delivery, Generation, Grant, NegotiateAnswer, QueryFunctionAnswer, Reasons, TableMessage,
    TableMode, VectorAnswer, VectorState,
};

/// No vectors are assigned.
pub const PVMSI_REASON_NOT_ASSIGNED: u32 = 1 << 0;
/// The operator allows the call but not the mapping.
pub const PVMSI_REASON_POLICY: u32 = 1 << 1;
/// The host cannot confine the function to its own interrupts.
pub const PVMSI_REASON_NO_ISOLATION: u32 = 1 << 2;
/// The table's pages cannot be mapped.
pub const PVMSI_REASON_NOT_MAPPABLE: u32 = 1 << 3;
/// MSI-X Enable is clear.
pub const PVMSI_REASON_MSIX_DISABLED: u32 = 1 << 4;
/// Memory Space Enable is clear.
pub const PVMSI_REASON_DECODING_OFF: u32 = 1 << 5;
/// The function is not in power state D0.
pub const PVMSI_REASON_POWER_STATE: u32 = 1 << 6;
/// The host has taken the table back, for a while or for good.
pub const PVMSI_REASON_HOST_REVOKED: u32 = 1 << 7;
/// An event is held for a vector that is masked; direct again once it is delivered.
pub const PVMSI_REASON_HELD_EVENT: u32 = 1 << 8;
/// The guest moved to another host.
pub const PVMSI_REASON_MIGRATED: u32 = 1 << 9;
/// The mechanism has no table (MSI).
pub const PVMSI_REASON_NO_TABLE: u32 = 1 << 10;
/// The host does not find its own messages in the table.
pub const PVMSI_REASON_UNREADABLE: u32 = 1 << 11;

/// Who answers accesses to the pages of the vector table.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pvmsi_table_mode {
    /// The host: each access exits.
    Trapped = 0,
    /// The function itself: the pages are mapped into the guest.
    Direct = 1,
}

/// Whether an interrupt reaches the guest without the host's processor.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pvmsi_delivery {
    /// The host cannot tell.
    Unknown = 0,
    /// The host's processor takes each interrupt and injects it.
    Host = 1,
    /// The host's processor is not involved.
    Bypass = 2,
}

/// What guest and host have agreed on.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_agreement {
    /// The version that both use, major.
    pub version_major: u16,
    /// The same, minor.
    pub version_minor: u16,
    /// The features that both know: PVMSI_FEATURE_...
    pub features: u32,
    /// The largest call buffer that the host takes, in bytes.
    pub buffer_bytes: u32,
    /// The most vectors of one function.
    pub vectors: u16,
}

/// What the service can do for a function, and how it stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_function_state {
    /// Vectors that can be asked for with MSI; 0 when it is not supported.
    pub msi_vectors: u16,
    /// Vectors that can be asked for with MSI-X; 0 when it is not supported.
    pub msix_vectors: u16,
    /// Vectors that are assigned now.
    pub assigned: u16,
    /// Who answers the table now.
    pub mode: pvmsi_table_mode,
    /// Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
    pub reasons: u32,
    /// The number of the state that this describes.
    pub generation: u32,
    /// Whether delivery bypasses the host's processor.
    pub delivery: pvmsi_delivery,
}

/// A message: what a function writes to raise an interrupt.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_message {
    /// Message Address. 0 stands for *no message*.
    pub address: u64,
    /// Message Data.
    pub data: u32,
}

/// What the host knows of one vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_vector_state {
    /// Where the guest wants the interrupt; address 0 while it has not said so.
    pub guest_message: pvmsi_message,
    /// What belongs in the hardware table; address 0 while the host cannot know it.
    pub table_message: pvmsi_message,
    /// Whether the service owns the vector's route.
    pub assigned: bool,
    /// The vector's mask bit.
    pub masked: bool,
    /// The vector's pending bit.
    pub pending: bool,
}

/// What pvmsi_configure has granted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_grant {
    /// Vectors 0 to `granted` - 1 are assigned, the others are not: at least 1, and perhaps fewer
    /// than were asked for.
    pub granted: u16,
    /// Who answers the table from now on.
    pub mode: pvmsi_table_mode,
    /// Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
    pub reasons: u32,
    /// The number of the state after the call.
    pub generation: u32,
}

/// What pvmsi_configure answers for each granted vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_vector_answer {
    /// What stands in the vector's entry of the table; address 0 while the host cannot know it.
    pub table_message: pvmsi_message,
    /// An event happened before the call: the kernel raises its interrupt when it unmasks the
    /// vector.
    pub pending: bool,
}

/// How a function's table stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct pvmsi_table_state {
    /// Who answers the table now.
    pub mode: pvmsi_table_mode,
    /// Why the table is not direct, PVMSI_REASON_...; 0 exactly when it is.
    pub reasons: u32,
    /// The number of the state that this describes.
    pub generation: u32,
}

impl pvmsi_message {
    const NONE: Self = Self { address: 0, data: 0 };
}

impl pvmsi_table_state {
    pub(crate) fn new(mode: TableMode, reasons: Reasons, generation: Generation) -> Self {
        Self { mode: mode.into(), reasons: reasons.bits(), generation: generation.0 }
    }
}

impl From<TableMode> for pvmsi_table_mode {
    fn from(mode: TableMode) -> Self {
        match mode {
            TableMode::Trapped => Self::Trapped,
            TableMode::Direct => Self::Direct,
        }
    }
}

impl From<Delivery> for pvmsi_delivery {
    fn from(delivery: Delivery) -> Self {
        match delivery {
            Delivery::Unknown => Self::Unknown,
            Delivery::Host => Self::Host,
            Delivery::Bypass => Self::Bypass,
        }
    }
}

impl From<NegotiateAnswer> for pvmsi_agreement {
    fn from(answer: NegotiateAnswer) -> Self {
        let NegotiateAnswer { version, features, limits } = answer;
        Self {
            version_major: version.major,
            version_minor: version.minor,
            features: features.bits(),
            buffer_bytes: limits.buffer_bytes,
            vectors: limits.vectors,
        }
    }
}

impl From<QueryFunctionAnswer> for pvmsi_function_state {
    fn from(answer: QueryFunctionAnswer) -> Self {
        Self {
            msi_vectors: answer.msi_vectors,
            msix_vectors: answer.msix_vectors,
            assigned: answer.assigned,
            mode: answer.mode.into(),
            reasons: answer.reasons.bits(),
            generation: answer.generation.0,
            delivery: answer.delivery.into(),
        }
    }
}

impl From<Option<TableMessage>> for pvmsi_message {
    fn from(message: Option<TableMessage>) -> Self {
        message.map_or(Self::NONE, |TableMessage { address, data }| Self { address, data })
    }
}

impl From<VectorState> for pvmsi_vector_state {
    fn from(state: VectorState) -> Self {
        let VectorState { assigned, guest_message, table_message, masked, pending } = state;
        Self {
            guest_message: guest_message.map_or(pvmsi_message::NONE, |message| pvmsi_message {
                address: message.address,
                data: message.data,
            }),
            table_message: table_message.into(),
            assigned,
            masked,
            pending,
        }
    }
}

impl From<Grant> for pvmsi_grant {
    fn from(grant: Grant) -> Self {
        let Grant { granted, mode, reasons, generation } = grant;
        let (reasons, generation) = (reasons.bits(), generation.0);
        Self { granted, mode: mode.into(), reasons, generation }
    }
}

impl From<VectorAnswer> for pvmsi_vector_answer {
    fn from(answer: VectorAnswer) -> Self {
        let VectorAnswer { table_message, pending } = answer;
        Self { table_message: table_message.into(), pending }
    }
}
