//! Lets guests link by this folder's linker scripts.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=memory.ld");
    if let Ok(folder) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo::rustc-link-search={folder}");
    }
}
