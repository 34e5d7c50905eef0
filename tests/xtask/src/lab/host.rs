//! Parts of the emulated host: emulator, kernel, modules, busybox and the disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::built;
use super::kernel::{self, Order, RELEASE, SUITES};
use super::kind::{Iommu, Kind};
use super::program::{Program, Wanted};
use crate::debian::{self, Apt};
use crate::process;
use crate::tools::{self, Tool};
use crate::workspace::Workspace;

/// Older ones corrupt flags when a guest runs nested under emulated SVM (seen with 7.2), or have
/// no igb. One release for all: their packages share files.
const OLDEST_QEMU: u32 = 10;

/// Size of the disk; the demo guest reads at least 64 MiB of it.
const DISK_BYTES: u64 = 64 << 20;

/// What each 64-bit word of the disk is XORed with; the word's byte offset is the other half.
const DISK_PATTERN: u64 = 0x5650_4D53_4950_4D53;

/// The parts of one kind of host, as files; what kinds have in common is shared.
pub(crate) struct Host {
    kind: &'static Kind,
    /// Of the architecture.
    folder: PathBuf,
    /// The kernel's.
    kernel: PathBuf,
    disk: PathBuf,
    /// The emulator, where that of the machine does not serve.
    emulator: Option<Program>,
}

impl Host {
    /// Completes what is missing in the build folder. A second call finds everything in place; a
    /// call after an interrupted one goes on where that stopped.
    ///
    /// # Errors
    /// When packages cannot be had.
    pub(crate) fn prepare(workspace: &Workspace, kind: &'static Kind) -> Result<Self> {
        let lab = workspace.target.join("lab");
        let folder = lab.join(kind.architecture.name());
        let kernel = kernel_folder(workspace, kind);
        if kind.is_built() && !built::is_there(kind, &kernel) {
            bail!(
                "the kernel of the host {0} is not built; run: cargo xtask lab-kernel {1}",
                kind.name,
                kind.architecture.name()
            );
        }
        let disk = lab.join("disk.img");
        let mut host = Self { kind, folder, kernel, disk, emulator: None };
        let own = host.own_emulator();
        let description = kind.architecture.description();
        let installed =
            || qemu_version(description.emulator).is_some_and(|found| found >= OLDEST_QEMU);
        tools::install_missing(
            workspace,
            &[
                Tool::found(own.is_some() || installed(), description.emulator_package),
                Tool::program("cpio", "cpio"),
                Tool::program("xz", "xz-utils"),
                Tool::program("gzip", "gzip"),
            ],
        )?;
        let qemu = host.folder.join("qemu");
        host.emulator = Program::in_folder(&qemu).filter(|_| own.is_some());
        if own.is_some() != host.emulator.is_some()
            || !host.busybox().is_file()
            || !host.has_kernel()
        {
            let packages = host.folder.join("packages");
            let apt = process::step("fetching the package lists of the host's Debian", || {
                Apt::update(&packages, Some(kind.architecture), SUITES)
            })?;
            process::step("fetching busybox", || host.fetch_busybox(&apt, &packages))?;
            if !host.has_kernel() {
                let title = format!("fetching the host's kernel {} (100 MB)", kind.kernel_folder());
                process::step(&title, || host.fetch_kernel(&apt))?;
            }
            if let (Some(wanted), None) = (&own, &host.emulator) {
                host.emulator = Some(Program::fetch(&apt, &qemu, wanted)?);
            }
        }
        host.write_disk()?;
        Ok(host)
    }

    /// An emulator of its own. That of Debian 12's backports has an AMD IOMMU, but no host comes up
    /// whole with it.
    fn own_emulator(&self) -> Option<Wanted> {
        let description = self.kind.architecture.description();
        (self.kind.iommu == Iommu::Amd).then_some(Wanted {
            program: description.emulator,
            package: description.emulator_package,
            suite: Some("trixie-backports"),
            firmware: description.firmware,
        })
    }

    /// How the emulator is started.
    pub(crate) fn emulator(&self) -> Vec<PathBuf> {
        let name = self.kind.architecture.description().emulator;
        self.emulator.as_ref().map_or_else(|| vec![name.into()], |own| own.command(name))
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The kernel image.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.kernel.join("vmlinuz")
    }

    /// The kernel's release.
    ///
    /// # Errors
    /// When it is not noted.
    pub(crate) fn release(&self) -> Result<String> {
        let text = fs::read_to_string(self.kernel.join(RELEASE)).context("no kernel release")?;
        Ok(text.trim().to_owned())
    }

    /// The statically linked busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// The folder of the kernel's modules and of the file `order`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.kernel.join("modules")
    }

    /// The raw image of the NVMe drive.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    /// Where a scenario keeps its files.
    pub(crate) fn scratch(&self, scenario: &str) -> PathBuf {
        self.folder.join(self.kind.name).join(scenario)
    }

    /// Whether the kernel is there with the drivers that are wanted today.
    fn has_kernel(&self) -> bool {
        self.kind.is_built()
            || fs::read_to_string(self.wanted()).is_ok_and(|wanted| wanted == self.wish())
    }

    /// The drivers that were wanted when the kernel was fetched.
    fn wanted(&self) -> PathBuf {
        self.kernel.join("wanted")
    }

    fn wish(&self) -> String {
        self.kind.architecture.description().drivers.join("\n")
    }

    fn fetch_busybox(&self, apt: &Apt, packages: &Path) -> Result<()> {
        if self.busybox().is_file() {
            return Ok(());
        }
        let package = apt.download("busybox-static")?;
        let unpacked = packages.join("busybox");
        debian::unpack(&package, &unpacked, &["*/busybox"])?;
        let program = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| unpacked.join(path))
            .find(|path| path.is_file())
            .context("the package busybox-static holds no busybox")?;
        fs::rename(program, self.busybox())?;
        fs::remove_file(package)?;
        Ok(())
    }

    fn fetch_kernel(&self, apt: &Apt) -> Result<()> {
        let drivers = self.kind.architecture.description().drivers;
        let orders = [Order { file: "order".to_owned(), drivers }];
        kernel::fetch(apt, self.kind.kernel, self.kind.flavour(), &orders, &self.kernel)?;
        // Last: this file is the mark of a complete set.
        fs::write(self.wanted(), self.wish())?;
        Ok(())
    }

    fn write_disk(&self) -> Result<()> {
        if fs::metadata(&self.disk).is_ok_and(|metadata| metadata.len() == DISK_BYTES) {
            return Ok(());
        }
        let partial = self.disk.with_extension("partial");
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        for offset in (0..DISK_BYTES).step_by(8) {
            writer.write_all(&(offset ^ DISK_PATTERN).to_le_bytes())?;
        }
        writer.into_inner().context("cannot write the disk image")?.sync_all()?;
        fs::rename(partial, &self.disk)?;
        Ok(())
    }
}

/// The folder of a kind's kernel.
pub(super) fn kernel_folder(workspace: &Workspace, kind: &Kind) -> PathBuf {
    let lab = workspace.target.join("lab").join(kind.architecture.name());
    lab.join("kernels").join(kind.kernel_folder())
}

/// Major version of an emulator.
fn qemu_version(emulator: &str) -> Option<u32> {
    let output = Command::new(emulator).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

pub(super) fn is_module(file: &Path, module: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split_once(".ko").is_some_and(|(stem, _)| stem == module)
}

pub(super) fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

/// A module as the kernel takes it; the packages compress them with xz, older ones not at all.
pub(super) fn decompress(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(from, to)?;
        return Ok(());
    }
    let mut command = Command::new("xz");
    command.args(["--decompress", "--stdout"]).arg(from).stdin(Stdio::null());
    command.stdout(File::create(to)?);
    let status = command.status().context("cannot start xz")?;
    if !status.success() {
        bail!("xz cannot decompress {}: {status}", from.display());
    }
    Ok(())
}
