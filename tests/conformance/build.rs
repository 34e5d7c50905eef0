//! Compiles the guest halves in C: the one that was written from the specification alone, and the wire layer of the Linux module.

fn main() {
    const LINUX: &str = "../../guest-shim/linux";
    for file in ["reader/reader.c", "reader/reader.h", "reader/layout.c", "linux"] {
        println!("cargo::rerun-if-changed={file}");
    }
    for file in ["pvmsi_wire.c", "pvmsi_wire.h"] {
        println!("cargo::rerun-if-changed={LINUX}/{file}");
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
    // As the kernel compiles it. What C leaves undefined, an offset outside an array say, ends the
    // process.
    cc::Build::new()
        .file(format!("{LINUX}/pvmsi_wire.c"))
        .file("linux/header.c")
        .include(LINUX)
        .include("linux/include")
        .std("gnu11")
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .flags(["-ffreestanding", "-Wconversion", "-mgeneral-regs-only"])
        .flags(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
        .compile("pvmsi_wire");
}
