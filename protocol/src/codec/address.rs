//! Addresses and their bytes, of the messages that long lists consist of.

/// An address with its encoding, where that takes at most 8 bytes.
///
/// Messages of a list often have one address: its bytes, or the number that they stand for, are
/// found once then.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    pub(super) number: u64,
    /// The first byte is the lowest.
    pub(super) bytes: u64,
    pub(super) length: usize,
    /// All bits of so many bytes.
    mask: u64,
}

impl Address {
    /// Before the first one.
    pub(crate) const ZERO: Self = Self { number: 0, bytes: 0, length: 1, mask: 0xff };

    /// Whether the number in these bytes is this one, in the same encoding.
    #[inline(always)]
    pub(super) const fn leads(&self, bytes: u64) -> bool {
        bytes & self.mask == self.bytes
    }

    /// The number that these bytes begin with, without a look at each of them: addresses are long.
    /// `None` where it has more bytes than these.
    #[inline(always)]
    pub(super) fn leading(bytes: u64) -> Option<Self> {
        let last_bytes = !bytes & 0x8080_8080_8080_8080;
        if last_bytes == 0 {
            return None;
        }
        // The lowest of these bits and all below it: the number's own bytes.
        let mask = last_bytes ^ last_bytes.wrapping_sub(1);
        let bytes = bytes & mask;
        // Groups of 7 bits move together: two of them, four, then all.
        let twos = bytes & 0x007f_007f_007f_007f | (bytes & 0x7f00_7f00_7f00_7f00) >> 1;
        let fours = twos & 0x0000_3fff_0000_3fff | (twos & 0x3fff_0000_3fff_0000) >> 2;
        let number = fours & 0x0fff_ffff | fours >> 32 << 28;
        let before = usize::try_from(last_bytes.trailing_zeros() / 8).unwrap_or(0);
        Some(Self { number, bytes, length: before.saturating_add(1), mask })
    }

    /// The shortest encoding of a number, without a loop over its bytes. `None` where it has more
    /// than 8.
    #[inline(always)]
    pub(super) fn of(number: u64) -> Option<Self> {
        if number >> 56 != 0 {
            return None;
        }
        // The same steps backwards.
        let fours = number & 0x0fff_ffff | number >> 28 << 32;
        let twos = fours & 0x0000_3fff_0000_3fff | (fours & 0x0fff_c000_0fff_c000) << 2;
        let groups = twos & 0x007f_007f_007f_007f | (twos & 0x3f80_3f80_3f80_3f80) << 1;
        // The bits of bytes that are not needed: at most 7 bytes.
        let unused = (groups | 1).leading_zeros() & 0x38;
        let mask = u64::MAX >> unused;
        // Each byte but the last says that another follows.
        let bytes = groups | mask >> 8 & 0x8080_8080_8080_8080;
        let unused = usize::try_from(unused / 8).unwrap_or(0);
        Some(Self { number, bytes, length: 8_usize.saturating_sub(unused), mask })
    }
}
