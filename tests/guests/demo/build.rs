//! Links a guest at a fixed address, so that the machine can load it without relocating.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bins=--no-pie");
    println!("cargo::rustc-link-arg-bins=--image-base=0x200000");
}
