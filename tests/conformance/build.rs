//! Compiles the guest half in C that was written from the specification alone.

fn main() {
    for file in ["reader/reader.c", "reader/reader.h", "reader/layout.c"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // Without std the suite is part of a guest, which has no use for it.
    if std::env::var_os("CARGO_FEATURE_STD").is_none() {
        return;
    }
    // As for a kernel: nothing but the compiler's own headers, and no vector registers.
    cc::Build::new()
        .files(["reader/reader.c", "reader/layout.c"])
        .std("c11")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .flags(["-ffreestanding", "-Wconversion", "-mgeneral-regs-only"])
        .compile("pvmsi_reader");
}
