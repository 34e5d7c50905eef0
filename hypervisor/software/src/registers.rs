//! Where things are in BAR 0, in bytes, and what the registers hold. A register has 32 bits.

/// Bytes of the BAR.
pub const BAR_BYTES: u64 = 0x2_0000;

/// Read-only: [`ID_VALUE`].
pub const ID: u64 = 0x00;
/// Read-only: the number of vectors.
pub const VECTORS: u64 = 0x04;
/// How many events the driver has asked for since reset, modulo 2^32.
pub const DOORBELL: u64 = 0x08;
/// The vector of the first event.
pub const FIRST: u64 = 0x0c;
/// Over how many vectors the events go in turn; 0 means 1.
pub const ROTATION: u64 = 0x10;
/// Nanoseconds between two events.
pub const PACE: u64 = 0x14;
/// What the device shall do, and what became of it: [`RESET`], [`START`].
pub const CONTROL: u64 = 0x18;
/// Read-only: how many events have been raised since reset, modulo 2^32.
pub const DONE: u64 = 0x1c;

/// The vector table, 16 bytes an entry.
pub const TABLE: u64 = 0x40;
/// The pending bit array.
pub const PENDING: u64 = 0x8800;
/// A word for each vector: its events, modulo 2^32, counted before anything else.
pub const EVENTS: u64 = 0x1_0000;
/// A word for each vector: its messages, modulo 2^32, counted before they are emitted.
pub const SENT: u64 = 0x1_2000;
/// A word for each vector: 1 from before the mask bit is looked at until the message has been delivered.
pub const SENDING: u64 = 0x1_4000;

/// What [`ID`] reads.
pub const ID_VALUE: u32 = 0x5650_0001;

/// A store to [`CONTROL`]: a reset that the host does not see. Reads as 0 when it is done.
pub const RESET: u32 = 1;
/// A store to [`CONTROL`]: the device starts, and looks at its own MSI-X Enable.
pub const START: u32 = 2;
/// What [`CONTROL`] reads then where Enable was set.
pub const STARTED: u32 = 3;
/// What [`CONTROL`] reads then where Enable was clear: events have no interrupts.
pub const STARTED_WITHOUT_INTERRUPTS: u32 = 4;

/// Where the word of a vector lies in [`EVENTS`], [`SENT`] or [`SENDING`].
pub const fn of_vector(words: u64, vector: u16) -> u64 {
    words.saturating_add((vector as u64).saturating_mul(4))
}

/// Where a word of a vector's entry lies in the table: 0 and 1 the address, 2 the data, 3 vector control.
pub const fn entry_word(vector: u16, word: u64) -> u64 {
    TABLE.saturating_add((vector as u64).saturating_mul(16)).saturating_add(word.saturating_mul(4))
}

/// Where the 32-bit word with a vector's pending bit lies; the bit in it is the vector modulo 32.
pub const fn pending_word(vector: u16) -> u64 {
    of_vector(PENDING, vector / 32)
}
