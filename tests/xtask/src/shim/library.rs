//! The library: one relocatable object in which only the ABI is global.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::object::{Object, Size};
use super::toolchain::Toolchain;
use crate::architecture::Architecture;
use crate::process;
use crate::target::{self, Target};
use crate::workspace::Workspace;

/// `libpvmsi_guest.a` of an architecture.
pub(super) struct Library {
    /// Where it is.
    pub(super) archive: PathBuf,
    /// What it holds.
    pub(super) object: Object,
}

impl Library {
    /// Builds it under the build folder.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub(super) fn build(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        let toolchain = Toolchain::prepare(workspace, architecture)?;
        let name = format!("building the guest half for C kernels on {}", architecture.name());
        process::step(&name, || {
            let crates = compile(workspace, architecture)?;
            let folder = workspace.target.join("shim").join(architecture.name());
            fs::create_dir_all(&folder)?;
            let linker = linker(workspace)?;

            // First everything that the ABI needs, then without what that does not need: of
            // the crate's objects only those that define a name of the ABI are roots.
            let whole = folder.join("whole.o");
            link(&linker, &["--undefined-glob=pvmsi_*".to_owned()], &crates, &whole)?;
            let roots: Vec<String> = Object::read(&whole)?
                .symbols
                .iter()
                .filter(|symbol| symbol.starts_with("pvmsi_"))
                .map(|symbol| format!("--undefined={symbol}"))
                .chain(["--gc-sections".to_owned()])
                .collect();
            let needed = folder.join("needed.o");
            link(&linker, &roots, &whole, &needed)?;

            // memcpy and its like stay inside, so that the library needs nothing.
            let shim = folder.join("pvmsi_guest.o");
            let mut objcopy = toolchain.tool("objcopy");
            objcopy.args(["--wildcard", "--keep-global-symbol=pvmsi_*", "--strip-debug"]);
            for section in [".comment", ".llvmbc", ".llvmcmd"] {
                objcopy.arg(format!("--remove-section={section}"));
            }
            process::run("objcopy", objcopy.arg(&needed).arg(&shim), LIMIT)?;
            let archive = folder.join("libpvmsi_guest.a");
            if archive.exists() {
                fs::remove_file(&archive)?;
            }
            let mut ar = toolchain.tool("ar");
            process::run("ar", ar.arg("rcsD").arg(&archive).arg(&shim), LIMIT)?;
            Ok(Self { archive, object: Object::read(&shim)? })
        })
    }

    /// Links only what some functions of the ABI need, as a freestanding kernel does, and weighs it.
    /// No code calls them: what is weighed is the library's alone.
    ///
    /// # Errors
    /// When a tool is missing or fails.
    pub(super) fn link_with_collection(
        &self,
        workspace: &Workspace,
        architecture: Architecture,
        functions: &[&str],
    ) -> Result<Size> {
        let program = self.archive.with_file_name("minimal");
        let mut gcc = Toolchain::prepare(workspace, architecture)?.tool("gcc");
        gcc.args(["-nostdlib", "-static", "-no-pie"]);
        gcc.arg("-Wl,--gc-sections,--build-id=none,--fatal-warnings,--entry=0");
        gcc.args(functions.iter().map(|function| format!("-Wl,--undefined=pvmsi_{function}")));
        process::run("gcc", gcc.arg(&self.archive).arg("-o").arg(&program), LIMIT)?;
        Ok(Object::read(&program)?.size)
    }
}

/// The archive of the crate and all that it depends on.
fn compile(workspace: &Workspace, architecture: Architecture) -> Result<PathBuf> {
    // Their flags differ from those of other builds.
    let output = workspace.target.join("shim/build");
    let mut command = Target::bare_metal(workspace, architecture)?.cargo_in(&workspace.root);
    command.args(["build", "--quiet", "--locked", "--package", "pvmsi-guest-c"]);
    command.args(["--profile", "shim", "--target-dir"]).arg(&output);
    // With full relocation read-only, the default of some targets, memcpy is called through a
    // global offset table, which kernels and their module loaders do not have. Where a jump table
    // leads, Linux's objtool cannot see in code of this compiler: it gives up on the whole module.
    // `pvmsi_small`: messages in lists are encoded by the code for all numbers, byte by byte.
    command.args([
        "--config",
        r#"target.'cfg(target_os = "none")'.rustflags = ["-Crelro-level=off", "-Cjump-tables=no", "--cfg=pvmsi_small"]"#,
    ]);
    process::run("cargo build of pvmsi-guest-c", &mut command, LIMIT)?;
    Ok(output.join(architecture.bare_metal()).join("shim/libpvmsi_guest_c.a"))
}

/// The linker that comes with the compiler; it knows all architectures.
fn linker(workspace: &Workspace) -> Result<PathBuf> {
    let libraries = target::rustc(workspace, &["--print", "target-libdir"])?;
    let beside = Path::new(libraries.trim()).with_file_name("bin").join("rust-lld");
    if beside.is_file() {
        return Ok(beside);
    }
    process::available("rust-lld")
        .then(|| PathBuf::from("rust-lld"))
        .with_context(|| format!("the Rust toolchain has no linker at {}", beside.display()))
}

fn link(linker: &Path, arguments: &[String], from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new(linker);
    command.args(["-flavor", "gnu", "--relocatable"]).args(arguments);
    process::run("rust-lld", command.arg(from).arg("-o").arg(to), LIMIT)
}

const LIMIT: Duration = Duration::from_secs(600);
