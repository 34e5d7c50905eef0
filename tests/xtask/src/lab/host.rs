//! Parts of the emulated host: emulator, kernel, modules, busybox and the disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::description::PageSize;
use crate::architecture::Architecture;
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

/// The parts, as files in one folder.
pub(crate) struct Host {
    architecture: Architecture,
    folder: PathBuf,
    disk: PathBuf,
}

impl Host {
    /// Completes what is missing in the build folder. A second call finds everything in place; a
    /// call after an interrupted one goes on where that stopped.
    ///
    /// # Errors
    /// When packages cannot be had.
    pub(crate) fn prepare(
        workspace: &Workspace,
        architecture: Architecture,
        pages: &[PageSize],
    ) -> Result<Self> {
        let lab = workspace.target.join("lab");
        let host = Self {
            architecture,
            folder: lab.join(architecture.name()),
            disk: lab.join("disk.img"),
        };
        let description = architecture.description();
        tools::install_missing(
            workspace,
            &[
                Tool::found(
                    qemu_version(description.emulator).is_some_and(|found| found >= OLDEST_QEMU),
                    description.emulator_package,
                ),
                Tool::program("cpio", "cpio"),
                Tool::program("xz", "xz-utils"),
                Tool::program("gzip", "gzip"),
            ],
        )?;
        let kernels: Vec<PageSize> =
            pages.iter().copied().filter(|&pages| !host.has_kernel(pages)).collect();
        if !host.busybox().is_file() || !kernels.is_empty() {
            let packages = host.folder.join("packages");
            let apt = process::step("fetching the package lists of the host's Debian", || {
                host.package_lists(&packages)
            })?;
            process::step("fetching busybox", || host.fetch_busybox(&apt, &packages))?;
            for pages in kernels {
                let title = format!("fetching the host's kernel, {} pages (100 MB)", pages.name());
                process::step(&title, || host.fetch_kernel(&apt, &packages, pages))?;
            }
        }
        host.write_disk()?;
        Ok(host)
    }

    /// Its architecture.
    pub(crate) fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// The kernel image.
    pub(crate) fn kernel(&self, pages: PageSize) -> PathBuf {
        self.folder.join(pages.name()).join("vmlinuz")
    }

    /// The statically linked busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// The folder of a kernel's modules and of the file `order`.
    pub(crate) fn modules(&self, pages: PageSize) -> PathBuf {
        self.folder.join(pages.name()).join("modules")
    }

    /// The raw image of the NVMe drive.
    pub(crate) fn disk(&self) -> &Path {
        &self.disk
    }

    /// Where a scenario keeps its files.
    pub(crate) fn scratch(&self, scenario: &str) -> PathBuf {
        self.folder.join(scenario)
    }

    /// Whether a kernel is there with the modules that are wanted today.
    fn has_kernel(&self, pages: PageSize) -> bool {
        self.kernel(pages).is_file()
            && self.order(pages).is_file()
            && fs::read_to_string(self.wanted(pages)).is_ok_and(|wanted| wanted == self.wish())
    }

    /// The modules that were wanted when a kernel was fetched.
    fn wanted(&self, pages: PageSize) -> PathBuf {
        self.folder.join(pages.name()).join("wanted")
    }

    fn wish(&self) -> String {
        let modules = self.architecture.description().modules.iter();
        modules.map(|module| format!("{}\n", module.name)).collect()
    }

    fn order(&self, pages: PageSize) -> PathBuf {
        self.modules(pages).join("order")
    }

    fn package_lists(&self, packages: &Path) -> Result<Apt> {
        let architecture = Some(self.architecture);
        if let Some(suites) = self.architecture.description().suites {
            return Apt::update(packages, architecture, suites);
        }
        let suite = debian::release_name()?;
        let (backports, security) = (format!("{suite}-backports"), format!("{suite}-security"));
        Apt::update(packages, architecture, &[&suite, &backports, &security])
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

    fn fetch_kernel(&self, apt: &Apt, packages: &Path, pages: PageSize) -> Result<()> {
        let description = self.architecture.description();
        let (_, expression) = description
            .kernels
            .iter()
            .find(|(size, _)| *size == pages)
            .with_context(|| format!("no kernel is known with {} pages", pages.name()))?;
        let name = apt
            .search(expression)?
            .into_iter()
            .max_by_key(|name| debian::numbers(name))
            .with_context(|| format!("Debian offers no package {expression}"))?;
        let package = apt.download(&name)?;
        let unpacked = packages.join("kernel");
        if unpacked.exists() {
            // Of an interrupted call, maybe of another version.
            fs::remove_dir_all(&unpacked)?;
        }
        debian::unpack(
            &package,
            &unpacked,
            &[
                "./boot/vmlinuz-*",
                "*/kernel/arch/*/kvm/*",
                "*/kernel/drivers/crypto/ccp/*",
                "*/kernel/drivers/iommu/*",
                "*/kernel/drivers/net/net_failover.ko*",
                "*/kernel/drivers/net/virtio_net.ko*",
                "*/kernel/drivers/vfio/*",
                "*/kernel/net/core/failover.ko*",
                "*/kernel/virt/*",
            ],
        )?;
        let files = files_under(&unpacked);
        let modules = self.modules(pages);
        fs::create_dir_all(&modules)?;
        let mut order = String::new();
        for module in description.modules {
            let Some(file) = files.iter().find(|file| is_module(file, module.name)) else {
                if module.required {
                    bail!("the package {name} holds no module {}", module.name);
                }
                continue;
            };
            decompress(file, &modules.join(format!("{}.ko", module.name)))?;
            order.push_str(module.name);
            order.push('\n');
        }
        let image = files
            .iter()
            .find(|file| {
                file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .with_context(|| format!("the package {name} holds no kernel image"))?;
        fs::rename(image, self.kernel(pages))?;
        fs::write(self.order(pages), order)?;
        // Last: this file is the mark of a complete set.
        fs::write(self.wanted(pages), self.wish())?;
        fs::remove_dir_all(unpacked)?;
        fs::remove_file(package)?;
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
