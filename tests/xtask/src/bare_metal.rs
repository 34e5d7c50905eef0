//! Makes the bare-metal target of the guests available.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::debian::{self, Apt};
use crate::process;
use crate::workspace::{Workspace, cargo_in};

/// The target of guests that run without an operating system. Soft-float.
pub(crate) const TARGET: &str = "x86_64-unknown-none";

/// Suites that may hold the sources of a recent stable compiler.
const RUST_SUITES: &[&str] = &["trixie-backports", "testing", "sid"];

/// Where `core` and `alloc` for the bare-metal target come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Source {
    /// `rustup target add`.
    Rustup,
    /// Built from Debian's `rust-src` of exactly the compiler's version.
    Debian,
}

/// The bare-metal target, ready for cargo.
pub(crate) struct BareMetal {
    /// Where its libraries are, unless the toolchain has them.
    sysroot: Option<PathBuf>,
}

impl BareMetal {
    /// Takes the first origin that works, unless the user has forced one.
    ///
    /// # Errors
    /// When none works; the message names what was tried.
    pub(crate) fn prepare(workspace: &Workspace) -> Result<Self> {
        match workspace.source {
            Some(Source::Rustup) => Self::from_rustup(workspace),
            Some(Source::Debian) => Self::from_debian(workspace),
            None => Self::from_rustup(workspace).or_else(|rustup| {
                eprintln!("    not from rustup ({rustup:#}); building it from Debian's sources");
                Self::from_debian(workspace)
                    .with_context(|| format!("no bare-metal target: rustup: {rustup:#}; Debian"))
            }),
        }
    }

    /// Cargo in a folder, able to build for [`TARGET`].
    pub(crate) fn cargo_in(&self, folder: &Path) -> Command {
        let mut command = cargo_in(folder);
        // They would replace the flags of the target.
        command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        if let Some(sysroot) = &self.sysroot {
            command.env(
                "CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS",
                format!("--sysroot {}", sysroot.display()),
            );
        }
        command
    }

    fn from_rustup(workspace: &Workspace) -> Result<Self> {
        let libraries = rustc(workspace, &["--print", "target-libdir", "--target", TARGET])?;
        if Path::new(libraries.trim()).is_dir() {
            return Ok(Self { sysroot: None });
        }
        if !process::available("rustup") {
            bail!("rustup is not installed");
        }
        process::step(&format!("rustup target add {TARGET}"), || {
            let mut command = Command::new("rustup");
            command.args(["--quiet", "target", "add", TARGET]).current_dir(&workspace.root);
            process::run("rustup target add", &mut command, Duration::from_secs(120))
        })?;
        Ok(Self { sysroot: None })
    }

    fn from_debian(workspace: &Workspace) -> Result<Self> {
        let release = release(workspace)?;
        let sysroot = workspace.target.join("sysroot").join(&release);
        if sysroot.to_string_lossy().contains(char::is_whitespace) {
            bail!("the build folder must have a path without spaces: {}", sysroot.display());
        }
        let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
        if !libraries.is_dir() {
            let work = workspace.target.join("sysroot/work");
            fs::create_dir_all(&work)?;
            let library = process::step(
                &format!("fetching the sources of Rust {release} from Debian"),
                || fetch_library(&work, &release),
            )?;
            process::step(&format!("building core and alloc for {TARGET}"), || {
                build_library(&work, &library, &libraries)
            })?;
        }
        Ok(Self { sysroot: Some(sysroot) })
    }
}

/// Downloads the standard library's sources and returns their folder.
fn fetch_library(work: &Path, release: &str) -> Result<PathBuf> {
    let library = work.join(format!("rust-{release}"));
    if library.join("library/Cargo.lock").is_file() {
        return Ok(library);
    }
    let apt = Apt::update(work, RUST_SUITES)?;
    let wanted = format!("{release}+");
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| version.starts_with(&wanted))
        .with_context(|| {
            format!(
                "Debian has no rust-src {release} in {}; install the target by other means, for \
                 example: rustup target add {TARGET}",
                RUST_SUITES.join(", ")
            )
        })?;
    let package = apt.download(&format!("rust-src={version}"))?;
    let unpacked = work.join("unpacked");
    debian::unpack(&package, &unpacked, &[&format!("./usr/src/rustc-{release}/library/*")])?;
    fs::rename(unpacked.join(format!("usr/src/rustc-{release}")), &library)
        .context("rust-src holds no library folder")?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_file(&package)?;
    Ok(library)
}

/// Compiles `core`, `alloc` and `compiler_builtins`, as a by-product of an empty crate.
fn build_library(work: &Path, sources: &Path, libraries: &Path) -> Result<()> {
    let package = work.join("empty");
    fs::create_dir_all(package.join("src"))?;
    fs::write(package.join("src/lib.rs"), "#![no_std]\n")?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n",
    )?;
    let target = work.join("target");
    let mut command = cargo_in(&package);
    command
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .args(["-Zbuild-std=core,alloc,compiler_builtins"])
        .args(["-Zbuild-std-features=compiler-builtins-mem"])
        // The stable compiler builds its own library with these; nothing else is built with them.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", sources.join("library"))
        .env("CARGO_TARGET_DIR", &target)
        // As rustup's: guests may be linked with link-time optimisation, which needs it.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    process::run("cargo build of core and alloc", &mut command, Duration::from_secs(600))?;

    // Complete or not there at all: the folder's presence is the mark of success.
    let partial = libraries.with_extension("partial");
    fs::create_dir_all(&partial)?;
    for entry in fs::read_dir(target.join(TARGET).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".rlib") && !name.starts_with("libempty-") {
            fs::copy(&path, partial.join(&*name))?;
        }
    }
    fs::rename(&partial, libraries)?;
    fs::remove_dir_all(&target)?;
    Ok(())
}

/// The compiler's version, as in "1.95.0".
fn release(workspace: &Workspace) -> Result<String> {
    let text = rustc(workspace, &["--version", "--verbose"])?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("rustc does not tell its release")
}

fn rustc(workspace: &Workspace, arguments: &[&str]) -> Result<String> {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(program)
        .args(arguments)
        .current_dir(&workspace.root)
        .stdin(Stdio::null())
        .output()
        .context("cannot start rustc")?;
    if !output.status.success() {
        bail!("rustc {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
