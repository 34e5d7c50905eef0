//! What can be forged on hosts with VT-d (VT-d specification, section 5.1) or an AMD IOMMU (AMD I/O virtualization specification, section 2.2.5).

use pvmsi_guest::TableMessage;

/// VT-d: the message is remappable, and its index is one of the host's table.
const REMAPPABLE: u64 = 1 << 4;
/// VT-d: a remappable message without a subhandle. Its index is 0x7fff, which no entry of the host has.
const UNKNOWN_HANDLE: TableMessage = TableMessage { address: 0xfeef_fff0, data: 0 };
/// AMD: an index of the function's own table, beyond its vectors.
const UNKNOWN_INDEX: TableMessage = TableMessage { address: 0xfee0_0000, data: 0x7f };

/// Messages that are not the function's own. Not among them: one in VT-d's compatibility format, with a
/// vector of the host. VT-d blocks it, but QEMU's emulation of VT-d passes it on.
pub(crate) fn forgeries(stolen: TableMessage) -> [(&'static str, TableMessage); 3] {
    let outside = TableMessage { address: 0xfed0_0000, data: 0x41 };
    let outside = ("an address outside the interrupt range", outside);
    if stolen.address & REMAPPABLE != 0 {
        [
            ("the remapping handle of another function", stolen),
            ("a handle of nobody", UNKNOWN_HANDLE),
            outside,
        ]
    } else {
        [("the index of another function", stolen), ("an index of nobody", UNKNOWN_INDEX), outside]
    }
}
