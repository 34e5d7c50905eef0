//! What can be forged on hosts with a GICv3 ITS behind an SMMU (Arm IHI 0069, chapter 5). The ITS knows who sends: another function's event cannot even be named.

use pvmsi_guest::TableMessage;

/// Where the emulated host has GITS_TRANSLATER: its functions know it by another address, through the SMMU.
const TRANSLATER: u64 = 0x0809_0040;

/// Messages that are not the function's own.
pub(crate) fn forgeries(stolen: TableMessage) -> [(&'static str, TableMessage); 3] {
    [
        ("an event of another function", TableMessage { data: 64, ..stolen }),
        ("the host's own way to its interrupts", TableMessage { address: TRANSLATER, data: 0 }),
        (
            "an address outside the interrupt range",
            TableMessage { address: 0xfed0_0000, data: 0x41 },
        ),
    ]
}
