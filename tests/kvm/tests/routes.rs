//! KVM's routing table as `KvmRoutes` has it: the pins of x86_64's interrupt controllers, which are the VMM's own, its limits, and a table that is full.
#![cfg(target_arch = "x86_64")]

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip,
};
use kvm_ioctls::{Kvm, VmFd};
use pvmsi_hypervisor::{Gsi, KvmRoutes, KvmRoutesError, Route, RouteChange, Routes, RoutesError};
use pvmsi_kvm_tests::message;

/// Pins of KVM's I/O APIC.
const PINS: u32 = 24;
/// KVM's limit (`KVM_MAX_IRQ_ROUTES`), and what its default pins take of it.
const ENTRIES: u16 = 4096;
const DEFAULT_ENTRIES: u16 = 40;

/// A VM with the interrupt controllers that KVM emulates.
fn vm() -> Arc<VmFd> {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    vm.create_irq_chip().unwrap();
    Arc::new(vm)
}

fn to(gsi: Gsi) -> RouteChange {
    RouteChange { gsi, route: Route { message: message(0), device_id: None } }
}

/// The pins that are seen high: of the PICs as one number, of the I/O APIC.
fn high(vm: &VmFd) -> (u16, u32) {
    let chip = |chip_id| {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).unwrap();
        chip
    };
    let (master, slave) = (chip(KVM_IRQCHIP_PIC_MASTER), chip(KVM_IRQCHIP_PIC_SLAVE));
    let ioapic = chip(KVM_IRQCHIP_IOAPIC);
    // SAFETY: KVM has filled the state of the chip that was asked for.
    let pics = unsafe { [master.chip.pic.irr, slave.chip.pic.irr] };
    // SAFETY: as above.
    let ioapic = unsafe { ioapic.chip.ioapic.irr };
    (u16::from_le_bytes(pics), ioapic)
}

/// What each GSI of the pins, raised and lowered, does to the controllers.
fn effects(vm: &VmFd) -> Vec<(u16, u32)> {
    let mut before = high(vm);
    (0..PINS)
        .map(|gsi| {
            vm.set_irq_line(gsi, true).unwrap();
            let now = high(vm);
            let effect = (now.0 & !before.0, now.1 & !before.1);
            vm.set_irq_line(gsi, false).unwrap();
            before = high(vm);
            effect
        })
        .collect()
}

#[test]
fn the_vmms_pins_work_as_kvm_has_set_them_up() {
    let kvms_own = effects(&vm());
    assert_eq!(kvms_own[4], (1 << 4, 1 << 4), "the serial port's");
    assert_eq!((kvms_own[9], kvms_own[20]), ((1 << 9, 1 << 9), (0, 1 << 20)));

    let with = |base| {
        let vm = vm();
        let routes = KvmRoutes::new(Arc::clone(&vm), base, PINS..).unwrap();
        let gsis = routes.allocate(1).unwrap();
        routes.install(&[to(gsis[0])]).unwrap();
        effects(&vm)
    };
    assert_eq!(with(KvmRoutes::default_pins(PINS)), kvms_own);
    assert_eq!(with(Vec::new()), [(0, 0); 24], "what an empty base does");
}

#[test]
fn a_full_table_has_all_routes_and_no_more_gsis() {
    let vm = vm();
    let routes = KvmRoutes::new(vm, KvmRoutes::default_pins(PINS), PINS..).unwrap();
    let gsis = routes.allocate(ENTRIES).unwrap();
    assert_eq!(gsis.len(), usize::from(ENTRIES - DEFAULT_ENTRIES), "fewer than asked for");
    assert!(matches!(routes.allocate(1), Err(RoutesError::Exhausted)));
    let all: Vec<_> = gsis.iter().map(|&gsi| to(gsi)).collect();
    routes.install(&all).unwrap();
    routes.free(&gsis[..3]);
    assert_eq!(routes.allocate(4).unwrap().len(), 3);
}

#[test]
fn a_table_that_kvm_would_not_take_is_refused_at_once() {
    let vm = vm();
    let refused = |gsis: std::ops::Range<u32>| {
        KvmRoutes::new(Arc::clone(&vm), KvmRoutes::default_pins(PINS), gsis).unwrap_err()
    };
    let (entries, limit) = (4097, u64::from(ENTRIES));
    let most = PINS + u32::from(ENTRIES - DEFAULT_ENTRIES);
    assert_eq!(refused(PINS..most + 1), KvmRoutesError::TooLarge { entries, limit });
    assert_eq!(refused(23..most), KvmRoutesError::Overlap(23));
    KvmRoutes::new(Arc::clone(&vm), KvmRoutes::default_pins(PINS), PINS..most).unwrap();
}
