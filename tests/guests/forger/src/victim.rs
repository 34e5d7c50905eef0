//! The other function: an NVMe drive whose message is stolen.

use pvmsi_guest::{GuestMessage, Kind, TableMessage, VectorSetup};
use pvmsi_guest_client::ServiceClient;
use pvmsi_guest_runtime::interrupts::FIRST_DEVICE;
use pvmsi_guest_runtime::msi::{self, Route};
use pvmsi_guest_runtime::pci;

use crate::network::table;

const NVME: u32 = 0x01_0802;
/// Beyond the interrupts of the function that forges.
pub(crate) const INTERRUPT: u8 = FIRST_DEVICE + 0x20;
const ENABLE: u16 = 1 << 15;

/// Sets its first vector up, and returns what the host has written into its table.
pub(crate) fn message(client: &mut ServiceClient) -> Result<TableMessage, &'static str> {
    let drive = pci::functions().find(|function| function.class() == NVME);
    let drive = drive.ok_or("no NVMe drive on bus 0")?;
    let (_, control) = table(drive).ok_or("the drive's table is out of reach")?;
    drive.enable();
    let route = |_| Route { vcpu: 0, interrupt: INTERRUPT };
    msi::prepare(drive, 1, route)?;
    drive.write_u16(control, ENABLE);
    let (address, data) = msi::message(0, route(0));
    let setup = VectorSetup { message: Some(GuestMessage { address, data }), masked: false };
    let mut message = None;
    client
        .configure(drive.id(), Kind::MsiX, 1, [setup].into_iter(), |_, answer| {
            message = answer.table_message;
        })
        .map_err(|_| "configure of the drive failed")?;
    message.ok_or("the host does not tell the drive's message")
}
