//! A guest below a VMM, and the talk with its agent.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pvmsi_linux_lab::plan::{Boot, Suite};
use pvmsi_linux_lab::report::Vmm;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::agent::MARK;

/// Bound of a guest's boot, emulated twice.
const BOOT: Duration = Duration::from_secs(900);

/// What an agent says first.
#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    /// Of its kernel.
    pub release: String,
    /// Its architecture.
    pub machine: String,
    /// Seconds since its kernel began.
    pub uptime: f64,
    /// Its functions.
    pub functions: Vec<GuestFunction>,
}

/// A function, as the guest sees it.
#[derive(Debug, Deserialize)]
pub(super) struct GuestFunction {
    /// Its driver.
    pub driver: String,
    /// Guest physical address of its vector table.
    pub table: u64,
    /// Entries of the table.
    pub entries: u64,
}

/// What an agent answers; what a request has nothing to say about is left out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    /// How long it took.
    pub seconds: f64,
    /// How often it was done.
    pub count: Option<u64>,
    /// Of `heard`: frames that came twice.
    pub doubled: u64,
    /// Interrupts that did not arrive.
    pub lost: u64,
    /// Lines of the kernel's log that say that something is wrong.
    pub bad: Vec<String>,
    /// Of `affinity`: vectors that were moved.
    pub vectors: u64,
    /// Of `module_state`: the table's mode.
    pub mode: String,
    /// The same: why it is not direct.
    pub reasons: String,
    /// The same: calls so far.
    pub configures: Option<u64>,
    /// The same.
    pub updates: Option<u64>,
    /// The same: those that were repeated for a host that was busy.
    pub busy: Option<u64>,
    /// The same: `configure` repeated for a host that is busy, `restore`, and `release`.
    pub others: Option<u64>,
    /// The same: questions of the module's own, which come when it finds time.
    pub queries: Option<u64>,
}

/// No answer in time.
#[derive(Debug)]
struct Silence {
    seconds: u64,
    told: String,
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer after {} s{}", self.seconds, self.told)
    }
}

impl Error for Silence {}

/// What every answer says.
#[derive(Deserialize)]
struct Envelope<T> {
    ok: bool,
    error: Option<String>,
    #[serde(flatten)]
    answer: Option<T>,
}

/// A guest that runs.
pub(super) struct Guest {
    vmm: Child,
    console: ChildStdin,
    lines: Receiver<String>,
    /// The last lines of the console, for failures.
    tail: Vec<String>,
    /// All output of the VMM beside the console.
    log: PathBuf,
    /// What this project's VMM says at its end.
    report: PathBuf,
}

/// What this project's VMM says at its end.
#[derive(Debug, Deserialize)]
pub(super) struct Report {
    /// Its functions.
    pub functions: Vec<ReportFunction>,
}

/// How a function stood.
#[derive(Debug, Deserialize)]
pub(super) struct ReportFunction {
    /// Its address in the guest.
    pub guest_address: String,
    /// What the service says about it.
    pub service: ReportService,
}

/// What the service says.
#[derive(Debug, Deserialize)]
pub(super) struct ReportService {
    /// Since the start.
    pub counters: ReportCounters,
}

/// What the service has counted.
#[derive(Debug, Deserialize)]
pub(super) struct ReportCounters {
    /// Calls that it has refused.
    pub failed_calls: u64,
    /// `VFIO_DEVICE_SET_IRQS` that set something up or took it down.
    pub interrupt_setups: u64,
    /// Those that changed MSI-X Enable alone.
    pub enable_changes: u64,
}

impl Guest {
    /// Starts it, and waits for what its agent says first.
    pub(super) fn start(boot: &Boot, index: usize) -> Result<(Self, Hello)> {
        let report = PathBuf::from(format!("/run/report-{index}.json"));
        let mut command = match boot.vmm {
            Vmm::Qemu => qemu(boot),
            Vmm::Pvmsi => pvmsi(boot, &report),
        };
        let log = PathBuf::from(format!("/run/vmm-{index}.log"));
        let mut vmm = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let console = vmm.stdin.take().context("no console")?;
        let output = vmm.stdout.take().context("no console")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                line.clear();
                if !text.is_empty() && !text.contains(MARK) {
                    eprintln!("guest: {text}");
                }
                if sender.send(text).is_err() {
                    break;
                }
            }
        });
        let mut guest = Self { vmm, console, lines, tail: Vec::new(), log, report };
        let hello = guest.listen(BOOT).context("the guest does not come up")?;
        Ok((guest, hello))
    }

    /// Asks the agent for something and waits for its answer.
    pub(super) fn ask(&mut self, request: &str, limit: Duration) -> Result<Answer> {
        self.send(request)?;
        self.listen(limit).with_context(|| format!("the guest, asked for \"{request}\""))
    }

    /// Asks a guest for something that it is woken from by input.
    pub(super) fn ask_and_wake(&mut self, request: &str, limit: Duration) -> Result<Answer> {
        self.send(request)?;
        let begin = Instant::now();
        let mut woken = false;
        loop {
            // It must have time to fall asleep; one that was not asleep yet is woken again.
            let answer = self.listen(Duration::from_secs(10));
            match answer {
                Err(error) if error.is::<Silence>() && begin.elapsed() < limit => {
                    self.send("")?;
                    woken = true;
                }
                Ok(_) if !woken => bail!("the guest, asked for \"{request}\", did not sleep"),
                answer => {
                    return answer.with_context(|| format!("the guest, asked for \"{request}\""));
                }
            }
        }
    }

    /// Waits for what the agent of another kernel says first.
    pub(super) fn hello(&mut self) -> Result<Hello> {
        self.listen(BOOT).context("the next kernel does not come up")
    }

    /// Types a line.
    pub(super) fn send(&mut self, line: &str) -> Result<()> {
        writeln!(self.console, "{line}").context("the console is closed")?;
        self.console.flush()?;
        Ok(())
    }

    /// Waits for the agent's next answer.
    pub(super) fn listen<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        let begin = Instant::now();
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    let told = self.told();
                    return Err(Silence { seconds: limit.as_secs(), told }.into());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the VMM has ended: {:?}{}", self.vmm.wait(), self.told())
                }
            };
            let Some((_, text)) = line.split_once(MARK) else {
                if !line.is_empty() {
                    self.tail.push(line);
                }
                continue;
            };
            let envelope = serde_json::from_str(text.trim())
                .with_context(|| format!("the console is garbled: {line}"))?;
            return open(envelope);
        }
    }

    /// What the VMM and the guest's kernel have said.
    fn told(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let console = self.tail.iter().map(String::as_str);
        let lines: Vec<&str> = console.chain(log.lines()).collect();
        let last = lines.get(lines.len().saturating_sub(25)..).unwrap_or_default();
        if last.is_empty() { String::new() } else { format!("; it said:\n  {}", last.join("\n  ")) }
    }

    /// Lets it power off. Tells what this project's VMM says at the end; QEMU says nothing.
    pub(super) fn finish(mut self, vmm: Vmm) -> Result<Option<Report>> {
        self.send("power_off")?;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(60) {
            match self.vmm.try_wait()? {
                Some(status) if status.success() => return self.report(vmm),
                Some(status) => bail!("the VMM has failed: {status}{}", self.told()),
                None => {}
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("the guest does not power off{}", self.told())
    }

    fn report(&self, vmm: Vmm) -> Result<Option<Report>> {
        if vmm == Vmm::Qemu {
            return Ok(None);
        }
        let text = std::fs::read(&self.report).context("the VMM has written no report")?;
        serde_json::from_slice(&text).context("the VMM's report is none").map(Some)
    }
}

/// What an answer says, or why there is none.
fn open<T>(envelope: Envelope<T>) -> Result<T> {
    match envelope {
        Envelope { ok: true, answer: Some(answer), .. } => Ok(answer),
        Envelope { error, .. } => {
            bail!("{}", error.as_deref().unwrap_or("the answer is no answer"))
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It has ended already unless something went wrong.
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// Kernel command line of every guest.
pub(super) fn command_line() -> String {
    // Boots faster, emulated twice.
    let fast = "nokaslr mitigations=off cryptomgr.notests rcupdate.rcu_expedited=1";
    // iomem: the agent writes to the vector table. no_console_suspend: input must wake. log_buf_len: a
    // driver that is bound hundreds of times in one event has a lot to say.
    let needed = "iomem=relaxed no_console_suspend log_buf_len=4M";
    format!("{CONSOLE} quiet loglevel=3 panic=-1 {fast} {needed}")
}

/// The console, and timers that an emulated processor holds up.
#[cfg(target_arch = "x86_64")]
const CONSOLE: &str = "console=ttyS0 no_timer_check tsc=reliable";

/// The device tree names the console.
#[cfg(target_arch = "aarch64")]
const CONSOLE: &str = "";

#[cfg(target_arch = "x86_64")]
const QEMU_MACHINE: [&str; 2] = ["/qemu/qemu-system-x86_64", "q35"];
#[cfg(target_arch = "aarch64")]
const QEMU_MACHINE: [&str; 2] = ["/qemu/qemu-system-aarch64", "virt,gic-version=3,its=on"];

/// Virtual processors of a guest: an I/O queue of NVMe for each.
const PROCESSORS: &str = "2";

/// RAM of a guest.
const MEMORY: &str = "768M";

/// Debian's QEMU with its own libraries.
fn qemu(boot: &Boot) -> Command {
    let [program, machine] = QEMU_MACHINE;
    let mut command = Command::new("/qemu/loader");
    command.args(["--library-path", "/qemu/libraries", program]);
    command.args(["-L", "/qemu/firmware", "-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-machine", machine, "-accel", "kvm", "-cpu", "host"]);
    command.args(["-smp", PROCESSORS, "-m", MEMORY, "-serial", "stdio", "-no-reboot"]);
    command.args(["-kernel", &format!("{}/vmlinuz", boot.kernel)]);
    command.args(["-initrd", &format!("{}/initrd", boot.kernel)]);
    command.args(["-append", &command_line()]);
    for (index, function) in boot.functions.iter().enumerate() {
        let mut device = format!("vfio-pci,host={function}");
        // Nothing leaves the root bus while the guest runs.
        if boot.suite == Suite::Unplug {
            command.args([
                "-device",
                &format!("pcie-root-port,id=port{index},chassis={}", index.saturating_add(1)),
            ]);
            device.push_str(&format!(",bus=port{index}"));
        }
        command.args(["-device", &device]);
    }
    command
}

/// This project's VMM.
fn pvmsi(boot: &Boot, report: &Path) -> Command {
    let mut command = Command::new("pvmsi");
    command.args(["run", "--cpus", PROCESSORS, "--memory", MEMORY, "--report", "none"]);
    command.arg("--report-file").arg(report);
    command.args(["--kernel", &format!("{}/vmlinuz", boot.kernel)]);
    command.args(["--initrd", &format!("{}/initrd", boot.kernel)]);
    command.args(["--append", &command_line()]);
    if let Some(policy) = boot.policy {
        command.args(["--pv-msi", policy.name()]);
    }
    let mut options = "";
    if boot.is_tight() {
        command.args(["--vectors-per-call", "1", "--doorbell", "mmio"]);
        options = ",most-vectors=2";
    }
    for function in &boot.functions {
        command.args(["--function", &format!("vfio:{function}{options}")]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: DeserializeOwned>(text: &str) -> Result<T> {
        open(serde_json::from_str(text)?)
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(read::<Answer>(r#"{"ok":true}"#).unwrap().count, None);
        let answer: Answer =
            read(r#"{"ok":true,"seconds":0.5,"count":10,"lost":1,"bad":["WARNING: x"]}"#).unwrap();
        assert_eq!((answer.count, answer.lost, answer.bad.len()), (Some(10), 1, 1));
        let refused = read::<Answer>(r#"{"ok":false,"error":"no driver"}"#).unwrap_err();
        assert_eq!(refused.to_string(), "no driver");
        let hello: Hello = read(
            r#"{"ok":true,"release":"6.12","machine":"x86_64","uptime":1.5,
                "functions":[{"address":"0000:00:01.0","driver":"nvme","table":8192,"entries":65}]}"#,
        )
        .unwrap();
        assert_eq!(hello.functions.first().unwrap().entries, 65);
        assert!(read::<Hello>(r#"{"ok":true}"#).is_err());
    }
}
