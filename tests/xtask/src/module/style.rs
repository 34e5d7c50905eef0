//! The sources, and what the kernel's checkpatch.pl says of them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::root::Root;
use crate::architecture::Architecture;
use crate::check::Check;
use crate::debian::{self, Apt};
use crate::process;
use crate::workspace::Workspace;

/// The package with checkpatch.pl: that of the oldest kernel that the module is clean for. Newer
/// ones demand helpers that older kernels lack.
const PACKAGE: &str = "linux-source-6.12";

/// Its suites.
const SUITES: &[&str] = &["trixie", "trixie-security"];

/// Bound of the check.
const LIMIT: Duration = Duration::from_secs(300);

/// The folder of the module's sources.
pub(super) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.root.join("guest-shim/linux")
}

/// The module's sources and headers, in order.
///
/// # Errors
/// When the folder cannot be read.
pub(super) fn sources(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder(workspace))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c" || extension == "h") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// `checkpatch.pl --strict`, on every file.
///
/// # Errors
/// When the script cannot be had.
pub(super) fn check(workspace: &Workspace) -> Result<Check> {
    let root = Root::prepare(workspace)?;
    let scripts = Path::new("/usr/share/checkpatch");
    if !root.path(&scripts.join("checkpatch.pl")).is_file() {
        process::step("fetching the kernel's source package, for checkpatch.pl (150 MB)", || {
            fetch(workspace, &root.path(scripts))
        })?;
    }
    let place = root.path(Path::new("/build/style"));
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    let mut complaints = String::new();
    for file in sources(workspace)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::copy(&file, place.join(&name))?;
        let mut command = root.command("perl");
        command.arg(scripts.join("checkpatch.pl"));
        command.args(["--no-tree", "--strict", "--terse", "--summary-file", "--color=never"]);
        if name.ends_with("_trace.h") {
            // TRACE_EVENT is written as in every trace header of the kernel.
            command.args(["--ignore", "OPEN_ENDED_LINE,PARENTHESIS_ALIGNMENT"]);
        }
        command.arg("--file").arg(format!("/build/style/{name}"));
        let (status, text) = process::capture("checkpatch.pl", &mut command, LIMIT, false)?;
        if !status.success() {
            complaints.push_str(&text);
        }
    }
    let result = if complaints.is_empty() { Ok(()) } else { Err(complaints) };
    Ok(Check::new("checkpatch.pl --strict finds nothing", result))
}

/// Puts the script and its word lists into a folder.
fn fetch(workspace: &Workspace, folder: &Path) -> Result<()> {
    let apt = Apt::update(
        &workspace.target.join("module/packages/source"),
        Some(Architecture::native()?),
        SUITES,
    )?;
    let package = apt.download(PACKAGE)?;
    let unpacked = workspace.target.join("module/source");
    debian::unpack(&package, &unpacked, &["*.tar.xz"])?;
    fs::remove_file(package)?;
    let archive = unpacked.join("usr/src").join(format!("{PACKAGE}.tar.xz"));
    fs::create_dir_all(folder)?;
    // The script last: it is the mark of a complete set.
    for name in ["spelling.txt", "const_structs.checkpatch", "checkpatch.pl"] {
        let partial = folder.join(format!("{name}.partial"));
        let status = Command::new("tar")
            .args(["--extract", "--to-stdout", "--wildcards", "--occurrence=1", "--file"])
            .arg(&archive)
            .arg(format!("*/scripts/{name}"))
            .stdin(Stdio::null())
            .stdout(File::create(&partial)?)
            .status()
            .context("cannot start tar")?;
        if !status.success() {
            bail!("{PACKAGE} holds no scripts/{name}");
        }
        fs::rename(&partial, folder.join(name))?;
    }
    fs::remove_dir_all(unpacked)?;
    Ok(())
}
