//! Hand-made guests for the tests of the machine; each ends the run itself unless it says otherwise.

/// The page that is left to tests.
pub(crate) const TEST_PAGE: u64 = 0x4001_0000;

/// The bytes of instructions.
pub(super) fn code(instructions: &[u32]) -> Vec<u8> {
    instructions.iter().flat_map(|instruction| instruction.to_le_bytes()).collect()
}

/// A Linux kernel, as far as its header goes: `text_offset`, `image_size`, `flags`; it starts with
/// the code.
pub(super) fn image(header: [u64; 3], code: &[u8]) -> Vec<u8> {
    // b .+64
    let mut image = vec![0x10, 0, 0, 0x14, 0, 0, 0, 0];
    for word in header.into_iter().chain([0; 3]) {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"ARM\x64\0\0\0\0");
    image.extend(code);
    image
}

/// Ends the run with status 7.
pub(crate) fn exit_7() -> Vec<u8> {
    code(&[
        0x5280_00e1, // mov w1, #0x7
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_0401, // str w1, [x0, #4]
        0x1400_0000, // b .
    ])
}

/// Does what KVM cannot go on from: stores a pair where no memory is.
pub(crate) fn stuck() -> Vec<u8> {
    code(&[
        0xa900_0821, // stp x1, x2, [x1]
        0x1400_0000, // b .
    ])
}

/// Writes "hi" to the serial port: three exits with the last one.
pub(crate) fn hi() -> Vec<u8> {
    code(&[
        0xd2a1_2000, // mov x0, #0x9000000
        0x5280_0d01, // mov w1, #0x68
        0x3900_0001, // strb w1, [x0]
        0x5280_0d21, // mov w1, #0x69
        0x3900_0001, // strb w1, [x0]
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ])
}

/// Counts the 64-bit word at the start of the test page up, for ever.
pub(crate) fn count() -> Vec<u8> {
    code(&[
        0xd2a8_0020, // mov x0, #0x40010000
        0xf940_0001, // ldr x1, [x0]
        0x9100_0421, // add x1, x1, #0x1
        0xf900_0001, // str x1, [x0]
        0x17ff_fffd, // b .-12
    ])
}

/// Resets the machine by PSCI until it has started three times, counted in the test page.
pub(crate) fn reset_twice() -> Vec<u8> {
    code(&[
        0xd2a8_0022, // mov x2, #0x40010000
        0xb940_0041, // ldr w1, [x2]
        0x1100_0421, // add w1, w1, #0x1
        0xb900_0041, // str w1, [x2]
        0x7100_0c3f, // cmp w1, #0x3
        0x5400_00a0, // b.eq .+20
        0x52b0_8000, // mov w0, #0x84000000
        0x7280_0120, // movk w0, #0x9
        0xd400_0002, // hvc #0x0
        0x1400_0000, // b .
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ])
}

/// Loops for ever.
pub(crate) fn spin() -> Vec<u8> {
    code(&[0x1400_0000]) // b .
}

/// Stores what a load from the last MiB of the BARs' window finds in the test page.
pub(crate) fn load_from_nowhere() -> Vec<u8> {
    code(&[
        0xd2a7_de00, // mov x0, #0x3ef00000
        0xf940_0001, // ldr x1, [x0]
        0xd2a8_0022, // mov x2, #0x40010000
        0xf900_0041, // str x1, [x2]
        0xd2a1_4020, // mov x0, #0xa010000
        0xb900_041f, // str wzr, [x0, #4]
        0x1400_0000, // b .
    ])
}
