//! The ACPI tables, where firmware would put them.
//!
//! The platform is hardware-reduced: no SCI, no power management timer, no
//! event blocks. What is left is a reset register and the sleep registers, which
//! the machine serves.
//!
//! Sources: ACPI 6.5; PCI Firmware Specification 3.3, 4.1.2 (MCFG) and 4.6.5 (_DSM function 5).

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, IO, If,
    Interrupt, Memory32Fixed, Method, Name, ONE, Package, Path, ResourceTemplate, Return, Scope,
    Uuid, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as RegisterSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::boot::{TABLES, put};
use super::contract::{BAR_WINDOW, DOORBELL_REGISTER, ECAM, IO_APIC, LOCAL_APIC, SERIAL_GSI};
use super::pci::{ADDRESS_PORT, CONFIG_PORTS};
use super::ports::{
    RESET, RESET_VALUE, SERIAL, SERIAL_PORTS, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_OFF,
};
use crate::boot::Boot;
use crate::doorbell::Doorbell;
use crate::error::MachineError;

const OEM_ID: [u8; 6] = *b"PVMSI ";
const OEM_TABLE_ID: [u8; 8] = *b"PVMSIREF";
const OEM_REVISION: u32 = 1;

/// Fields of the FADT's IA-PC boot architecture flags: what this machine does not have.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Functions that a host bridge's _DSM has for PCI.
const PCI_DSM: &str = "e5c937d0-3543-4d7a-9117-ea4d19c3434d";
const DSM_PRESERVE: u8 = 5;

/// Writes the tables; returns where the root pointer lies.
///
/// # Errors
/// When they do not fit, or their place is not RAM.
pub(super) fn write(boot: &Boot<'_>) -> Result<u64, MachineError> {
    for (address, bytes) in tables(boot.cpus, boot.doorbell)? {
        put(boot.memory, address, &bytes)?;
    }
    Ok(TABLES.start)
}

/// The tables and their addresses, the root pointer first.
fn tables(cpus: u8, doorbell: Option<Doorbell>) -> Result<Vec<(u64, Vec<u8>)>, MachineError> {
    let mut writer = Writer { next: TABLES.start, written: Vec::new() };
    let root = writer.reserve(Rsdp::len())?;
    let dsdt = writer.add(&dsdt(doorbell))?;
    let fadt = writer.add(&fadt(dsdt))?;
    let madt = writer.add(&madt(cpus))?;
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, 0, 0, 0);
    let mcfg = writer.add(&mcfg)?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in [fadt, madt, mcfg] {
        xsdt.add_entry(table);
    }
    let xsdt = writer.add(&xsdt)?;
    let mut written = writer.written;
    written.insert(0, (root, bytes(&Rsdp::new(OEM_ID, xsdt))));
    Ok(written)
}

/// Gives tables their places, one behind the other.
struct Writer {
    next: u64,
    written: Vec<(u64, Vec<u8>)>,
}

impl Writer {
    fn reserve(&mut self, length: usize) -> Result<u64, MachineError> {
        let address = self.next;
        let length = u64::try_from(length.next_multiple_of(16)).unwrap_or(u64::MAX);
        self.next = address.saturating_add(length);
        if self.next > TABLES.end {
            return Err(MachineError::Config("the ACPI tables do not fit".to_owned()));
        }
        Ok(address)
    }

    fn add(&mut self, table: &dyn Aml) -> Result<u64, MachineError> {
        let table = bytes(table);
        let address = self.reserve(table.len())?;
        self.written.push((address, table));
        Ok(address)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed hardware: there is none but the registers for reset and sleep.
fn fadt(dsdt: u64) -> impl Aml {
    let register = |port: u16| {
        GAS::new(RegisterSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        // These mean that there is no such button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    // Also without the legacy devices and the keyboard controller that other bits would promise.
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.reset_reg = register(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = register(SLEEP_CONTROL);
    fadt.sleep_status_reg = register(SLEEP_STATUS);
    fadt.finalize()
}

/// The interrupt controllers.
fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local);
    for index in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(index, index, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

/// The devices that cannot be enumerated.
fn dsdt(doorbell: Option<Doorbell>) -> Sdt {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let (bridge, serial, board) = (host_bridge(), serial_port(), motherboard(doorbell));
    let devices = [bridge, serial, board].concat();
    dsdt.append_slice(&Scope::raw(Path::new("_SB_"), devices));
    dsdt.append_slice(&bytes(&Name::new(Path::new("_S5_"), &Package::new(vec![&SLEEP_TYPE_OFF]))));
    dsdt
}

/// Bus 0, whose BARs are placed already.
fn host_bridge() -> Vec<u8> {
    let ports = IO::new(ADDRESS_PORT, ADDRESS_PORT, 1, CONFIG_PORTS);
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let window = memory_window(&BAR_WINDOW);
    // Function 5: "preserve". Bits of function 0: function 0 and function 5.
    let functions = BufferData::new(vec![1 | 1 << DSM_PRESERVE]);
    let none = BufferData::new(vec![0]);
    bytes(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&bus, &ports, &window])),
            &Method::new(
                Path::new("_DSM"),
                4,
                false,
                vec![
                    &If::new(
                        &Equal::new(&Arg(0), &Uuid::new(PCI_DSM)),
                        vec![
                            &If::new(&Equal::new(&Arg(2), &ZERO), vec![&Return::new(&functions)]),
                            &If::new(
                                &Equal::new(&Arg(2), &DSM_PRESERVE),
                                vec![&Return::new(&ZERO)],
                            ),
                        ],
                    ),
                    &Return::new(&none),
                ],
            ),
        ],
    ))
}

fn memory_window(range: &Range<u64>) -> AddressSpace<u64> {
    let last = range.end.saturating_sub(1);
    AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, range.start, last, None)
}

fn serial_port() -> Vec<u8> {
    let ports = IO::new(SERIAL, SERIAL, 1, SERIAL_PORTS);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_GSI);
    bytes(&Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ))
}

/// What nobody may take: configuration space, and the doorbell's page where that is in memory.
fn motherboard(doorbell: Option<Doorbell>) -> Vec<u8> {
    let fixed = |range: &Range<u64>| {
        let length = range.end.saturating_sub(range.start);
        // Both lie below 4 GiB.
        let [base, length] = [range.start, length].map(|value| u32::try_from(value).unwrap_or(0));
        Memory32Fixed::new(true, base, length)
    };
    let mut ranges = vec![fixed(&ECAM)];
    if doorbell == Some(Doorbell::Mmio) {
        ranges.push(fixed(&DOORBELL_REGISTER));
    }
    let ranges = ranges.iter().map(|range| range as &dyn Aml).collect();
    bytes(&Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(ranges)),
        ],
    ))
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn long(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().copied().fold(0, u8::wrapping_add)
    }

    /// The memory below 1 MiB, read as an operating system does.
    struct Firmware(Vec<u8>);

    impl Firmware {
        fn new(cpus: u8, doorbell: Option<Doorbell>) -> Self {
            let mut memory = vec![0; 0x10_0000];
            for (address, table) in tables(cpus, doorbell).unwrap() {
                let at = usize::try_from(address).unwrap();
                assert!(memory[at..at + table.len()].iter().all(|byte| *byte == 0), "overlap");
                memory[at..at + table.len()].copy_from_slice(&table);
            }
            Self(memory)
        }

        /// A table, with its signature and checksum verified.
        fn table(&self, address: u64, signature: &[u8; 4]) -> &[u8] {
            let rest = &self.0[usize::try_from(address).unwrap()..];
            let table = &rest[..usize::try_from(word(rest, 4)).unwrap()];
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(table), 0, "checksum of {signature:?}");
            table
        }

        /// A table that the XSDT names.
        fn listed(&self, signature: &[u8; 4]) -> &[u8] {
            let root = &self.0[0xe_0000..0xe_0000 + 36];
            assert_eq!(&root[..8], b"RSD PTR ");
            assert_eq!((sum(&root[..20]), sum(root), root[15]), (0, 0, 2));
            let list = self.table(long(root, 24), b"XSDT");
            let mut entries = (36..list.len()).step_by(8).map(|at| long(list, at));
            let found = entries.find(|entry| {
                let at = usize::try_from(*entry).unwrap();
                &self.0[at..at + 4] == signature
            });
            self.table(found.unwrap(), signature)
        }
    }

    fn holds(table: &[u8], part: &[u8]) -> bool {
        table.windows(part.len()).any(|window| window == part)
    }

    #[test]
    fn the_platform_is_hardware_reduced_and_can_be_reset_and_switched_off() {
        let firmware = Firmware::new(2, None);
        let fadt = firmware.listed(b"FACP");
        let flags = word(fadt, 112);
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        assert_eq!(u16::from_le_bytes([fadt[109], fadt[110]]), NO_VGA | NO_CMOS_CLOCK);
        // Address space I/O, 8 bits, byte access.
        let register = |port: u16| [&[1, 8, 0, 1][..], &u64::from(port).to_le_bytes()].concat();
        assert_eq!(&fadt[116..128], register(0xcf9));
        assert_eq!(fadt[128], 6);
        assert_eq!(&fadt[244..256], register(0x5670));
        assert_eq!(&fadt[256..268], register(0x5671));
        let dsdt = firmware.table(long(fadt, 140), b"DSDT");
        assert!(holds(dsdt, b"_S5_\x12"), "a package");
    }

    #[test]
    fn every_processor_and_the_io_apic_are_listed() {
        for cpus in [1, 3, 254] {
            let firmware = Firmware::new(cpus, None);
            let madt = firmware.listed(b"APIC");
            assert_eq!(word(madt, 36), 0xfee0_0000);
            let (mut ids, mut at) = (Vec::new(), 44);
            while at < madt.len() {
                match madt[at] {
                    0 => {
                        assert_eq!(word(madt, at + 4), 1, "enabled");
                        ids.push(madt[at + 3]);
                    }
                    1 => assert_eq!((word(madt, at + 4), word(madt, at + 8)), (0xfec0_0000, 0)),
                    other => panic!("structure {other}"),
                }
                at += usize::from(madt[at + 1]);
            }
            assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_bus_is_described_with_its_window_and_its_configuration_space() {
        let firmware = Firmware::new(1, Some(Doorbell::Mmio));
        let mcfg = firmware.listed(b"MCFG");
        assert_eq!((long(mcfg, 44), &mcfg[52..56]), (ECAM.start, &[0; 4][..]));
        let fadt = firmware.listed(b"FACP");
        let dsdt = firmware.table(long(fadt, 140), b"DSDT");
        let window = [BAR_WINDOW.start, BAR_WINDOW.end - 1].map(u64::to_le_bytes).concat();
        assert!(holds(dsdt, &window));
        // The UUID as it lies in memory.
        assert!(holds(dsdt, b"\xd0\x37\xc9\xe5\x43\x35\x7a\x4d"));
        // Memory32Fixed: ECAM, and the doorbell when it is in memory.
        assert!(holds(dsdt, &[0x86, 9, 0, 1, 0, 0, 0xa0, 0xfe, 0, 0, 0x10, 0]));
        let doorbell = [0x86, 9, 0, 1, 0, 0xf0, 0xbf, 0xfe, 0, 0x10, 0, 0];
        assert!(holds(dsdt, &doorbell));
        let firmware = Firmware::new(1, Some(Doorbell::Port));
        let fadt = firmware.listed(b"FACP");
        assert!(!holds(firmware.table(long(fadt, 140), b"DSDT"), &doorbell));
    }
}
