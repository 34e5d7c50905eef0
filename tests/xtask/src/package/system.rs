//! The package in a Debian system: installed, used, removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{NAME, VERSION};
use crate::architecture::Architecture;
use crate::check::Check;
use crate::debian;
use crate::process;
use crate::tools::{Tool, install_missing};
use crate::workspace::Workspace;

/// The release that guests are likely to have.
const RELEASE: &str = "trixie";

/// Bound of a step in the system; building the module takes a minute at most.
const LIMIT: Duration = Duration::from_secs(900);

/// Installs the package into a Debian system in a folder, looks at what became of it, and removes it again.
///
/// # Errors
/// Without root rights, or when the system cannot be made.
pub(super) fn checks(workspace: &Workspace, package: &Path) -> Result<Vec<Check>> {
    if !rustix::process::geteuid().is_root() {
        bail!("--install needs root rights: it makes a Debian system in a folder");
    }
    let system = System::prepare(workspace)?;
    fs::copy(package, system.root.join("package.deb"))?;
    let kernel = system.kernel()?;
    let folder = format!("/var/lib/dkms/pvmsi/{VERSION}/{kernel}");
    let log = format!("{folder}/*/log/make.log");
    let built = format!("dkms status -m pvmsi -v {VERSION} -k {kernel} | grep installed");
    let ramdisk =
        format!("lsinitramfs /boot/initrd.img-{kernel} > /tmp/ramdisk && test -s /tmp/ramdisk");
    let rest = "find / -xdev '(' -path /proc -o -path /tmp ')' -prune -o -name '*pvmsi*' -print";
    let mut checks = Vec::new();
    for (name, script) in [
        ("lintian finds nothing", "lintian --fail-on error,warning --info /package.deb".to_owned()),
        ("it is installed", "dpkg --install /package.deb".to_owned()),
        ("DKMS has built and installed the module", built.clone()),
        (
            "it was built without a warning",
            format!("grep MODPOST {log} && ! grep -i warning: {log}"),
        ),
        ("modprobe finds it", format!("modprobe --set-version {kernel} --show-depends pvmsi")),
        ("it has its parameters", format!("modinfo -k {kernel} -p pvmsi | grep '^off:'")),
        (
            "the udev rule is valid",
            "udevadm verify /usr/lib/udev/rules.d/40-pvmsi.rules".to_owned(),
        ),
        (
            "the initial ramdisk has module, rule and options",
            format!(
                "{ramdisk} && grep /pvmsi.ko /tmp/ramdisk && grep rules.d/40-pvmsi.rules /tmp/ramdisk && grep pvmsi-initramfs.conf /tmp/ramdisk"
            ),
        ),
    ] {
        checks.push(Check::new(name, system.run(name, &script)));
    }
    checks.push(Check::new("loaded before the driver of a disk", system.boot(workspace, &kernel)?));
    for (name, script) in [
        ("no file was changed", format!("test -z \"$(dpkg --verify {NAME})\"")),
        ("it is installed again over itself", "dpkg --install /package.deb".to_owned()),
        ("and the module is still there", built),
        ("it is removed", format!("dpkg --purge {NAME}")),
        (
            "nothing of it is left",
            format!("rm /package.deb && test -z \"$({rest} | tee /dev/stderr)\""),
        ),
        ("nor in the initial ramdisk", format!("{ramdisk} && ! grep pvmsi /tmp/ramdisk")),
    ] {
        checks.push(Check::new(name, system.run(name, &script)));
    }
    Ok(checks)
}

/// A Debian system in a folder.
struct System {
    root: PathBuf,
}

impl System {
    /// The one of an earlier run, or a new one.
    fn prepare(workspace: &Workspace) -> Result<Self> {
        let root = workspace.target.join("package").join(RELEASE);
        let (system, ready) = (Self { root: root.clone() }, root.join("ready"));
        if ready.is_file() {
            return Ok(system);
        }
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        fs::create_dir_all(&root)?;
        install_missing(workspace, &[Tool::program("debootstrap", "debootstrap")])?;
        let mirror = debian::mirror()?;
        let log = root.with_extension("log");
        process::step(&format!("making a system of Debian's {RELEASE}"), || {
            let mut command = Command::new("debootstrap");
            command.args(["--variant=minbase", RELEASE]).arg(&root).arg(&mirror);
            process::run_logged("debootstrap", &mut command, &log, LIMIT, || None)
        })?;
        let architecture = Architecture::native()?.debian().architecture;
        process::step("installing DKMS and a kernel with its headers", || {
            let packages = format!(
                "linux-image-{architecture} linux-headers-{architecture} \
                 dkms initramfs-tools udev kmod lintian"
            );
            let script = format!(
                "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
                 --no-install-recommends {packages} && apt-get clean"
            );
            system.run("apt-get", &script).map_err(anyhow::Error::msg)
        })?;
        fs::write(&ready, "")?;
        Ok(system)
    }

    /// The release of its kernel, which has headers as well.
    fn kernel(&self) -> Result<String> {
        let mut releases = Vec::new();
        for entry in fs::read_dir(self.root.join("lib/modules"))? {
            let entry = entry?;
            if entry.path().join("build").is_symlink() {
                releases.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        ensure!(releases.len() == 1, "kernels with headers: {releases:?}");
        releases.pop().context("no kernel")
    }

    /// Boots its kernel with its initial ramdisk and an NVMe disk, and looks which came first.
    fn boot(&self, workspace: &Workspace, kernel: &str) -> Result<Result<(), String>> {
        let (emulator, package, machine, console) = match Architecture::native()? {
            Architecture::X86_64 => {
                ("qemu-system-x86_64", "qemu-system-x86", "q35,accel=tcg", "ttyS0")
            }
            Architecture::Aarch64 => {
                ("qemu-system-aarch64", "qemu-system-arm", "virt,gic-version=3", "ttyAMA0")
            }
        };
        install_missing(workspace, &[Tool::program(emulator, package)])?;
        let boot = |file: &str| self.root.join("boot").join(format!("{file}-{kernel}"));
        let mut command = Command::new(emulator);
        command.args(["-machine", machine, "-cpu", "max", "-m", "1024", "-nodefaults"]);
        command.args(["-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(boot("vmlinuz")).arg("-initrd").arg(boot("initrd.img"));
        // The ramdisk stops behind the drivers' loading, and resets the machine as it has no shell.
        command.arg("-append").arg(format!("console={console} break=premount panic=-1"));
        command.args(["-blockdev", "null-co,node-name=disk,size=67108864,read-zeroes=on"]);
        command.args(["-device", "nvme,drive=disk,serial=1"]);
        let (_, text) = process::step("booting the system in QEMU", || {
            process::capture(emulator, &mut command, LIMIT, false)
        })?;
        Ok(loaded_first(&text))
    }

    /// Runs a script in it, with a /proc and processes of its own.
    fn run(&self, what: &str, script: &str) -> Result<(), String> {
        let log = self.root.with_extension("log");
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "sh", "-ec"]);
        command.arg("mount -t proc proc \"$0/proc\"; exec chroot \"$0\" sh -c \"$1\"");
        command.arg(&self.root).arg(script).env("LC_ALL", "C.UTF-8").env_remove("TMPDIR");
        process::run_logged(what, &mut command, &log, LIMIT, || None)
            .map_err(|error| format!("{error:#}"))
    }
}

/// Whether the module had looked for the service before NVMe's driver was bound.
fn loaded_first(text: &str) -> Result<(), String> {
    let line = |what: &str| {
        let found = text.lines().position(|line| line.contains(what));
        found.ok_or_else(|| format!("the kernel did not print {what:?}"))
    };
    let (module, driver) = (line("pvmsi: this machine offers no")?, line("nvme0: pci function")?);
    if module < driver { Ok(()) } else { Err("the driver was bound first".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_is_judged_by_the_order_of_its_lines() {
        let (module, driver) = (
            "[ 1.0] pvmsi: this machine offers no PV-MSI service\n",
            "nvme nvme0: pci function 1\n",
        );
        assert_eq!(loaded_first(&[module, driver].concat()), Ok(()));
        for bad in [&[driver, module][..], &[module], &[driver], &[]] {
            assert!(loaded_first(&bad.concat()).is_err());
        }
    }
}
