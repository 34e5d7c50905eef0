//! The root file system of the emulated host.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::machine::Step;
use crate::architecture::Architecture;
use crate::guests;
use crate::workspace::MACHINE_TESTS;

/// Brings the host up and runs the steps.
const INIT: &str = include_str!("../../../lab/init");

/// Something that an initramfs holds beside the usual.
pub(crate) struct Addition {
    /// A file, or a folder with all that it holds.
    from: PathBuf,
    /// Its path inside.
    to: String,
    /// Whether it is a program, which may need libraries.
    program: bool,
}

impl Addition {
    /// A file or folder.
    pub(crate) fn file(from: &Path, to: String) -> Self {
        Self { from: from.to_owned(), to, program: false }
    }

    /// A program, with the libraries that it needs.
    pub(crate) fn program(from: &Path, to: String) -> Self {
        Self { from: from.to_owned(), to, program: true }
    }
}

/// Packs init, busybox, modules, `pvmsi` with the libraries that it needs, the guests and the
/// steps into `archive`. `folder` is scratch space.
///
/// # Errors
/// When a part is missing or cpio fails.
pub(crate) fn pack(
    host: &Host,
    pvmsi: &Path,
    steps: &[Step],
    additions: &[Addition],
    folder: &Path,
    archive: &Path,
) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for name in ["bin", "modules", "dev", "proc", "sys"] {
        fs::create_dir_all(folder.join(name))?;
    }
    write_program(&folder.join("init"), INIT.as_bytes())?;
    copy(&host.busybox(), &folder.join("bin/busybox"))?;
    for entry in fs::read_dir(host.modules())? {
        let entry = entry?;
        copy(&entry.path(), &folder.join("modules").join(entry.file_name()))?;
    }
    // That of another architecture is linked statically.
    let native = host.kind().architecture == Architecture::native()?;
    add(&Addition::program(pvmsi, "bin/pvmsi".to_owned()), folder, native)?;
    for addition in additions {
        add(addition, folder, native)?;
    }
    for name in guests::programs().chain([MACHINE_TESTS]) {
        let program = pvmsi.with_file_name(name);
        if program.is_file() {
            copy(&program, &folder.join("bin").join(name))?;
        }
    }
    let steps: String = steps
        .iter()
        .map(|step| format!("{} {} {}\n", step.name, step.limit.as_secs(), step.command))
        .collect();
    fs::write(folder.join("steps"), steps)?;
    archive_of(folder, archive, &Packing::Gzip)
}

/// Copies an addition to where it belongs below `root`. `native`: programs may be linked dynamically.
///
/// # Errors
/// When a file or a library is missing.
pub(crate) fn add(addition: &Addition, root: &Path, native: bool) -> Result<()> {
    let to = root.join(&addition.to);
    if addition.from.is_dir() {
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&addition.from)? {
            let entry = entry?;
            let inside = format!("{}/{}", addition.to, entry.file_name().to_string_lossy());
            add(&Addition::file(&entry.path(), inside), root, native)?;
        }
        return Ok(());
    }
    copy_into(&addition.from, &to)?;
    for library in if addition.program && native { libraries(&addition.from)? } else { Vec::new() }
    {
        copy_into(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    Ok(())
}

fn copy_into(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    copy(from, to)
}

/// Shared libraries and the program loader that `program` needs, as absolute paths.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("{} lacks a shared library:\n{text}", program.display());
    }
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(PathBuf::from)
        .collect())
}

/// Copies a file and its permissions.
///
/// # Errors
/// Naming both.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Writes a program.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write_program(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// What becomes of an archive.
pub(crate) enum Packing {
    /// The kernel unpacks it without decompressing.
    Plain,
    /// It is smaller.
    Gzip,
}

/// Makes an archive of a folder, as the kernel unpacks it.
///
/// # Errors
/// When cpio fails.
pub(crate) fn archive_of(folder: &Path, archive: &Path, packing: &Packing) -> Result<()> {
    let pack = "find . | cpio --create --format=newc --owner=0:0 --quiet";
    let script = match packing {
        Packing::Plain => pack.to_owned(),
        Packing::Gzip => format!("{pack} | gzip -1"),
    };
    let status = Command::new("sh")
        .args(["-c", &script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(File::create(archive)?)
        .status()
        .context("cannot start sh")?;
    if !status.success() {
        bail!("packing {}: {status}", archive.display());
    }
    Ok(())
}
