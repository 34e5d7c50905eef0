//! The guest in C: compiled by a C compiler, linked with the library and nothing else of Rust.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::header;
use super::library::Library;
use super::toolchain::Toolchain;
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::Workspace;

/// Its name beside `pvmsi`.
pub(crate) const GUEST: &str = "pvmsi-c-guest";

/// Builds it; returns where it is.
///
/// # Errors
/// When a tool is missing or fails.
pub(crate) fn build(workspace: &Workspace, architecture: Architecture) -> Result<PathBuf> {
    let toolchain = Toolchain::prepare(workspace, architecture)?;
    let library = Library::build(workspace, architecture)?;
    let elf = library.archive.with_file_name(GUEST);
    let mut command = toolchain.tool("gcc");
    command.current_dir(workspace.root.join("tests/guests/c"));
    command.args(["-std=c11", "-ffreestanding", "-O2", "-g"]);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    command.args([
        "-fno-stack-protector",
        "-fno-pic",
        "-fno-pie",
        "-fno-asynchronous-unwind-tables",
    ]);
    command.args(flags(architecture)).arg("-I").arg(header::folder(workspace));
    command.arg("main.c").args(sources(architecture)).arg(&library.archive);
    command.args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,--fatal-warnings"]);
    command.arg(format!("-Wl,-T,{}.ld", architecture.name())).arg("-o").arg(&elf);
    process::step(&format!("building the guest in C for {}", architecture.name()), || {
        process::run("gcc", &mut command, Duration::from_secs(120))
    })?;
    Ok(elf)
}

fn sources(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::X86_64 => &["x86_64.c", "x86_64.S"],
        Architecture::Aarch64 => &["aarch64.c", "aarch64.S", "gic.c", "device_tree.c"],
    }
}

/// No vector registers: a kernel does not save them, and some hosts do not interpret them.
fn flags(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::X86_64 => {
            &["-mno-red-zone", "-mgeneral-regs-only", "-mno-sse", "-fcf-protection=none"]
        }
        Architecture::Aarch64 => &["-mgeneral-regs-only", "-mno-outline-atomics", "-mstrict-align"],
    }
}
