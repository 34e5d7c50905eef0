//! The header of the guest half for C: generated and compiled.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::toolchain::Toolchain;
use crate::process;
use crate::workspace::Workspace;

/// Where C compilers look for it.
pub(super) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("guest-shim/c/include")
}

/// The checked-in header.
pub(super) fn path(workspace: &Workspace) -> PathBuf {
    folder(workspace).join("pvmsi_guest.h")
}

/// What the header must say.
///
/// # Errors
/// When the crate cannot be read.
pub(super) fn generate(workspace: &Workspace) -> Result<String> {
    let package = workspace.root.join("guest-shim/c");
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml"))
        .map_err(anyhow::Error::msg)
        .context("guest-shim/c/cbindgen.toml")?;
    let bindings = cbindgen::Builder::new()
        .with_crate(&package)
        .with_config(config)
        .generate()
        .context("cbindgen cannot read guest-shim/c")?;
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).context("cbindgen writes no UTF-8")
}

/// Compiles the header alone with all warnings, as kernels in C and in C++ do.
///
/// # Errors
/// When a compiler has something to say.
pub(super) fn compile(toolchain: &Toolchain, header: &Path) -> Result<()> {
    for (compiler, language) in [("gcc", ["-xc", "-std=c11"]), ("g++", ["-xc++", "-std=c++11"])] {
        let mut command = toolchain.tool(compiler);
        command.args(language).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
        command.args(["-ffreestanding", "-fsyntax-only"]).arg(header);
        process::run(&format!("{compiler} of the header"), &mut command, LIMIT)?;
    }
    Ok(())
}

/// Compiles the header as kernels do that have no standard headers: with the option that the README names, in GNU C, where `linux` is a macro, and with nothing but a header of types that stands for the kernel's.
///
/// # Errors
/// When the compiler has something to say, or the README names no option.
pub(super) fn compile_with_types(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    const OPTION: &str = "-DPVMSI_TYPES_HEADER=";
    let text = fs::read_to_string(workspace.root.join("guest-shim/c/README.md"))?;
    let option = text.split_once(OPTION).and_then(|(_, rest)| rest.split('`').next());
    // Without the quotes of the shell.
    let option = option.and_then(|option| option.strip_prefix('\'')?.strip_suffix('\''));
    let option = option.context("guest-shim/c/README.md names no header of types")?;
    let folder = workspace.target.join("shim/types");
    let header = folder.join(option.trim_matches(['"', '<', '>']));
    fs::create_dir_all(header.parent().unwrap_or(&folder))?;
    fs::write(&header, TYPES)?;
    for standard in ["-std=gnu11", "-std=c11"] {
        let mut command = toolchain.tool("gcc");
        command.args(["-xc", standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-nostdinc"]);
        command.arg(format!("{OPTION}{option}")).arg("-I").arg(&folder);
        command.args(["-ffreestanding", "-fsyntax-only"]).arg(path(workspace));
        process::run("gcc of the header with a kernel's types", &mut command, LIMIT)?;
    }
    Ok(())
}

/// What a kernel's header of types defines, as far as the header needs it.
const TYPES: &str = "\
typedef _Bool bool;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef int int32_t;
";

/// Compiles the examples in the README.
///
/// # Errors
/// When a compiler has something to say, or there is no example.
pub(super) fn compile_examples(workspace: &Workspace, toolchain: &Toolchain) -> Result<()> {
    let text = fs::read_to_string(workspace.root.join("guest-shim/c/README.md"))?;
    let examples: String = text
        .split("```c\n")
        .skip(1)
        .filter_map(|rest| rest.split_once("```").map(|(example, _)| example))
        .collect();
    if examples.is_empty() {
        bail!("guest-shim/c/README.md has no example");
    }
    let source = workspace.target.join("shim/example.c");
    fs::write(&source, examples)?;
    let mut command = toolchain.tool("gcc");
    command.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffreestanding"]);
    command.arg("-I").arg(folder(workspace)).arg("-fsyntax-only").arg(&source);
    process::run("gcc of the example", &mut command, LIMIT)
}

const LIMIT: Duration = Duration::from_secs(60);
