//! The guests' build script: links at a fixed address, so that the machine can load a guest without relocating.

fn main() {
    println!("cargo::rerun-if-changed=../link.rs");
    let arguments: &[&str] = match std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        // The first is aarch64-rt's, the second the runtime's.
        Ok("aarch64") => &["-Timage.ld", "-Tmemory.ld"],
        _ => &["--no-pie", "--image-base=0x200000"],
    };
    for argument in arguments {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
