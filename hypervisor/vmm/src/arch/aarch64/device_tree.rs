//! The device tree at the start of RAM: what firmware tells a guest elsewhere.
//!
//! Sources: Devicetree Specification 0.4, and the bindings of Linux for what `compatible` names.

use std::ops::Range;

use vm_fdt::{Error, FdtWriter};
use vm_memory::{Bytes, GuestAddress};

use super::contract::{
    BAR_WINDOW, DISTRIBUTOR, DOORBELL_REGISTER, ECAM, ITS, RAM_START, REDISTRIBUTOR_BYTES,
    REDISTRIBUTORS, SERIAL, SERIAL_GSI,
};
use crate::boot::Boot;
use crate::doorbell::Doorbell;
use crate::error::MachineError;

/// The page behind it is left to tests.
const BYTES_MAX: usize = 0x1_0000;

const GIC_PHANDLE: u32 = 1;
const ITS_PHANDLE: u32 = 2;

/// First cell of an interrupt: shared or private.
const SHARED: u32 = 0;
const PRIVATE: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// Secure and non-secure physical, virtual and hypervisor timer; private interrupts count from 16.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// Memory, not relocatable, not prefetchable (IEEE 1275 PCI binding).
const PCI_MEMORY_32: u32 = 0x0200_0000;
/// The UART's clock: what a divisor of 1 divides to 115200 bits a second.
const SERIAL_CLOCK: u32 = 1_843_200;

/// Writes it. `initrd` is where the initial RAM file system of a Linux kernel lies.
///
/// # Errors
/// When the command line is too long, or the RAM does not reach that far.
pub(super) fn write(boot: &Boot<'_>, initrd: Option<Range<u64>>) -> Result<(), MachineError> {
    let tree = tree(boot, initrd)
        .map_err(|error| MachineError::Config(format!("the device tree: {error}")))?;
    if tree.len() > BYTES_MAX {
        return Err(MachineError::Config(format!(
            "the guest's command line is too long: the device tree takes {} bytes, {BYTES_MAX} at most",
            tree.len()
        )));
    }
    boot.memory
        .write_slice(&tree, GuestAddress(RAM_START))
        .map_err(|error| MachineError::Memory(format!("{RAM_START:#x} is not RAM: {error}")))
}

fn tree(boot: &Boot<'_>, initrd: Option<Range<u64>>) -> Result<Vec<u8>, Error> {
    let &Boot { memory_bytes, command_line, cpus, doorbell, .. } = boot;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "pv-msi,reference-machine")?;
    fdt.property_string("model", "PV-MSI reference machine")?;
    cells(&mut fdt, 2, 2)?;
    fdt.property_u32("interrupt-parent", GIC_PHANDLE)?;

    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", command_line)?;
    fdt.property_string("stdout-path", &format!("/{}", serial_name()))?;
    // The BARs have their places: no two of them share a page of the host.
    fdt.property_u32("linux,pci-probe-only", 1)?;
    if let Some(Range { start, end }) = initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(chosen)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_START:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_START, memory_bytes])?;
    fdt.end_node(memory)?;

    processors(&mut fdt, cpus)?;
    interrupt_controller(&mut fdt, cpus)?;
    serial(&mut fdt)?;
    pci(&mut fdt)?;
    if let Some(doorbell) = doorbell {
        service(&mut fdt, doorbell)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn cells(fdt: &mut FdtWriter, address: u32, size: u32) -> Result<(), Error> {
    fdt.property_u32("#address-cells", address)?;
    fdt.property_u32("#size-cells", size)
}

fn processors(fdt: &mut FdtWriter, cpus: u8) -> Result<(), Error> {
    let processors = fdt.begin_node("cpus")?;
    cells(fdt, 1, 0)?;
    for affinity in 0..u32::from(cpus) {
        let processor = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_u32("reg", affinity)?;
        fdt.property_string("enable-method", "psci")?;
        fdt.end_node(processor)?;
    }
    fdt.end_node(processors)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list("compatible", vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()])?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    let timer = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<_> =
        TIMERS.into_iter().flat_map(|timer| [PRIVATE, timer, LEVEL_HIGH]).collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(timer)
}

fn interrupt_controller(fdt: &mut FdtWriter, cpus: u8) -> Result<(), Error> {
    let redistributors = u64::from(cpus).saturating_mul(REDISTRIBUTOR_BYTES);
    let gic = fdt.begin_node(&format!("interrupt-controller@{:x}", DISTRIBUTOR.start))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    let distributor = DISTRIBUTOR.end.saturating_sub(DISTRIBUTOR.start);
    let registers = [DISTRIBUTOR.start, distributor, REDISTRIBUTORS, redistributors];
    fdt.property_array_u64("reg", &registers)?;
    cells(fdt, 2, 2)?;
    fdt.property_null("ranges")?;
    fdt.property_phandle(GIC_PHANDLE)?;
    let its = fdt.begin_node(&format!("msi-controller@{:x}", ITS.start))?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &[ITS.start, ITS.end.saturating_sub(ITS.start)])?;
    fdt.property_phandle(ITS_PHANDLE)?;
    fdt.end_node(its)?;
    fdt.end_node(gic)
}

fn serial_name() -> String {
    format!("serial@{:x}", SERIAL.start)
}

fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let serial = fdt.begin_node(&serial_name())?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL.start, SERIAL.end.saturating_sub(SERIAL.start)])?;
    fdt.property_array_u32("interrupts", &[SHARED, SERIAL_GSI, EDGE_RISING])?;
    fdt.property_u32("clock-frequency", SERIAL_CLOCK)?;
    fdt.end_node(serial)
}

fn pci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let bridge = fdt.begin_node(&format!("pcie@{:x}", ECAM.start))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_array_u64("reg", &[ECAM.start, ECAM.end.saturating_sub(ECAM.start)])?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("linux,pci-domain", 0)?;
    cells(fdt, 3, 2)?;
    // Addresses on the bus are those of the processors.
    let (start_high, start_low) = halves(BAR_WINDOW.start);
    let (size_high, size_low) = halves(BAR_WINDOW.end.saturating_sub(BAR_WINDOW.start));
    let ranges = [PCI_MEMORY_32, start_high, start_low, start_high, start_low, size_high, size_low];
    fdt.property_array_u32("ranges", &ranges)?;
    // A function's device id is its requester id.
    fdt.property_array_u32("msi-map", &[0, ITS_PHANDLE, 0, 0x1_0000])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(bridge)
}

fn service(fdt: &mut FdtWriter, doorbell: Doorbell) -> Result<(), Error> {
    let service = fdt.begin_node("pv-msi")?;
    fdt.property_string("compatible", "pv-msi,pv-msi-1")?;
    match doorbell {
        Doorbell::Mmio => {
            let bytes = DOORBELL_REGISTER.end.saturating_sub(DOORBELL_REGISTER.start);
            fdt.property_array_u64("reg", &[DOORBELL_REGISTER.start, bytes])?;
        }
        Doorbell::Hvc | Doorbell::Port => fdt.property_string("method", "hvc")?,
    }
    fdt.end_node(service)
}

/// The upper and the lower 32 bits.
fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;
    use crate::memory;

    const RAM: u64 = 4 << 20;

    fn boot<'a>(memory: &'a GuestMemoryMmap, doorbell: Option<Doorbell>) -> Boot<'a> {
        Boot { memory, memory_bytes: RAM, command_line: "pairs=7", cpus: 3, doorbell }
    }

    fn tree_of(doorbell: Option<Doorbell>, initrd: Option<Range<u64>>) -> Vec<u8> {
        tree(&boot(&memory::create(RAM).unwrap(), doorbell), initrd).unwrap()
    }

    fn holds(tree: &[u8], text: &str) -> bool {
        tree.windows(text.len()).any(|window| window == text.as_bytes())
    }

    fn holds_words(tree: &[u8], words: [u64; 2]) -> bool {
        let bytes = words.map(u64::to_be_bytes).concat();
        tree.windows(16).any(|window| window == bytes)
    }

    #[test]
    fn the_service_is_announced_as_it_can_be_reached() {
        let hvc = tree_of(Some(Doorbell::Hvc), None);
        assert!(holds(&hvc, "pv-msi,pv-msi-1\0"));
        let mmio = tree_of(Some(Doorbell::Mmio), None);
        assert!(holds(&mmio, "pv-msi,pv-msi-1\0"));
        let register = [DOORBELL_REGISTER.start, 0x1_0000];
        assert!(holds_words(&mmio, register));
        assert!(!holds_words(&hvc, register));
        assert!(!holds(&tree_of(None, None), "pv-msi,pv-msi-1"), "policy off");
    }

    #[test]
    fn memory_processors_and_command_line_are_those_of_the_machine() {
        let tree = tree_of(None, None);
        assert_eq!(tree.get(..4), Some(&0xd00d_feed_u32.to_be_bytes()[..]));
        assert!(holds(&tree, "pairs=7\0"));
        assert!(holds(&tree, "cpu@2\0") && !holds(&tree, "cpu@3\0"));
        assert!(holds_words(&tree, [RAM_START, RAM]));
        assert!(!holds(&tree, "linux,initrd"));
    }

    #[test]
    fn linux_finds_its_first_file_system() {
        let (start, end) = (RAM_START + (2 << 20), RAM_START + (3 << 20));
        let tree = tree_of(None, Some(start..end));
        let property = |value: u64| value.to_be_bytes();
        assert!(holds(&tree, "linux,initrd-start\0linux,initrd-end\0"));
        for value in [start, end] {
            assert!(tree.windows(8).any(|window| window == property(value)));
        }
    }

    #[test]
    fn a_command_line_that_does_not_fit_is_refused() {
        let memory = memory::create(RAM).unwrap();
        let write = |command_line: &str| {
            let boot = boot(&memory, Some(Doorbell::Hvc));
            write(&Boot { command_line, cpus: 16, ..boot }, None)
        };
        assert!(write(&"x".repeat(BYTES_MAX)).is_err());
        assert!(write("a\0b").is_err());
        write(&"x".repeat(60_000)).unwrap();
    }
}
