//! Parts of the Linux scenarios: guest kernels with their modules, and programs of Debian with all that
//! they need to run in an initial file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::slice;

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::DT_NEEDED;
use elf::endian::AnyEndian;

use crate::architecture::Architecture;
use crate::debian::{self, Apt};
use crate::lab::host::files_under;
use crate::lab::kernel::{self, Order, SUITES, Series};
use crate::module;
use crate::process;
use crate::workspace::Workspace;

/// Drivers of a guest; what they depend on comes along.
const DRIVERS: &[&str] = &["nvme", "igb"];

/// A guest's kernel.
pub(crate) struct Kernel {
    /// Its release.
    pub release: String,
    /// The image, as Debian has it.
    pub image: PathBuf,
    /// Folder of its modules, and for each driver a file `<driver>.order`.
    pub modules: PathBuf,
    /// `pvmsi.ko` for it.
    pub module: PathBuf,
}

/// A program of Debian with all that it needs, to be run anywhere.
pub(crate) struct Program {
    /// Folder of `loader`, the program, `libraries` and `firmware`.
    pub folder: PathBuf,
    /// Of its package.
    pub version: String,
}

/// Where guest parts come from.
pub(crate) struct Parts<'a> {
    workspace: &'a Workspace,
    architecture: Architecture,
    folder: PathBuf,
    apt: Option<Apt>,
}

impl<'a> Parts<'a> {
    /// Those of an architecture; nothing is fetched yet.
    pub(crate) fn new(workspace: &'a Workspace, architecture: Architecture) -> Self {
        let folder = workspace.target.join("lab").join(architecture.name()).join("linux-parts");
        Self { workspace, architecture, folder, apt: None }
    }

    /// A guest's kernel, fetched unless it is there.
    ///
    /// # Errors
    /// When Debian lacks it.
    pub(crate) fn kernel(&mut self, series: Series) -> Result<Kernel> {
        let folder = self.folder.join(series.name());
        let mark = folder.join("release");
        if let Ok(release) = fs::read_to_string(&mark) {
            return self.with_module(&folder, release.trim());
        }
        let architecture = self.architecture.debian().architecture;
        let apt = self.apt()?;
        let orders = DRIVERS
            .iter()
            .map(|driver| Order {
                file: format!("{driver}.order"),
                drivers: slice::from_ref(driver),
            })
            .collect::<Vec<_>>();
        let title = format!("fetching the guest's kernel {} (100 MB)", series.name());
        let release =
            process::step(&title, || kernel::fetch(apt, series, architecture, &orders, &folder))?;
        // Last: this file is the mark of a complete set.
        fs::write(&mark, &release)?;
        self.with_module(&folder, &release)
    }

    /// Builds the module for a kernel that is there.
    fn with_module(&self, folder: &Path, release: &str) -> Result<Kernel> {
        let series = module::Series::Release(release.to_owned());
        Ok(Kernel {
            release: release.to_owned(),
            image: folder.join("vmlinuz"),
            modules: folder.join("modules"),
            module: module::build(self.workspace, self.architecture, &series)?,
        })
    }

    /// QEMU, fetched unless it is there.
    ///
    /// # Errors
    /// When Debian lacks it.
    pub(crate) fn qemu(&mut self) -> Result<Program> {
        let names = self.architecture.description();
        let firmware = firmware(self.architecture);
        self.program("qemu", names.emulator, names.emulator_package, firmware)
    }

    /// What starts another kernel where the kernel itself cannot load one from a file, as Debian's
    /// for arm64.
    ///
    /// # Errors
    /// When Debian lacks it.
    pub(crate) fn kexec(&mut self) -> Result<Program> {
        self.program("kexec", "kexec", "kexec-tools", &[])
    }

    /// A program, fetched unless it is there.
    fn program(
        &mut self,
        name: &str,
        program: &str,
        package: &str,
        firmware: &[&str],
    ) -> Result<Program> {
        let folder = self.folder.join(name);
        let mark = folder.join("version");
        if let Ok(version) = fs::read_to_string(&mark) {
            return Ok(Program { folder, version: version.trim().to_owned() });
        }
        let apt = self.apt()?;
        let version = process::step(&format!("fetching {package} and what it needs"), || {
            unpack_program(apt, &folder, program, package, firmware)
        })?;
        fs::write(&mark, &version)?;
        Ok(Program { folder, version })
    }

    fn apt(&mut self) -> Result<&Apt> {
        if self.apt.is_none() {
            let packages = self.folder.join("packages");
            let apt = process::step("fetching the package lists of the guests' Debian", || {
                Apt::update(&packages, Some(self.architecture), SUITES)
            })?;
            self.apt = Some(apt);
        }
        self.apt.as_ref().context("no package lists")
    }
}

/// What QEMU reads when it starts a kernel with serial console.
fn firmware(architecture: Architecture) -> &'static [&'static str] {
    match architecture {
        Architecture::X86_64 => &["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"],
        Architecture::Aarch64 => &[],
    }
}

fn unpack_program(
    apt: &Apt,
    folder: &Path,
    program: &str,
    package: &str,
    firmware: &[&str],
) -> Result<String> {
    let unpacked = folder.join("unpacked");
    for old in [&unpacked, &folder.join("libraries"), &folder.join("firmware")] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    let packages = apt.download_with_dependencies(package)?;
    for package in &packages {
        debian::unpack(package, &unpacked, &["./*"])?;
    }
    let version = packages
        .iter()
        .filter_map(|file| file.file_name()?.to_str()?.strip_prefix(&format!("{package}_")))
        .filter_map(|rest| rest.split('_').next())
        .map(|version| version.replace("%3a", ":"))
        .next()
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    let files = files_under(&unpacked);
    let find = |name: &str| {
        files
            .iter()
            .find(|file| file.file_name().is_some_and(|found| found == name))
            .with_context(|| format!("the packages of {package} hold no {name}"))
    };
    let libraries = folder.join("libraries");
    fs::create_dir_all(&libraries)?;
    fs::create_dir_all(folder.join("firmware"))?;
    for name in firmware {
        fs::copy(find(name)?, folder.join("firmware").join(name))?;
    }
    // Not its configuration, which may have the same name.
    let installed = files
        .iter()
        .find(|file| ["bin", "sbin"].iter().any(|bin| file.ends_with(format!("{bin}/{program}"))))
        .with_context(|| format!("the packages of {package} hold no program {program}"))?;
    fs::copy(installed, folder.join(program))?;
    let mut open = vec![folder.join(program)];
    while let Some(file) = open.pop() {
        for needed in needed_libraries(&file)? {
            let copy = libraries.join(&needed);
            if !copy.is_file() {
                let found = resolve(&unpacked, &needed)?;
                fs::copy(&found, &copy)?;
                open.push(copy);
            }
        }
    }
    let loader = fs::read_dir(&libraries)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ld-linux")))
        .with_context(|| format!("{program} needs no loader"))?;
    fs::copy(loader, folder.join("loader"))?;
    for package in packages {
        fs::remove_file(package)?;
    }
    fs::remove_dir_all(unpacked)?;
    Ok(version)
}

/// A library by its name, which may be a link.
fn resolve(root: &Path, name: &str) -> Result<PathBuf> {
    let output = Command::new("find")
        .arg(root)
        .args(["-name", name, "-not", "-type", "d"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start find")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().next().with_context(|| format!("no library {name}"))?;
    fs::canonicalize(found).with_context(|| format!("{found} is a link to nowhere"))
}

/// DT_NEEDED of a program or library.
fn needed_libraries(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file)?;
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&bytes)?;
    let Some(dynamic) = elf.dynamic()? else {
        bail!("{} is linked statically", file.display());
    };
    let strings = elf.section_headers_with_strtab()?;
    let (Some(headers), Some(names)) = strings else { bail!("{} has no sections", file.display()) };
    let table = headers
        .iter()
        .find(|header| {
            usize::try_from(header.sh_name)
                .is_ok_and(|at| names.get(at).is_ok_and(|name| name == ".dynstr"))
        })
        .with_context(|| format!("{} has no .dynstr", file.display()))?;
    let strings = elf.section_data_as_strtab(&table)?;
    dynamic
        .iter()
        .filter(|entry| entry.d_tag == DT_NEEDED)
        .map(|entry| {
            let at = usize::try_from(entry.d_val())?;
            Ok(strings.get(at)?.to_owned())
        })
        .collect()
}
