//! What a guest must not see of the host's functions: extended capabilities that could be read, but not used, and a link.
//!
//! Source: PCI Express Base Specification, the PCI Express capability, the extended capabilities and
//! the null capability.

/// Where the list of extended capabilities starts.
const START: u64 = 0x100;
/// Alternative routing-ID interpretation: the bus above would have to follow.
const ARI: u16 = 0x0e;
/// Single root I/O virtualisation: virtual functions are made on the host, and their BARs answer
/// no sizing here (Linux calls that a bug of the firmware).
const SR_IOV: u16 = 0x10;
/// Resizable BARs, of functions and of virtual functions: the host's places stay.
const RESIZABLE_BAR: u16 = 0x15;
const VIRTUAL_RESIZABLE_BAR: u16 = 0x24;
const HIDDEN: [u16; 4] = [ARI, SR_IOV, RESIZABLE_BAR, VIRTUAL_RESIZABLE_BAR];

/// Pointer to the first capability, and where capabilities can be.
const CAPABILITIES_POINTER: u64 = 0x34;
const CAPABILITIES: std::ops::Range<u64> = 0x40..0x100;
/// So many fit.
const STANDARD_CAPABILITIES_MAX: u32 = (256 - 64) / 4;
/// The PCI Express capability, and in its header of 32 bits: version, and device or port type.
const PCI_EXPRESS: u8 = 0x10;
const ENDPOINT: u8 = 0;
const INTEGRATED_ENDPOINT: u8 = 9;
/// Link capabilities, control and status; the second ones, which version 2 has.
const LINK: std::ops::Range<u64> = 0x0c..0x14;
const LINK_2: std::ops::Range<u64> = 0x2c..0x34;

/// Makes an endpoint one that is integrated in the root complex, as all functions of a root bus are:
/// it has no link that a guest could look after. `read` reads 32 bits of the function.
pub(super) fn integrate(offset: u64, data: &mut [u8], read: impl Fn(u64) -> u32) {
    let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    if end <= CAPABILITIES.start || offset >= CAPABILITIES.end {
        return;
    }
    let [first, ..] = read(CAPABILITIES_POINTER).to_le_bytes();
    let mut at = u64::from(first & !3);
    for _ in 0..STANDARD_CAPABILITIES_MAX {
        if !CAPABILITIES.contains(&at) {
            return;
        }
        let [number, next, flags, _] = read(at).to_le_bytes();
        if number == PCI_EXPRESS {
            if flags >> 4 == ENDPOINT {
                let has_second = flags & 0xf >= 2;
                for (place, byte) in (offset..).zip(data.iter_mut()) {
                    let register = place.saturating_sub(at);
                    if place == at.saturating_add(2) {
                        *byte = *byte & 0xf | INTEGRATED_ENDPOINT << 4;
                    } else if LINK.contains(&register) || has_second && LINK_2.contains(&register) {
                        *byte = 0;
                    }
                }
            }
            return;
        }
        at = u64::from(next & !3);
    }
}

/// Takes them out of the list in what was read at `offset`; what is the first of the list becomes a
/// null capability: the number 0 tells software to go on with the next. `read` reads 32 bits of the
/// function.
pub(super) fn hide(offset: u64, data: &mut [u8], read: impl Fn(u64) -> u32) {
    let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
    if end <= START {
        return;
    }
    // From the last one on each knows what comes next of those that are seen.
    let mut next_seen = 0;
    for &Extended { at, header } in list(read).iter().rev() {
        let [low, high, ..] = header.to_le_bytes();
        let hidden = HIDDEN.contains(&u16::from_le_bytes([low, high]));
        let kept = if hidden { header & 0x000f_0000 } else { header & 0x000f_ffff };
        let shown = kept | next_seen << 20;
        for (place, byte) in (at..).zip(shown.to_le_bytes()) {
            let seen = place.checked_sub(offset).and_then(|place| usize::try_from(place).ok());
            if let Some(target) = seen.and_then(|place| data.get_mut(place)) {
                *target = byte;
            }
        }
        if !hidden {
            next_seen = u32::try_from(at).unwrap_or(0);
        }
    }
}

/// An extended capability: where it is, and its header.
#[derive(Clone, Copy)]
struct Extended {
    at: u64,
    header: u32,
}

/// The list as the function has it, as far as it leads neither back nor out of the extended space;
/// nothing where there is no function, or no extended space.
fn list(read: impl Fn(u64) -> u32) -> Vec<Extended> {
    let mut list: Vec<Extended> = Vec::new();
    let mut at = START;
    while at >= START && list.iter().all(|known| known.at != at) {
        let header = read(at);
        if header == 0 || header == u32::MAX {
            break;
        }
        list.push(Extended { at, header });
        at = u64::from(header >> 20 & !3);
    }
    list
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
    fn hidden_capabilities_read_as_null_and_are_not_in_the_list() {
        // As igb has them: error reporting, serial number, ARI, SR-IOV.
        let igb =
            space(&[(0x100, 1, 0x140), (0x140, 3, 0x150), (0x150, 0xe, 0x160), (0x160, 0x10, 0)]);
        assert_eq!(read(&igb, 0x100, 4), igb[0x100..0x104]);
        assert_eq!(read(&igb, 0x140, 4), [3, 0, 1, 0], "the last that is seen");
        assert_eq!(read(&igb, 0x142, 1), [1]);
        assert_eq!(read(&igb, 0x143, 1), [0]);
        assert_eq!(read(&igb, 0x144, 4), [0; 4]);
        assert_eq!(read(&igb, 0x150, 4), [0, 0, 1, 0]);
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
        assert_eq!(read(&first, 0x100, 4), [0, 0, 1, 0x30]);
        assert_eq!(read(&first, 0x200, 4), [0, 0, 1, 0x30]);
        assert_eq!(read(&first, 0x300, 4), first[0x300..0x304]);
    }

    fn integrated(space: &[u8], offset: usize, bytes: usize) -> Vec<u8> {
        let word = |at: u64| {
            let at = usize::try_from(at).unwrap();
            u32::from_le_bytes(space[at..at + 4].try_into().unwrap())
        };
        let mut data = space[offset..offset + bytes].to_vec();
        integrate(u64::try_from(offset).unwrap(), &mut data, word);
        data
    }

    /// All capabilities are full of ones; MSI-X, then PCI Express.
    fn express(flags: u8) -> Vec<u8> {
        let mut space = vec![0xff; 4096];
        space[0x34] = 0x40;
        space[0x40..0x42].copy_from_slice(&[0x11, 0x80]);
        space[0x80..0x84].copy_from_slice(&[0x10, 0, flags, 0x01]);
        space
    }

    #[test]
    fn an_endpoint_is_integrated_and_has_no_link() {
        let function = express(0x02);
        assert_eq!(integrated(&function, 0x80, 4), [0x10, 0, 0x92, 0x01]);
        assert_eq!(integrated(&function, 0x82, 2), [0x92, 0x01]);
        let changed: Vec<_> =
            (0..0x100).filter(|&at| integrated(&function, at, 1) != function[at..=at]).collect();
        let expected = [0x82].into_iter().chain(0x8c..0x94).chain(0xac..0xb4);
        assert_eq!(changed, expected.collect::<Vec<_>>());
        assert_eq!(integrated(&function, 0x90, 4), [0; 4]);
        assert_eq!(integrated(&function, 0x88, 8), [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        let first_version = express(0x01);
        assert_eq!(integrated(&first_version, 0xac, 8), [0xff; 8], "it has no second link");
    }

    #[test]
    fn what_is_no_endpoint_is_left_alone() {
        let mut endless = express(0x02);
        endless[0x41] = 0x40;
        let mut none = express(0x02);
        none[0x34] = 0;
        for space in [express(0x12), express(0x92), endless, none, vec![0xff; 4096]] {
            for offset in (0..0x100).step_by(4) {
                assert_eq!(integrated(&space, offset, 4), space[offset..offset + 4], "{offset:#x}");
            }
        }
    }

    #[test]
    fn a_list_that_leads_nowhere_ends_there() {
        for (capabilities, expected) in [
            (&[] as &[(u64, u16, u32)], [0; 4]),
            (&[(0x100, 3, 0x100)], [3, 0, 1, 0]),
            (&[(0x100, 3, 0x40)], [3, 0, 1, 0]),
            (&[(0x100, 0x10, 0x200)], [0, 0, 1, 0]),
            (&[(0x100, 3, 0x200), (0x200, 0x10, 0x100)], [3, 0, 1, 0]),
        ] {
            let space = space(capabilities);
            assert_eq!(read(&space, 0x100, 4), expected, "{capabilities:?}");
            for offset in [0x3c, 0xfc, 0x104, 0xffc] {
                assert_eq!(read(&space, offset, 4), space[offset..offset + 4]);
            }
        }
        let gone = vec![0xff; 4096];
        assert_eq!(read(&gone, 0x100, 4), [0xff; 4]);
    }
}
