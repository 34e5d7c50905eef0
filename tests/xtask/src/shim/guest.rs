//! The guests in C: compiled by a C compiler. One is linked with the library and nothing else of Rust, the other with nothing of Rust at all.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::header;
use super::library::Library;
use super::toolchain::Toolchain;
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::Workspace;

/// The name of the guest on `guest-shim/c`, beside `pvmsi`.
pub(crate) const GUEST: &str = "pvmsi-c-guest";
/// The name of the guest on the guest half that was written from the specification alone.
pub(crate) const READERS_GUEST: &str = "pvmsi-reader-guest";

/// Builds them; returns their names and where they are.
///
/// # Errors
/// When a tool is missing or fails.
pub(crate) fn build(
    workspace: &Workspace,
    architecture: Architecture,
) -> Result<[(&'static str, PathBuf); 2]> {
    let library = Library::build(workspace, architecture)?;
    let name = architecture.name();
    let program = |guest, sources: &[PathBuf]| {
        let elf = library.archive.with_file_name(guest);
        compile(workspace, architecture, sources, &elf)?;
        Ok::<_, anyhow::Error>((guest, elf))
    };
    let service = format!("{name}_service.c").into();
    let platform = format!("reader_{name}.c").into();
    Ok([
        program(GUEST, &["main.c".into(), service, library.archive.clone()])?,
        program(READERS_GUEST, &["reader_guest.c".into(), platform, READER.into()])?,
    ])
}

/// The guest half of [`READERS_GUEST`], from `tests/guests/c`.
const READER: &str = "../../conformance/reader/reader.c";

/// A guest from its own sources and those of the machine.
fn compile(
    workspace: &Workspace,
    architecture: Architecture,
    sources: &[PathBuf],
    elf: &Path,
) -> Result<()> {
    let toolchain = Toolchain::prepare(workspace, architecture)?;
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
    command.arg("software.c").args(machine(architecture)).args(sources);
    command.args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none,--fatal-warnings"]);
    command.arg(format!("-Wl,-T,{}.ld", architecture.name())).arg("-o").arg(elf);
    let guest = elf.file_name().unwrap_or_default().display();
    process::step(&format!("building {guest} for {}", architecture.name()), || {
        process::run("gcc", &mut command, Duration::from_secs(120))
    })
}

fn machine(architecture: Architecture) -> &'static [&'static str] {
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
