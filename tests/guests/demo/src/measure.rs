//! The sections without interrupts: set-up, mask and unmask, the register beside the table.
//!
//! Interrupts are off and nothing prints between start and end of a section.

use core::hint::black_box;

use pvmsi_guest::VectorIndex;
use pvmsi_guest_report::{Event, Outcome, Section};
use pvmsi_guest_runtime::mmio::Register;
use pvmsi_guest_runtime::report;

use crate::device::Device;
use crate::load::Registers;
use pvmsi_guest_client::ServiceClient;

/// Sets all vectors up until each can fire, and takes them down again. The function raises nothing.
pub(crate) fn configure(device: &Device, client: Option<&mut ServiceClient>) {
    report::send(&Event::SectionStart(Section::Configure));
    let granted = device.enable(client).and_then(|granted| {
        device.unmask(granted)?;
        Ok(granted)
    });
    report::send(&Event::SectionEnd(Outcome::Configure {
        requested: device.msix.capability().table_size,
        granted: granted.unwrap_or(0),
    }));
    if let Err(error) = granted {
        report::failure(format_args!("{device}: the set-up of all vectors: {error}"));
    }
    device.msix.disable();
}

/// Masks and unmasks, vector after vector.
pub(crate) fn mask_unmask(device: &Device, granted: u16, pairs: u32) {
    let msix = device.msix;
    let mut vector = 0;
    let mut failed = false;
    report::send(&Event::SectionStart(Section::MaskUnmask));
    for _ in 0..pairs {
        failed |= msix.mask(VectorIndex(vector)).is_err();
        failed |= msix.unmask(VectorIndex(vector)).is_err();
        vector = vector.wrapping_add(1);
        if vector == granted {
            vector = 0;
        }
    }
    report::send(&Event::SectionEnd(Outcome::MaskUnmask { pairs }));
    if failed {
        report::failure(format_args!("{device}: a granted vector could not be masked"));
    }
}

/// Writes to the software function's DOORBELL, which lies in the table's page, what stands there already.
pub(crate) fn neighbour(device: &Device, writes: u32) {
    let register: Register<u32> = Registers::new(device.bar0).doorbell;
    let value = register.read();
    report::send(&Event::SectionStart(Section::Neighbour));
    for _ in 0..writes {
        register.write(black_box(value));
    }
    report::send(&Event::SectionEnd(Outcome::Neighbour { writes }));
}
