//! Boots the emulated host and reads what its steps have printed.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host::Host;
use super::kind::PageSize;
use crate::process;

/// The drive, behind the first root port.
pub(crate) const NVME: &str = "0000:01:00.0";

/// A network function, behind the second root port. The guest only works its vector table.
pub(crate) const NETWORK: &str = "0000:02:00.0";

/// Processors of the emulated host.
const CPUS: u32 = 2;

/// One thread for all processors. With a thread for each, QEMU 10.0 was seen, once in about a
/// hundred boots, to fail its own assertion in `iotlb_to_section`; one is not slower here.
const ACCELERATOR: &str = "tcg,thread=single";

/// A thread for each processor: with one thread, the processors of a Linux guest hardly get on, and what
/// two processors do at the same time is not seen.
const ACCELERATOR_PARALLEL: &str = "tcg,thread=multi";

/// A wire between the network function and one that the host's own driver keeps.
const COUNTERPART: [&str; 6] = [
    "-netdev",
    "hubport,id=function,hubid=0",
    "-netdev",
    "hubport,id=counterpart,hubid=0",
    "-device",
    "virtio-net-pci,netdev=counterpart,romfile=,addr=8",
];

/// Something that the emulated host runs.
pub(crate) struct Step {
    /// Names its section of the results.
    pub name: &'static str,
    /// Bound inside the emulated host.
    pub limit: Duration,
    /// A command of its shell.
    pub command: String,
}

impl Step {
    /// What the host's own check says of both functions.
    pub(super) fn probe() -> Self {
        Self {
            name: "probe",
            limit: Duration::from_secs(60),
            command: format!("pvmsi probe --json {NVME} {NETWORK}"),
        }
    }
}

/// What a step has left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Exit status; 124 and 137 say that the bound was reached.
    pub status: i32,
    /// What it printed on stdout.
    pub output: String,
}

/// How the emulated host differs between scenarios.
pub(crate) struct Hardware {
    /// Whether functions can raise no other interrupts than their own. If not, VFIO is told to do
    /// without, and the IOMMU does not remap interrupts where that can be chosen.
    pub isolation: bool,
    /// Linux guests run there: what the network function sends reaches the host.
    pub linux: bool,
    /// The host's processors run at the same time.
    pub parallel: bool,
    /// Vectors of the drive.
    pub drive_vectors: u16,
}

impl Hardware {
    /// Isolated functions, no Linux guests, a vector for each of the drive's 64 I/O queues and one more.
    pub(crate) const USUAL: Self =
        Self { isolation: true, linux: false, parallel: false, drive_vectors: 65 };
}

/// The results of one run of the emulated host.
pub(crate) struct Results(String);

impl Results {
    /// The outcome of a step.
    ///
    /// # Errors
    /// When the step was not reached or its output was cut.
    pub(crate) fn outcome(&self, name: &str) -> Result<Outcome> {
        let begin = format!("### begin {name}\n");
        let end = format!("\n### end {name} ");
        let (_, rest) = self
            .0
            .split_once(&begin)
            .with_context(|| format!("the emulated host did not reach the step \"{name}\""))?;
        let (output, rest) = rest
            .split_once(&end)
            .with_context(|| format!("the emulated host did not finish the step \"{name}\""))?;
        let mut numbers = rest.lines().next().unwrap_or_default().split_whitespace();
        let mut number = || numbers.next().and_then(|number| number.parse::<i32>().ok());
        let (Some(status), Some(size)) = (number(), number()) else {
            bail!("the end of the step \"{name}\" was cut");
        };
        if usize::try_from(size).ok() != Some(output.len()) {
            bail!("the output of the step \"{name}\" is {} bytes of {size}", output.len());
        }
        Ok(Outcome { status, output: output.to_owned() })
    }
}

/// Boots the host with an initramfs, waits until it has powered off and returns its results.
/// `console.log`, `results.log` and `qemu.log` stay in `folder`.
///
/// # Errors
/// When the emulator fails, exceeds `limit`, or the steps did not all come to an end.
pub(crate) fn boot(
    host: &Host,
    archive: &Path,
    hardware: &Hardware,
    folder: &Path,
    limit: Duration,
) -> Result<Results> {
    let console = folder.join("console.log");
    let results = folder.join("results.log");
    for file in [&console, &results] {
        fs::write(file, "")?;
    }
    let kind = host.kind();
    let description = kind.architecture.description();
    let unsafe_interrupts = if hardware.isolation { "0" } else { "1" };
    // `timeout` ends the emulator even when this program is killed.
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--kill-after=5"])
        .arg((limit.as_secs().saturating_add(10)).to_string())
        .args(host.emulator())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(description.machine)
        .args((description.iommu)(kind, hardware.isolation || !kind.remaps()))
        .args(["-accel", if hardware.parallel { ACCELERATOR_PARALLEL } else { ACCELERATOR }])
        .args(["-smp", &CPUS.to_string(), "-m", if hardware.linux { "3G" } else { "2G" }])
        .args(["-device", "pcie-root-port,id=port1,chassis=1,addr=1"])
        .args(["-device", "pcie-root-port,id=port2,chassis=2,addr=2"])
        .arg("-drive")
        .arg(format!("file={},if=none,id=disk,format=raw,readonly=on", host.disk().display()))
        .arg("-device")
        .arg(format!(
            "nvme,bus=port1,drive=disk,serial=pvmsi,max_ioqpairs=64,msix_qsize={}",
            hardware.drive_vectors
        ))
        .args([
            "-device",
            if hardware.linux { "igb,bus=port2,netdev=function" } else { "igb,bus=port2" },
        ])
        .args(COUNTERPART.iter().filter(|_| hardware.linux))
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args((description.results_port)(&results.to_string_lossy()))
        .arg("-kernel")
        .arg(host.kernel())
        .arg("-initrd")
        .arg(archive)
        .arg("-append")
        .arg(format!(
            "{} {} quiet panic=-1 pvmsi.results={} pvmsi.functions={NVME},{NETWORK} \
             pvmsi.unsafe={unsafe_interrupts}",
            description.kernel_arguments,
            large_page_arguments(kind.pages),
            description.results_device
        ));
    let mut shown = 0_usize;
    let ended = process::run_logged(
        "the emulated host",
        &mut command,
        &folder.join("qemu.log"),
        limit,
        || {
            let text = read(&console).ok()?;
            // The last line may still grow.
            let (complete, _) = text.rsplit_once('\n')?;
            let line = complete.lines().filter_map(progress).nth(shown)?;
            shown = shown.saturating_add(1);
            Some(line.trim_end().to_owned())
        },
    );
    let text = read(&results)?;
    // The emulator's exit status says nothing about the inside.
    if ended.is_err() || !text.ends_with("### finished\n") {
        process::show_tail(&console);
    }
    ended?;
    if !text.ends_with("### finished\n") {
        bail!("the emulated host ended before its steps; see {}", console.display());
    }
    Ok(Results(text))
}

/// Gives each function's BARs pages of their own where these are larger than the BARs, as `pvmsi probe` advises: both
/// functions keep their tables in BARs of 16K.
fn large_page_arguments(pages: PageSize) -> String {
    match pages {
        PageSize::K4 | PageSize::K16 => String::new(),
        PageSize::K64 => {
            let order = pages.bytes().trailing_zeros();
            format!("pci=resource_alignment={order}@{NVME};{order}@{NETWORK}")
        }
    }
}

/// What a line of the console says to whoever waits.
fn progress(line: &str) -> Option<&str> {
    line.strip_prefix("### ")
        .or_else(|| line.strip_prefix("guest: ").filter(|line| line.starts_with("soak ")))
}

/// A log that a guest may have filled with anything.
fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_found_and_cut_ones_are_told() {
        let results = Results(
            "### begin a\nx\ny\n\n### end a 3 4\n### begin b\nxy\n### end b 0 9\n### begin c\nz"
                .to_owned(),
        );
        assert_eq!(
            results.outcome("a").unwrap(),
            Outcome { status: 3, output: "x\ny\n".to_owned() }
        );
        assert!(results.outcome("b").unwrap_err().to_string().contains("2 bytes of 9"));
        assert!(results.outcome("c").is_err());
        assert!(results.outcome("d").is_err());
    }
}
