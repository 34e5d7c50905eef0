//! What the language asks of a program without an operating system.

/// Never reached: `cargo xtask shim` fails when the linked library refers to it.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
