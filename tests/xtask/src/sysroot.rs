//! The standard library for targets that the toolchain lacks, built from Debian's sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Apt};
use crate::process;
use crate::workspace::{Workspace, cargo_in};

/// Suites that may hold the sources of a recent stable compiler.
const RUST_SUITES: &[&str] = &["trixie-backports", "testing", "sid"];

/// How much of the standard library a target has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Libraries {
    /// `core` and `alloc`.
    Core,
    /// `std`, and what test programs need.
    Std,
}

impl Libraries {
    /// Crates and features as cargo's `build-std` takes them.
    fn build_std(self) -> (&'static str, &'static str) {
        match self {
            Self::Core => ("core,alloc,compiler_builtins", "compiler-builtins-mem"),
            Self::Std => ("std,panic_unwind,test", "backtrace,panic-unwind"),
        }
    }
}

/// Builds a target's libraries unless that was done before; the folder that `--sysroot` takes.
///
/// # Errors
/// When Debian lacks the sources of the release, or a build fails.
pub(crate) fn build(
    workspace: &Workspace,
    release: &str,
    triple: &str,
    libraries: Libraries,
) -> Result<PathBuf> {
    let sysroot = workspace.target.join("sysroot").join(release);
    if sysroot.to_string_lossy().contains(char::is_whitespace) {
        bail!("the build folder must have a path without spaces: {}", sysroot.display());
    }
    let folder = sysroot.join("lib/rustlib").join(triple).join("lib");
    if !folder.is_dir() {
        let work = workspace.target.join("sysroot/work");
        fs::create_dir_all(&work)?;
        let sources =
            process::step(&format!("fetching the sources of Rust {release} from Debian"), || {
                fetch(&work, release)
            })?;
        process::step(&format!("building the standard library for {triple}"), || {
            compile(&work, &sources, triple, libraries, &folder)
        })?;
    }
    Ok(sysroot)
}

/// Downloads the standard library's sources and returns the folder that holds `library`.
fn fetch(work: &Path, release: &str) -> Result<PathBuf> {
    let sources = work.join(format!("rust-{release}"));
    if sources.join("library/Cargo.lock").is_file() {
        return Ok(sources);
    }
    let apt = Apt::update(work, None, RUST_SUITES)?;
    let wanted = format!("{release}+");
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| version.starts_with(&wanted))
        .with_context(|| {
            format!("Debian has no rust-src {release} in {}", RUST_SUITES.join(", "))
        })?;
    let package = apt.download(&format!("rust-src={version}"))?;
    let unpacked = work.join("unpacked");
    debian::unpack(&package, &unpacked, &[&format!("./usr/src/rustc-{release}/library/*")])?;
    fs::rename(unpacked.join(format!("usr/src/rustc-{release}")), &sources)
        .context("rust-src holds no library folder")?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&package)?;
    Ok(sources)
}

/// Compiles the libraries, as a by-product of an empty crate.
fn compile(
    work: &Path,
    sources: &Path,
    triple: &str,
    libraries: Libraries,
    folder: &Path,
) -> Result<()> {
    let package = work.join("empty");
    fs::create_dir_all(package.join("src"))?;
    fs::write(package.join("src/lib.rs"), "#![no_std]\n")?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n",
    )?;
    let target = work.join("target");
    let (crates, features) = libraries.build_std();
    let mut command = cargo_in(&package);
    command
        .args(["build", "--quiet", "--release", "--target", triple])
        .arg(format!("-Zbuild-std={crates}"))
        .arg(format!("-Zbuild-std-features={features}"))
        // The stable compiler builds its own library with these; nothing else is built with them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", sources.join("library"))
        .env("CARGO_TARGET_DIR", &target)
        // As rustup's: guests may be linked with link-time optimisation, which needs it.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run("cargo build of the library", &mut command, Duration::from_secs(900))?;

    // Complete or not there at all: the folder's presence is the mark of success.
    let partial = folder.with_extension("partial");
    fs::create_dir_all(&partial)?;
    for entry in fs::read_dir(target.join(triple).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".rlib") && !name.starts_with("libempty-") {
            fs::copy(&path, partial.join(&*name))?;
        }
    }
    fs::rename(&partial, folder)?;
    fs::remove_dir_all(&target)?;
    Ok(())
}
