//! Placement of BARs: what firmware does on a larger machine.

use vm_allocator::{AddressAllocator, AllocPolicy};

use crate::arch::BAR_WINDOW;
use crate::error::MachineError;

const BAR0: u64 = 0x10;
const BARS: u64 = 6;
const IO_SPACE: u32 = 1;
const TYPE_MASK: u32 = 0b110;
const TYPE_64BIT: u32 = 0b100;

/// 32-bit access to a function's configuration space.
pub(crate) trait ConfigAccess {
    fn read(&self, offset: u64) -> u32;
    fn write(&self, offset: u64, value: u32);
}

/// A memory BAR that wants a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    function: usize,
    register: u64,
    is_64bit: bool,
    size: u64,
}

/// The places of all BARs of a machine. They stay the same over machine resets.
#[derive(Debug, Default)]
pub(crate) struct Placement(Vec<Placed>);

#[derive(Debug)]
struct Placed {
    function: usize,
    register: u64,
    is_64bit: bool,
    address: u64,
}

impl Placement {
    /// Finds a place for each memory BAR, the largest first. `page_size` is the host's: no two BARs share a page.
    ///
    /// # Errors
    /// When they do not fit the window below 4 GiB.
    pub(crate) fn find<C: ConfigAccess>(
        functions: &[C],
        page_size: u64,
    ) -> Result<Self, MachineError> {
        let mut wanted = Vec::new();
        for (function, config) in functions.iter().enumerate() {
            size_bars(config, |register, is_64bit, size| {
                wanted.push(Wanted { function, register, is_64bit, size });
            });
        }
        wanted.sort_by_key(|bar| std::cmp::Reverse(bar.size));
        let length = BAR_WINDOW.end.saturating_sub(BAR_WINDOW.start);
        let mut window = AddressAllocator::new(BAR_WINDOW.start, length)
            .map_err(|error| MachineError::Config(format!("the window of BARs: {error}")))?;
        let place = |bar: &Wanted| {
            let size = bar.size.max(page_size);
            let range = window.allocate(size, size, AllocPolicy::FirstMatch).map_err(|_| {
                MachineError::Config(format!(
                    "the BARs do not fit below 4 GiB: no room for {:#x} bytes of function {} at register {:#x}; \
                     the machine has {length:#x} bytes for all",
                    bar.size, bar.function, bar.register
                ))
            })?;
            Ok(Placed {
                function: bar.function,
                register: bar.register,
                is_64bit: bar.is_64bit,
                address: range.start(),
            })
        };
        wanted.iter().map(place).collect::<Result<_, _>>().map(Self)
    }

    /// Writes the places into the BAR registers, at the start and after a machine reset.
    pub(crate) fn write<C: ConfigAccess>(&self, functions: &[C]) {
        for placed in &self.0 {
            let Some(config) = functions.get(placed.function) else { continue };
            let [a0, a1, a2, a3, a4, a5, a6, a7] = placed.address.to_le_bytes();
            config.write(placed.register, u32::from_le_bytes([a0, a1, a2, a3]));
            if placed.is_64bit {
                let high = u32::from_le_bytes([a4, a5, a6, a7]);
                config.write(placed.register.saturating_add(4), high);
            }
        }
    }
}

/// Sizes the BARs of a function by writing ones, with decoding off, and leaves them 0. I/O BARs are left at 0.
fn size_bars(config: &impl ConfigAccess, mut found: impl FnMut(u64, bool, u64)) {
    let mut index = 0;
    while index < BARS {
        let register = index.saturating_mul(4).saturating_add(BAR0);
        index = index.saturating_add(1);
        let low = ones(config, register);
        if low == 0 || low & IO_SPACE != 0 {
            continue;
        }
        let is_64bit = low & TYPE_MASK == TYPE_64BIT && index < BARS;
        let mask = if is_64bit {
            index = index.saturating_add(1);
            let high = ones(config, register.saturating_add(4));
            u64::from(high) << 32 | u64::from(low & !0xf)
        } else {
            0xffff_ffff_0000_0000 | u64::from(low & !0xf)
        };
        // The lowest bit that can be set is the size.
        let size = mask & mask.wrapping_neg();
        if size >= 16 {
            found(register, is_64bit, size);
        }
    }
}

/// What a BAR register answers to ones; it holds 0 afterwards.
fn ones(config: &impl ConfigAccess, register: u64) -> u32 {
    config.write(register, u32::MAX);
    let answer = config.read(register);
    config.write(register, 0);
    answer
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Six registers: which bits can be written, and which are fixed.
    struct Bars([(u32, u32, Cell<u32>); 6]);

    impl Bars {
        fn new(bars: [(u32, u32); 6]) -> Self {
            Self(bars.map(|(writable, fixed)| (writable, fixed, Cell::new(0xdead_0000 & writable))))
        }
    }

    impl ConfigAccess for Bars {
        fn read(&self, offset: u64) -> u32 {
            let (_, fixed, value) = &self.0[usize::try_from((offset - 0x10) / 4).unwrap()];
            value.get() | fixed
        }

        fn write(&self, offset: u64, value: u32) {
            let (writable, _, cell) = &self.0[usize::try_from((offset - 0x10) / 4).unwrap()];
            cell.set(value & writable);
        }
    }

    const NONE: (u32, u32) = (0, 0);

    fn small(size: u32) -> (u32, u32) {
        (!(size - 1), 0)
    }

    #[test]
    fn bars_get_disjoint_aligned_places_in_the_window() {
        let functions = [
            // 64-bit of 16 KiB, an I/O BAR, a BAR smaller than a page.
            Bars::new([
                (!0x3fff, 0b1100),
                (u32::MAX, 0),
                (!0x1f, 1),
                small(256),
                NONE,
                small(1 << 20),
            ]),
            Bars::new([small(0x2_0000), NONE, NONE, NONE, NONE, NONE]),
        ];
        let placement = Placement::find(&functions, 4096).unwrap();
        placement.write(&functions);
        let [first, second] = &functions;
        let places = [
            (u64::from(first.read(0x10) & !0xf), 0x4000_u64),
            (u64::from(first.read(0x1c) & !0xf), 0x1000),
            (u64::from(first.read(0x24) & !0xf), 1 << 20),
            (u64::from(second.read(0x10) & !0xf), 0x2_0000),
        ];
        for (n, (address, size)) in places.iter().enumerate() {
            assert!(BAR_WINDOW.contains(address), "{address:#x}");
            assert!(BAR_WINDOW.contains(&(address + size - 1)));
            assert_eq!(address % size, 0);
            for (other, length) in &places[..n] {
                assert!(address + size <= *other || other + length <= *address, "overlap");
            }
        }
        assert_eq!(first.read(0x14), 0, "64-bit BARs go below 4 GiB");
        assert_eq!(first.read(0x18), 1, "I/O BARs are left alone");
        assert_eq!(second.read(0x14), 0, "no BAR, nothing written");
    }

    #[test]
    fn bars_that_do_not_fit_are_an_error() {
        // 64-bit, 4 GiB.
        let function = Bars::new([(0, 0b100), (u32::MAX, 0), NONE, NONE, NONE, NONE]);
        let error = Placement::find(&[function], 4096).unwrap_err().to_string();
        assert!(error.contains("do not fit below 4 GiB"), "{error}");
        assert!(error.contains("0x100000000"), "{error}");
    }
}
