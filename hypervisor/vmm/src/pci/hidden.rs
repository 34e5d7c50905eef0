//! Extended capabilities of the host's functions that a guest must not see: what they offer can be read there, but not used.
//!
//! Source: PCI Express Base Specification, the extended capabilities and the null capability.

/// Where the list of extended capabilities starts.
const START: u64 = 0x100;
/// So many fit.
const CAPABILITIES_MAX: u32 = (4096 - 256) / 4;

/// Alternative routing-ID interpretation: the bus above would have to follow.
const ARI: u16 = 0x0e;
/// Single root I/O virtualisation: virtual functions are made on the host, and their BARs answer
/// no sizing here (Linux calls that a bug of the firmware).
const SR_IOV: u16 = 0x10;
/// Resizable BARs, of functions and of virtual functions: the host's places stay.
const RESIZABLE_BAR: u16 = 0x15;
const VIRTUAL_RESIZABLE_BAR: u16 = 0x24;
const HIDDEN: [u16; 4] = [ARI, SR_IOV, RESIZABLE_BAR, VIRTUAL_RESIZABLE_BAR];

/// Makes null capabilities of them in what was read at `offset`: the number 0 tells software to go
/// on with the next. `read` reads 32 bits of the function.
pub(super) fn hide(offset: u64, data: &mut [u8], read: impl Fn(u64) -> u32) {
    let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    if end <= START {
        return;
    }
    let mut at = START;
    for _ in 0..CAPABILITIES_MAX {
        let header = read(at);
        let [low, high, ..] = header.to_le_bytes();
        if HIDDEN.contains(&u16::from_le_bytes([low, high])) {
            for (place, byte) in (offset..).zip(data.iter_mut()) {
                if place == at || place == at.saturating_add(1) {
                    *byte = 0;
                }
            }
        }
        // No function, no extended configuration space, or the end of the list.
        let next = u64::from(header >> 20 & !3);
        if header == 0 || header == u32::MAX || next < START || next >= end {
            return;
        }
        at = next;
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// A function whose extended capabilities are these: place, number, next.
    fn space(capabilities: &[(u64, u16, u32)]) -> Vec<u8> {
        let mut space = vec![0; 4096];
        for &(at, number, next) in capabilities {
            let header = u32::from(number) | 1 << 16 | next << 20;
            let at = usize::try_from(at).unwrap();
            space[at..at + 4].copy_from_slice(&header.to_le_bytes());
        }
        space
    }

    fn read(space: &[u8], offset: usize, bytes: usize) -> Vec<u8> {
        let word = |at: u64| {
            let at = usize::try_from(at).unwrap();
            u32::from_le_bytes(space[at..at + 4].try_into().unwrap())
        };
        let mut data = space[offset..offset + bytes].to_vec();
        hide(u64::try_from(offset).unwrap(), &mut data, word);
        data
    }

    #[test]
    fn hidden_capabilities_read_as_null_and_the_list_goes_on() {
        // As igb has them: error reporting, serial number, ARI, SR-IOV.
        let igb =
            space(&[(0x100, 1, 0x140), (0x140, 3, 0x150), (0x150, 0xe, 0x160), (0x160, 0x10, 0)]);
        assert_eq!(read(&igb, 0x100, 4), igb[0x100..0x104]);
        assert_eq!(read(&igb, 0x140, 4), igb[0x140..0x144]);
        assert_eq!(read(&igb, 0x150, 4), [0, 0, 1, 0x16]);
        assert_eq!(read(&igb, 0x160, 4), [0, 0, 1, 0]);
        for (offset, bytes, expected) in [
            (0x160, 1, &[0_u8] as &[_]),
            (0x161, 1, &[0]),
            (0x160, 2, &[0, 0]),
            (0x162, 2, &[1, 0]),
            (0x15e, 4, &[0, 0, 0, 0]),
        ] {
            assert_eq!(read(&igb, offset, bytes), expected, "{offset:#x} {bytes}");
        }
        let first = space(&[(0x100, 0x15, 0x200), (0x200, 0x24, 0x300), (0x300, 0xb, 0)]);
        assert_eq!(read(&first, 0x100, 4), [0, 0, 1, 0x20]);
        assert_eq!(read(&first, 0x200, 4), [0, 0, 1, 0x30]);
        assert_eq!(read(&first, 0x300, 4), first[0x300..0x304]);
    }

    #[test]
    fn no_list_and_lists_that_lead_nowhere_are_left_alone() {
        for capabilities in [
            &[] as &[(u64, u16, u32)],
            &[(0x100, 3, 0x100)],
            &[(0x100, 3, 0x40)],
            &[(0x100, 3, 0x200), (0x200, 3, 0x100)],
        ] {
            let space = space(capabilities);
            for offset in [0x3c, 0xfc, 0x100, 0x104, 0x200, 0xffc] {
                assert_eq!(read(&space, offset, 4), space[offset..offset + 4]);
            }
        }
        let gone = vec![0xff; 4096];
        assert_eq!(read(&gone, 0x100, 4), [0xff; 4]);
    }
}
