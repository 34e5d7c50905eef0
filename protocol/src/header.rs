//! The fixed part of a call buffer, and how a doorbell addresses it.

use crate::{CallError, CallId, FunctionId, Parameter, Status, Version};

/// First field of every call buffer: the bytes `PMSI`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PMSI");

/// Call buffers start at a multiple of this many bytes, whatever the page size.
pub const BUFFER_ALIGNMENT: usize = 4096;

/// The longest call buffer in bytes.
pub const BUFFER_MAX: usize = 65536;

/// What a doorbell carries: the guest physical address of the call buffer divided by 4096.
///
/// 32 bits, so buffers lie in the first 16 TiB of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferPage(pub u32);

impl BufferPage {
    /// The page of a guest physical address; `None` when it is unaligned or above 16 TiB.
    pub fn from_address(address: u64) -> Option<Self> {
        (address & 0xfff == 0).then(|| u32::try_from(address >> 12).ok().map(Self)).flatten()
    }

    /// The guest physical address of the buffer.
    pub const fn address(self) -> u64 {
        (self.0 as u64) << 12
    }
}

/// The first 32 bytes of a call buffer. All fields are little endian.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 4 | magic, the bytes `PMSI` |
/// | 4 | 2 | version, major |
/// | 6 | 2 | version, minor |
/// | 8 | 4 | call |
/// | 12 | 4 | function: segment 31..16, bus 15..8, device 7..3, function 2..0 |
/// | 16 | 4 | buffer length in bytes, this header included |
/// | 20 | 4 | body length in bytes: of the request, then of the answer |
/// | 24 | 4 | status |
/// | 28 | 4 | reserved, 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// The version that the guest speaks in this call.
    pub version: Version,
    /// The number of the call, see [`CallId`].
    pub call: u32,
    /// The function that the call concerns.
    pub function: FunctionId,
    /// Length of the whole buffer in bytes.
    pub buffer_length: u32,
    /// Length of the body in bytes.
    pub body_length: u32,
    /// What became of the call.
    pub status: Status,
    /// 0.
    pub reserved: u32,
}

impl Header {
    /// Length of the header in bytes; the body starts here.
    pub const SIZE: usize = 32;

    /// The header of a request, its status preset to the sentinel. `None` when a length is over 64 KiB or the body does not fit the buffer.
    pub fn request(
        call: CallId,
        function: FunctionId,
        buffer_length: usize,
        body_length: usize,
    ) -> Option<Self> {
        if buffer_length > BUFFER_MAX || body_length > buffer_length.checked_sub(Self::SIZE)? {
            return None;
        }
        Some(Self {
            magic: MAGIC,
            version: Version::CURRENT,
            call: call.number(),
            function,
            buffer_length: u32::try_from(buffer_length).ok()?,
            body_length: u32::try_from(body_length).ok()?,
            status: Status::SENTINEL,
            reserved: 0,
        })
    }

    /// Reads the fields; nothing is checked.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let word = |at: usize| {
            let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
            word.map_or(0, |word| u32::from_le_bytes(*word))
        };
        let version = word(4);
        let [major0, major1, minor0, minor1] = version.to_le_bytes();
        Self {
            magic: word(0),
            version: Version {
                major: u16::from_le_bytes([major0, major1]),
                minor: u16::from_le_bytes([minor0, minor1]),
            },
            call: word(8),
            function: FunctionId(word(12)),
            buffer_length: word(16),
            body_length: word(20),
            status: Status(word(24)),
            reserved: word(28),
        }
    }

    /// Writes the fields.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let [major0, major1] = self.version.major.to_le_bytes();
        let [minor0, minor1] = self.version.minor.to_le_bytes();
        let words = [
            self.magic,
            u32::from_le_bytes([major0, major1, minor0, minor1]),
            self.call,
            self.function.0,
            self.buffer_length,
            self.body_length,
            self.status.0,
            self.reserved,
        ];
        let mut bytes = [0; Self::SIZE];
        let (places, _) = bytes.as_chunks_mut();
        for (place, word) in places.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// What a host checks of a request before it reads the body.
    ///
    /// # Errors
    /// The parameter error that the call shall be answered with. A version is not an error of `negotiate`, whose body says what the guest speaks.
    pub fn check_request(&self) -> Result<(), CallError> {
        if self.magic != MAGIC || self.reserved != 0 {
            return Err(CallError::parameter(Parameter::Header));
        }
        if self.call != CallId::Negotiate.number()
            && self.version.common(Version::CURRENT) != Some(self.version)
        {
            return Err(CallError::parameter(Parameter::Version));
        }
        let buffer = self.buffer_length as usize;
        let Some(room) = buffer.checked_sub(Self::SIZE).filter(|_| buffer <= BUFFER_MAX) else {
            return Err(CallError::parameter(Parameter::BufferLength));
        };
        if self.body_length as usize > room {
            return Err(CallError::parameter(Parameter::BodyLength));
        }
        Ok(())
    }

    /// The header of the answer to this request.
    pub fn answered(&self, status: Status, body_length: u32) -> Self {
        Self { status, body_length, ..*self }
    }
}
