//! Parts of the emulated host: emulator, kernel, modules, busybox and the disk.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian::{self, Apt};
use crate::process;

/// The emulator.
pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Older ones corrupt flags when a guest runs nested under emulated SVM (seen with 7.2).
const OLDEST_QEMU: u32 = 10;

/// In the order in which they are loaded. Those that a kernel lacks are left out: `iommufd` is
/// not in every Debian kernel.
const MODULES: &[&str] = &[
    "irqbypass",
    "kvm",
    "ccp",
    "kvm-amd",
    "iommufd",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci-core",
    "vfio-pci",
];

/// Without these there is no lab.
const REQUIRED: &[&str] = &["kvm", "kvm-amd", "vfio", "vfio_iommu_type1", "vfio-pci"];

/// Size of the disk; the demo guest reads at least 64 MiB of it.
pub(crate) const DISK_BYTES: u64 = 64 << 20;

/// What each 64-bit word of the disk is XORed with; the word's byte offset is the other half.
const DISK_PATTERN: u64 = 0x5650_4D53_4950_4D53;

/// The parts, as files in one folder.
pub(crate) struct Host {
    folder: PathBuf,
}

impl Host {
    /// Completes what is missing in `folder`. A second call finds everything in place; a call
    /// after an interrupted one goes on where that stopped.
    ///
    /// # Errors
    /// When packages cannot be had.
    pub(crate) fn prepare(folder: &Path) -> Result<Self> {
        let host = Self { folder: folder.to_owned() };
        fs::create_dir_all(folder)?;
        let packages = folder.join("packages");
        let suite = debian::release_name()?;
        let backports = format!("{suite}-backports");
        let security = format!("{suite}-security");
        let lists = || {
            process::step("fetching Debian's package lists", || {
                Apt::update(&packages, &[&suite, &backports, &security])
            })
        };
        let mut apt = None;
        let missing = missing_tools();
        if !missing.is_empty() {
            let apt = apt.insert(lists()?);
            process::step(&format!("installing {}", missing.join(" ")), || {
                apt.install(&backports, &missing)
            })?;
        }
        if !host.busybox().is_file() || !host.kernel().is_file() || !host.order().is_file() {
            let apt = match apt {
                Some(apt) => apt,
                None => lists()?,
            };
            process::step("fetching busybox", || host.fetch_busybox(&apt, &packages))?;
            process::step("fetching the host's kernel (100 MB)", || {
                host.fetch_kernel(&apt, &packages)
            })?;
        }
        host.write_disk()?;
        Ok(host)
    }

    /// The compressed kernel image.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The statically linked busybox.
    pub(crate) fn busybox(&self) -> PathBuf {
        self.folder.join("busybox")
    }

    /// The folder of the modules and of the file `order`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }

    /// The raw image of the NVMe drive.
    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    fn order(&self) -> PathBuf {
        self.modules().join("order")
    }

    fn fetch_busybox(&self, apt: &Apt, packages: &Path) -> Result<()> {
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

    fn fetch_kernel(&self, apt: &Apt, packages: &Path) -> Result<()> {
        // The long-term series that Debian 12 and 13 both have. The generic flavour: the cloud
        // flavour lacks KVM for AMD, and SVM is what is emulated.
        let name = apt
            .search(r"^linux-image-6\.12\..*-amd64-unsigned$")?
            .into_iter()
            .filter(|name| !name.contains("-cloud-") && !name.contains("-rt-"))
            .max_by_key(|name| numbers(name))
            .context("Debian offers no linux-image-6.12.*-amd64-unsigned")?;
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
                "*/kernel/arch/x86/kvm/*",
                "*/kernel/drivers/crypto/ccp/*",
                "*/kernel/drivers/iommu/*",
                "*/kernel/drivers/vfio/*",
                "*/kernel/virt/*",
            ],
        )?;
        let files = files_under(&unpacked);
        let modules = self.modules();
        fs::create_dir_all(&modules)?;
        let mut order = String::new();
        for module in MODULES {
            let Some(file) = files.iter().find(|file| is_module(file, module)) else {
                if REQUIRED.contains(module) {
                    bail!("the package {name} holds no module {module}");
                }
                continue;
            };
            decompress(file, &modules.join(format!("{module}.ko")))?;
            order.push_str(module);
            order.push('\n');
        }
        let image = files
            .iter()
            .find(|file| {
                file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
            })
            .with_context(|| format!("the package {name} holds no kernel image"))?;
        fs::rename(image, self.kernel())?;
        // Last: this file is the mark of a complete set.
        fs::write(self.order(), order)?;
        fs::remove_dir_all(unpacked)?;
        fs::remove_file(package)?;
        Ok(())
    }

    fn write_disk(&self) -> Result<()> {
        let disk = self.disk();
        if fs::metadata(&disk).is_ok_and(|metadata| metadata.len() == DISK_BYTES) {
            return Ok(());
        }
        let partial = disk.with_extension("partial");
        let mut writer = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        for offset in (0..DISK_BYTES).step_by(8) {
            writer.write_all(&(offset ^ DISK_PATTERN).to_le_bytes())?;
        }
        writer.into_inner().context("cannot write the disk image")?.sync_all()?;
        fs::rename(partial, disk)?;
        Ok(())
    }
}

/// Debian packages of the tools that are not there, or too old.
fn missing_tools() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if qemu_version().is_none_or(|version| version < OLDEST_QEMU) {
        missing.push("qemu-system-x86");
    }
    for (program, package) in [("cpio", "cpio"), ("xz", "xz-utils"), ("gzip", "gzip")] {
        if !process::available(program) {
            missing.push(package);
        }
    }
    missing
}

/// Major version of the emulator.
fn qemu_version() -> Option<u32> {
    let output = Command::new(QEMU).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

/// The numbers in a package name, to find the newest.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

fn is_module(file: &Path, module: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.split_once(".ko").is_some_and(|(stem, _)| stem == module)
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
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
fn decompress(from: &Path, to: &Path) -> Result<()> {
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
