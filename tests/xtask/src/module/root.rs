//! A small Debian 13 in a folder: kernels' build tools need its compiler and its C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::debian;
use crate::process;
use crate::tools::{self, Tool};
use crate::workspace::Workspace;

/// Compilers of the kernels' own Debian: an older one stops at options of 6.12.
const PACKAGES: &[&str] =
    &["make", "gcc-14", "sparse", "perl", "pahole", "libelf1t64", "libssl3t64", "zlib1g"];

/// The suite of the compilers.
const SUITE: &str = "trixie";

/// Bound of the installation.
const LIMIT: Duration = Duration::from_secs(900);

/// The folder, ready for use.
pub(super) struct Root {
    /// On this machine.
    pub folder: PathBuf,
}

impl Root {
    /// Installs it unless it is there.
    ///
    /// # Errors
    /// Without root rights, or when Debian's packages cannot be had.
    pub(super) fn prepare(workspace: &Workspace) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "kernel modules are built in a Debian 13 of their own, which takes root rights: \
                 run this as root; or build with: make -C /lib/modules/RELEASE/build \
                 M=$PWD/guest-shim/linux modules"
            );
        }
        let folder = workspace.target.join("module/root");
        if folder.is_dir() {
            return Ok(Self { folder });
        }
        tools::install_missing(workspace, &[Tool::program("debootstrap", "debootstrap")])?;
        let partial = folder.with_extension("partial");
        if partial.exists() {
            // Of an interrupted call.
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        let mut packages = PACKAGES.to_vec();
        for architecture in Architecture::ALL {
            if architecture != Architecture::native()? {
                packages.push(match architecture {
                    Architecture::X86_64 => "gcc-14-x86-64-linux-gnu",
                    Architecture::Aarch64 => "gcc-14-aarch64-linux-gnu",
                });
            }
        }
        let mirror = debian::mirror()?;
        process::step("installing a Debian 13 to build kernel modules in (250 MB)", || {
            let mut command = Command::new("debootstrap");
            command
                .arg("--variant=minbase")
                .arg(format!("--include={}", packages.join(",")))
                .arg(SUITE)
                .arg(&partial)
                .arg(&mirror);
            let log = workspace.target.join("module/debootstrap.log");
            process::run_logged("debootstrap", &mut command, &log, LIMIT, || None)
        })?;
        // Complete or not there at all.
        fs::rename(&partial, &folder).context("cannot move the new Debian to its place")?;
        Ok(Self { folder })
    }

    /// A program in it, which sees nothing else of this machine but its processes.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c"]);
        command.arg(r#"mount -t proc proc "$0/proc" && exec chroot "$0" "$@""#);
        command.arg(&self.folder).arg(program);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }

    /// The place on this machine of a path in it.
    pub(super) fn path(&self, inside: &Path) -> PathBuf {
        self.folder.join(inside.strip_prefix("/").unwrap_or(inside))
    }
}
