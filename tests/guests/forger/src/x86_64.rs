//! What can be forged on hosts with VT-d (VT-d specification, section 5.1).

use pvmsi_guest::TableMessage;

/// A remappable message without a subhandle: its index is 0x7fff, which no entry of the host has.
const UNKNOWN_HANDLE: u64 = 0xfeef_fff0;

/// Messages that are not the function's own. Not among them: one in compatibility format, with a
/// vector of the host. VT-d blocks it, but QEMU's emulation of VT-d passes it on.
pub(crate) fn forgeries(stolen: TableMessage) -> [(&'static str, TableMessage); 3] {
    [
        ("the remapping handle of another function", stolen),
        ("a handle of nobody", TableMessage { address: UNKNOWN_HANDLE, data: 0 }),
        (
            "an address outside the interrupt range",
            TableMessage { address: 0xfed0_0000, data: 0x41 },
        ),
    ]
}
