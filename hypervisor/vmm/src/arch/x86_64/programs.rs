//! Hand-made guests for the tests of the machine; each ends the run itself unless it says otherwise.

/// The page that is left to tests.
pub(crate) const TEST_PAGE: u64 = 0x8000;

/// Ends the run with status 7.
pub(crate) fn exit_7() -> Vec<u8> {
    // mov al, 7; out 0xf4, al; hlt
    vec![0xb0, 7, 0xe6, 0xf4, 0xf4]
}

/// Does what KVM cannot go on from.
pub(crate) fn stuck() -> Vec<u8> {
    // ud2, without an IDT: triple fault.
    vec![0x0f, 0x0b]
}

/// Writes "hi" to the serial port: three exits with the last one.
pub(crate) fn hi() -> Vec<u8> {
    // mov dx, 0x3f8; mov al, 'h'; out dx, al; mov al, 'i'; out dx, al; xor al, al; out 0xf4, al
    vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'h', 0xee, 0xb0, b'i', 0xee, 0x30, 0xc0, 0xe6, 0xf4]
}

/// Counts the 64-bit word at the start of the test page up, for ever.
pub(crate) fn count() -> Vec<u8> {
    // l: inc qword [0x8000]; jmp l
    vec![0x48, 0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xeb, 0xf6]
}

/// Resets the machine until it has started three times, counted in the test page.
pub(crate) fn reset_twice() -> Vec<u8> {
    vec![
        0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // inc dword [0x8000]
        0x83, 0x3c, 0x25, 0x00, 0x80, 0x00, 0x00, 0x03, // cmp dword [0x8000], 3
        0x74, 0x08, // je done
        0x66, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, // out 0xcf9, 6
        0xf4, // hlt
        0x30, 0xc0, 0xe6, 0xf4, // done: exit 0
    ]
}

/// Loops for ever.
pub(crate) fn spin() -> Vec<u8> {
    // jmp .
    vec![0xeb, 0xfe]
}

/// Stores what a load from the last MiB of the BARs' window finds in the test page.
pub(crate) fn load_from_nowhere() -> Vec<u8> {
    vec![
        0xb9, 0x00, 0x00, 0x00, 0xfe, // mov ecx, 0xfe000000
        0x48, 0x8b, 0x01, // mov rax, [rcx]
        0x48, 0x89, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, // mov [0x8000], rax
        0x30, 0xc0, 0xe6, 0xf4,
    ]
}
