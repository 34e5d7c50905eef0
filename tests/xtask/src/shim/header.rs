//! The header of the guest half for C: generated, compared, compiled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// The folder that C compilers search.
pub(super) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("guest-shim/c/include")
}

/// The header's name.
pub(super) const NAME: &str = "pvmsi_guest.h";

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
    let text = String::from_utf8(text).context("cbindgen writes no UTF-8")?;
    // Its lines end in blanks where a comment has an empty line.
    Ok(text.lines().map(|line| format!("{}\n", line.trim_end())).collect())
}

/// Compiles the header alone with all warnings, as kernels in C and in C++ do.
///
/// # Errors
/// When a compiler has something to say.
pub(super) fn compile(compiler: &str, header: &Path) -> Result<()> {
    for language in [["-x", "c", "-std=c11"], ["-x", "c++", "-std=c++11"]] {
        let mut command = Command::new(compiler);
        command.args(language).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
        command.args(["-ffreestanding", "-fsyntax-only"]).arg(header);
        let what = format!("{compiler} {}", language.join(" "));
        process::run(&what, &mut command, Duration::from_secs(60))?;
    }
    Ok(())
}
