//! The interrupt controllers that KVM emulates: the routes of their pins, and their state at power-on.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_irq_routing_entry, kvm_irqchip,
};
use kvm_ioctls::VmFd;

/// Pins of the I/O APIC, and the first GSI that is free for messages.
pub(crate) const PINS: u32 = 24;
const PIC_PINS: u32 = 8;

/// The routes that KVM itself installs for the pins; they are part of every routing table.
pub(crate) fn base_routes() -> Vec<kvm_irq_routing_entry> {
    let mut routes = Vec::new();
    for gsi in 0..PINS {
        if gsi < PIC_PINS {
            routes.push(route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi));
        } else if let Some(pin) = gsi.checked_sub(PIC_PINS).filter(|&pin| pin < PIC_PINS) {
            routes.push(route(gsi, KVM_IRQCHIP_PIC_SLAVE, pin));
        }
        routes.push(route(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    routes
}

fn route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

/// The state of PICs and I/O APIC after their creation, to go back to.
pub(crate) struct PowerOnState(Vec<kvm_irqchip>);

impl PowerOnState {
    /// Reads it from a machine that has not run.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn read(vm: &VmFd) -> Result<Self, kvm_ioctls::Error> {
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        chips
            .into_iter()
            .map(|chip_id| {
                let mut chip = kvm_irqchip { chip_id, ..Default::default() };
                vm.get_irqchip(&mut chip).map(|()| chip)
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Brings the controllers back to it.
    ///
    /// # Errors
    /// KVM's.
    pub(crate) fn restore(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        self.0.iter().try_for_each(|chip| vm.set_irqchip(chip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_its_routes() {
        let routes = base_routes();
        assert_eq!(routes.len(), 24 + 16);
        assert!((0..PINS).all(|gsi| routes.iter().any(|route| route.gsi == gsi)));
    }
}
