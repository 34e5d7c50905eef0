//! What can be forged on hosts with a GICv3 ITS behind an SMMU (Arm IHI 0069, chapter 5). The ITS knows who sends: another function's event cannot even be named.

use pvmsi_guest::TableMessage;

/// Where the emulated host has GICD_SETSPI_NSR: a write there raises an interrupt of the host's own.
const SET_SPI: u64 = 0x0800_0040;

/// Messages that are not the function's own.
pub(crate) fn forgeries(stolen: TableMessage) -> [(&'static str, TableMessage); 3] {
    [
        ("an event of another function", TableMessage { data: 64, ..stolen }),
        ("an interrupt of the host", TableMessage { address: SET_SPI, data: 33 }),
        (
            "an address outside the interrupt range",
            TableMessage { address: 0xfed0_0000, data: 0x41 },
        ),
    ]
}
