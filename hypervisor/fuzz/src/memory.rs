//! Guest memory as a hostile guest has it: with holes, at the end of what a doorbell can name, on
//! top of the vector table, and changing between any two accesses of the host.

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::Arbitrary;
use pvmsi_hypervisor::{DoorbellError, Service};
use pvmsi_protocol::{BUFFER_MAX, Header};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, MmapRegion, VolatileMemory,
    VolatileSlice,
};

const PAGE: u64 = 4096;

/// Start and length of the areas that are RAM.
const RAM: [(u64, usize); 4] = [
    // Room for the longest buffer and for what lies around it.
    (0, 0x1_2000),
    // Another region goes on where the first one ends.
    (0x1_2000, 0x1000),
    // An island: a hole before it, a hole after it.
    (0x1_4000, 0x1000),
    // The last page that a doorbell can name.
    (0xffff_ffff * PAGE, 0x1000),
];

/// Where a call buffer lies.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    /// RAM on all sides.
    Inside,
    /// Reaches into the next region, or beyond it.
    End(u8),
    /// In the hole.
    Hole,
    /// The page between two holes.
    Island,
    /// The last page that can be named.
    Last,
    /// A page of the function's BAR, which is memory for the host, too, or is not.
    Bar(u8),
    /// Any page.
    Page(u32),
}

impl Place {
    /// What the doorbell carries.
    pub fn page(self, bar: u64) -> u32 {
        match self {
            Self::Inside => 1,
            Self::End(back) => 0x12 - u32::from(back % 0x11),
            Self::Hole => 0x13,
            Self::Island => 0x14,
            Self::Last => u32::MAX,
            Self::Bar(page) => ((bar / PAGE) as u32).wrapping_add(u32::from(page % 33)),
            Self::Page(page) => page,
        }
    }
}

/// What another processor of the guest writes, just before the host's n-th access to memory.
#[derive(Arbitrary, Clone, Debug)]
pub struct Interference {
    /// How many accesses of the host came before, of those since the last interference.
    pub after: u8,
    /// Offset from the start of the buffer.
    pub offset: u16,
    /// What is written.
    pub bytes: [u8; 4],
}

/// The guest's memory.
pub struct HostileMemory {
    areas: Vec<(u64, Arc<MmapRegion>)>,
    /// How many of them are RAM and nothing else.
    ram: usize,
}

/// What became of a doorbell.
pub struct Rung {
    /// What the service has said.
    pub result: Result<(), DoorbellError>,
    /// The header and the body in the buffer, if it lies in memory.
    pub buffer: Option<Vec<u8>>,
    /// Whether something was written meanwhile.
    pub disturbed: bool,
}

impl HostileMemory {
    /// Memory; with the function's BAR in it where the VMM has it so.
    pub fn new(bar: Option<(u64, Arc<MmapRegion>)>) -> Self {
        let ram = RAM.map(|(start, length)| {
            (start, Arc::new(MmapRegion::new(length).expect("memory for the guest")))
        });
        Self { areas: ram.into_iter().chain(bar).collect(), ram: RAM.len() }
    }

    /// Writes; what lies in no area is dropped.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        for (at, byte) in (address..u64::MAX).zip(bytes) {
            if let Some((memory, offset)) = self.find(at) {
                let _ = memory.as_volatile_slice().write_obj(*byte, offset);
            }
        }
    }

    /// Rings the doorbell while another processor writes. Nothing outside the declared buffer may
    /// change but by that processor.
    pub fn ring(&self, service: &Service, page: u32, interference: &[Interference]) -> Rung {
        let address = u64::from(page) * PAGE;
        let other = OtherProcessor {
            memory: self,
            buffer: address,
            state: RefCell::new(OtherState {
                plan: interference.to_vec(),
                accesses: 0,
                expected: self.ram(),
                declared: None,
                disturbed: false,
            }),
        };
        let mut regions: Vec<_> = self
            .areas
            .iter()
            .map(|(start, memory)| Region { start: *start, memory, other: &other })
            .collect();
        regions.sort_by_key(|region| region.start);
        let memory = GuestRegionCollection::from_regions(regions).expect("areas do not overlap");
        let result = crate::bounded(|| service.doorbell(&memory, page));
        drop(memory);
        let state = other.state.into_inner();
        let declared = address..address + state.declared.map_or(0, u64::from).min(65536);
        for ((start, expected), now) in state.expected.iter().zip(self.ram()) {
            if *expected == now.1 {
                continue;
            }
            for (at, (expected, now)) in (*start..).zip(expected.iter().zip(now.1)) {
                let inside = declared.contains(&at) && result.is_ok();
                assert!(inside || *expected == now, "{at:#x} is outside the buffer {declared:x?}");
            }
        }
        let buffer = self.read(address);
        Rung { result, buffer, disturbed: state.disturbed }
    }

    /// The header of the buffer and the body that it declares, as far as they lie in memory.
    fn read(&self, address: u64) -> Option<Vec<u8>> {
        let mut bytes = self.bytes(address, Header::SIZE);
        let header = Header::from_bytes(bytes.first_chunk()?);
        let body = usize::try_from(header.body_length).unwrap_or(usize::MAX).min(BUFFER_MAX);
        bytes.extend(self.bytes(address + Header::SIZE as u64, body));
        Some(bytes)
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let byte = |at| {
            let (memory, offset) = self.find(at)?;
            memory.as_volatile_slice().read_obj(offset).ok()
        };
        (address..).take(length).map_while(byte).collect()
    }

    fn ram(&self) -> Vec<(u64, Vec<u8>)> {
        let copy = |(start, memory): &(u64, Arc<MmapRegion>)| {
            let mut bytes = vec![0; memory.size()];
            let _ = memory.as_volatile_slice().read_slice(&mut bytes, 0);
            (*start, bytes)
        };
        self.areas.iter().take(self.ram).map(copy).collect()
    }

    fn find(&self, address: u64) -> Option<(&MmapRegion, usize)> {
        self.areas.iter().find_map(|(start, memory)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            (offset < memory.size()).then_some((&**memory, offset))
        })
    }
}

/// The processor that writes between the host's accesses.
struct OtherProcessor<'m> {
    memory: &'m HostileMemory,
    buffer: u64,
    state: RefCell<OtherState>,
}

struct OtherState {
    /// What is still to be written, first things first.
    plan: Vec<Interference>,
    accesses: u8,
    /// What RAM holds if the host writes nothing.
    expected: Vec<(u64, Vec<u8>)>,
    /// The length of the buffer at the host's first access, when it reads the header.
    declared: Option<u32>,
    disturbed: bool,
}

impl OtherProcessor<'_> {
    fn acts(&self) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        while state.plan.first().is_some_and(|next| next.after <= state.accesses) {
            let Interference { offset, bytes, .. } = state.plan.remove(0);
            let address = self.buffer + u64::from(offset);
            self.memory.write(address, &bytes);
            for (start, expected) in &mut state.expected {
                for (at, byte) in (address..).zip(bytes) {
                    let at = at.checked_sub(*start).and_then(|at| usize::try_from(at).ok());
                    if let Some(expected) = at.and_then(|at| expected.get_mut(at)) {
                        *expected = byte;
                    }
                }
            }
            state.accesses = 0;
            state.disturbed = true;
        }
        state.accesses = state.accesses.saturating_add(1);
        if state.declared.is_none() {
            let declared = self.memory.find(self.buffer + 16).and_then(|(memory, offset)| {
                memory.as_volatile_slice().read_obj::<u32>(offset).ok()
            });
            state.declared = Some(declared.unwrap_or(0));
        }
    }
}

/// An area. Whoever accesses it asks for a slice first, and then the other processor acts.
struct Region<'m> {
    start: u64,
    memory: &'m MmapRegion,
    other: &'m OtherProcessor<'m>,
}

impl GuestMemoryRegion for Region<'_> {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.memory.size() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        self.other.acts();
        let offset =
            usize::try_from(offset.0).map_err(|_| GuestMemoryError::GuestAddressOverflow)?;
        Ok(self.memory.get_slice(offset, count)?)
    }
}

impl GuestMemoryRegionBytes for Region<'_> {}
