//! Parts of the Linux scenarios: guest kernels with their modules, and programs for the guests' file
//! system.

use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context, Result};

use crate::architecture::Architecture;
use crate::debian::Apt;
use crate::lab::kernel::{self, Order, RELEASE, SUITES, Series};
use crate::lab::program::{Program, Wanted};
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
        if let Ok(release) = fs::read_to_string(folder.join(RELEASE)) {
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
        process::step(&title, || kernel::fetch(apt, series, architecture, &orders, &folder))?;
        let release = fs::read_to_string(folder.join(RELEASE))?;
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
        let wanted = Wanted {
            program: names.emulator,
            package: names.emulator_package,
            suite: None,
            firmware: names.firmware,
        };
        self.program("qemu", &wanted)
    }

    /// What starts another kernel where the kernel itself cannot load one from a file, as Debian's
    /// for arm64.
    ///
    /// # Errors
    /// When Debian lacks it.
    pub(crate) fn kexec(&mut self) -> Result<Program> {
        let wanted =
            Wanted { program: "kexec", package: "kexec-tools", suite: None, firmware: &[] };
        self.program("kexec", &wanted)
    }

    fn program(&mut self, name: &str, wanted: &Wanted) -> Result<Program> {
        let folder = self.folder.join(name);
        match Program::in_folder(&folder) {
            Some(program) => Ok(program),
            None => Program::fetch(self.apt()?, &folder, wanted),
        }
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
