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
