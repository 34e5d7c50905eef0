//! `cargo xtask lab-kernel`: host kernels that Debian does not have, from its sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::host::files_under;
use super::kernel::{RELEASE, SUITES};
use super::kind::Kind;
use crate::architecture::Architecture;
use crate::debian::{self, Apt};
use crate::process;
use crate::tools::{self, Tool};
use crate::workspace::Workspace;

/// What is on in the kernels of both architectures.
const COMMON: &str = include_str!("../../../lab/kernel/common.config");

/// Bound of a build, on processors that others may use as well.
const LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Options of `cargo xtask lab-kernel`.
#[derive(Args)]
pub(crate) struct Options {
    /// That of the host.
    #[arg(value_enum)]
    architecture: Architecture,
}

/// Builds the kernel of the architecture's host that has none of Debian's, unless it is there.
///
/// # Errors
/// When a tool cannot be had or the build fails.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let kind = Kind::all(options.architecture)
        .find(|kind| kind.is_built())
        .context("all hosts of the architecture have kernels of Debian's")?;
    let folder = super::host::kernel_folder(workspace, kind);
    if !is_there(kind, &folder) {
        build(workspace, kind, &folder)?;
    }
    eprintln!("    for: cargo xtask lab {} --host {}", options.architecture.name(), kind.name);
    process::print(&folder.join("vmlinuz").to_string_lossy());
    Ok(true)
}

/// Whether a kernel was built with today's configuration.
pub(super) fn is_there(kind: &Kind, folder: &Path) -> bool {
    fs::read_to_string(mark(folder)).is_ok_and(|built| built == configuration(kind))
}

/// The configuration of the kernel that is there.
fn mark(folder: &Path) -> PathBuf {
    folder.join("configuration")
}

/// What is on, and what is off that would be on.
fn configuration(kind: &Kind) -> String {
    let own = match kind.architecture {
        Architecture::X86_64 => include_str!("../../../lab/kernel/x86_64.config"),
        Architecture::Aarch64 => include_str!("../../../lab/kernel/aarch64.config"),
    };
    format!("{COMMON}{own}")
}

fn build(workspace: &Workspace, kind: &Kind, folder: &Path) -> Result<()> {
    let architecture = kind.architecture;
    let names = architecture.debian();
    let native = architecture == Architecture::native()?;
    let compiler = if native {
        Tool::program("gcc", "gcc")
    } else {
        Tool::program(names.linker, names.linker_package)
    };
    tools::install_missing(
        workspace,
        &[
            compiler,
            Tool::program("make", "make"),
            Tool::program("flex", "flex"),
            Tool::program("bison", "bison"),
            Tool::program("bc", "bc"),
            Tool::program("xz", "xz-utils"),
            Tool::file("/usr/include/libelf.h", "libelf-dev"),
        ],
    )?;
    let work = folder.join("build");
    if work.exists() {
        // Of an interrupted call, maybe of another configuration.
        fs::remove_dir_all(&work)?;
    }
    fs::create_dir_all(&work)?;
    let sources = sources(kind, &work)?;
    let wanted = configuration(kind);
    let fragment = work.join("wanted");
    fs::write(&fragment, &wanted)?;
    let output = work.join("output");
    let make = || {
        let mut make = Command::new("make");
        make.arg("-C").arg(&sources).arg(format!("O={}", output.display()));
        make.arg(format!("ARCH={}", karchitecture(architecture)));
        if !native {
            let prefix = names.linker.strip_suffix("gcc").unwrap_or(names.linker);
            make.arg(format!("CROSS_COMPILE={prefix}"));
        }
        make
    };
    let mut configure = make();
    configure.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
    let log = folder.join("build.log");
    process::run_logged("configuring the kernel", &mut configure, &log, LIMIT, || None)?;
    taken(&wanted, &fs::read_to_string(output.join(".config"))?)?;
    let image = match architecture {
        Architecture::X86_64 => "bzImage",
        Architecture::Aarch64 => "Image",
    };
    let title = format!("building the kernel of the host {} (ten minutes or more)", kind.name);
    process::step(&title, || {
        let mut command = make();
        command.arg(format!("-j{}", thread::available_parallelism()?)).arg(image);
        process::run_logged("building the kernel", &mut command, &log, LIMIT, || None)
    })?;
    let boot = output.join("arch").join(karchitecture(architecture)).join("boot").join(image);
    fs::rename(boot, folder.join("vmlinuz"))?;
    fs::rename(output.join("include/config/kernel.release"), folder.join(RELEASE))?;
    // Everything is built in: nothing is loaded.
    fs::create_dir_all(folder.join("modules"))?;
    fs::write(folder.join("modules/order"), "")?;
    fs::remove_dir_all(&work)?;
    // Last: this file is the mark of a complete set.
    fs::write(mark(folder), wanted)?;
    Ok(())
}

/// Fetches the kernel's sources and unpacks them; their folder.
fn sources(kind: &Kind, work: &Path) -> Result<PathBuf> {
    process::step("fetching the kernel's sources (150 MB)", || {
        let apt = Apt::update(&work.join("packages"), Some(kind.architecture), SUITES)?;
        let package = apt.download(&format!("linux-source-{}", kind.kernel.name()))?;
        debian::unpack(&package, work, &["*.tar.xz"])?;
        fs::remove_file(package)?;
        let archive = files_under(work)
            .into_iter()
            .find(|file| file.to_string_lossy().ends_with(".tar.xz"))
            .context("the package holds no sources")?;
        let mut tar = Command::new("tar");
        tar.arg("--extract").arg("--file").arg(&archive).arg("--directory").arg(work);
        process::run("tar", &mut tar, LIMIT)?;
        fs::remove_file(&archive)?;
        let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(work.join(name.trim_end_matches(".tar.xz")))
    })
}

/// As the kernel's makefiles spell it.
fn karchitecture(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "x86",
        Architecture::Aarch64 => "arm64",
    }
}

/// What was wanted must have become so: the kernel drops what depends on something that is off.
fn taken(wanted: &str, configuration: &str) -> Result<()> {
    let option = |line: &&str| line.starts_with("CONFIG_") || line.starts_with("# CONFIG_");
    let has = |line: &str| configuration.lines().any(|found| found == line);
    let dropped: Vec<_> = wanted.lines().filter(option).filter(|line| !has(line)).collect();
    if !dropped.is_empty() {
        bail!("the kernel does not take: {}", dropped.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_is_dropped_is_told() {
        let wanted = "# A host.\nCONFIG_KVM=y\n# CONFIG_VFIO_GROUP is not set\n";
        taken(wanted, "CONFIG_KVM=y\nCONFIG_VFIO=y\n# CONFIG_VFIO_GROUP is not set\n").unwrap();
        let error = taken(wanted, "CONFIG_KVM=m\n# CONFIG_VFIO_GROUP is not set\n").unwrap_err();
        assert_eq!(error.to_string(), "the kernel does not take: CONFIG_KVM=y");
    }

    #[test]
    fn one_host_of_each_architecture_has_a_kernel_that_is_built() {
        for architecture in Architecture::ALL {
            assert_eq!(Kind::all(architecture).filter(|kind| kind.is_built()).count(), 1);
        }
    }
}
