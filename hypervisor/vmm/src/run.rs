//! `pvmsi run`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::raw::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use vmm_sys_util::signal::register_signal_handler;

use crate::arguments::{ReportFormat, RunArguments, Status};
use crate::config::{MachineConfig, Program};
use crate::console::{self, RawTerminal};
use crate::control::End;
use crate::machine::Machine;
use crate::measurements::report_text;
use crate::output::{self, Stream};

/// The guest that runs when none is named, beside this program.
const DEMO_GUEST: &str = "pvmsi-demo-guest";
/// How often the main thread looks for signals.
const LOOK: Duration = Duration::from_millis(100);

/// Set by signals that end the run.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs a guest to its end.
pub(crate) fn command(arguments: &RunArguments) -> Status {
    match run(arguments) {
        Ok(status) => status,
        Err((status, error)) => {
            output::complain(&format!("error: {error}"));
            status
        }
    }
}

fn run(arguments: &RunArguments) -> Result<Status, (Status, String)> {
    log(&arguments.log).map_err(|error| (Status::Usage, error))?;
    let program = program(arguments).map_err(|error| (Status::Usage, error))?;
    let linux = matches!(program, Program::Linux { .. });
    let (console, console_error) = console(arguments.report);
    // A guest shall not run for hours before a path turns out to be wrong.
    let file = arguments.report_file.as_deref().map(|path| {
        File::create(path).map_err(|error| {
            let text = format!("the report file {} cannot be made: {error}", path.display());
            (Status::Usage, text)
        })
    });
    let file = file.transpose()?;
    let config = MachineConfig {
        program,
        command_line: arguments.append.clone(),
        memory_bytes: arguments.memory,
        cpus: arguments.cpus,
        policy: arguments.policy,
        doorbell: arguments.doorbell,
        functions: arguments.functions.clone(),
        vectors_per_call: arguments.vectors_per_call,
        pin_interrupts: arguments.pin_interrupts,
        console: Some(console),
        ..MachineConfig::new(Vec::new())
    };
    let machine = Machine::new(config).map_err(|error| {
        let status = if error.is_usage() { Status::Usage } else { Status::Host };
        (status, error.to_string())
    })?;
    for note in machine.notes() {
        output::complain(&format!("warning: {note}"));
    }
    end_on_signals();
    let limit = arguments.timeout.map(Duration::from_secs);
    if linux {
        run_with_console(&machine, limit).map_err(|error| (Status::Host, error.to_string()))?;
    } else {
        machine.resume();
        wait(&machine, limit);
    }

    let report = machine.report();
    let json = || Ok(format!("{}\n", serde_json::to_string_pretty(&report)?));
    let written = file.map_or(Ok(()), |mut file| file.write_all(json()?.as_bytes()));
    let printed = match arguments.report {
        ReportFormat::Json => json().and_then(|json| output::print(&json)),
        // Linux measures nothing by itself.
        ReportFormat::Text if linux => Ok(()),
        ReportFormat::Text => {
            output::print(&report_text::table(&report, io::stdout().is_terminal()))
        }
        ReportFormat::None => Ok(()),
    };
    let console = console_error.lock().unwrap_or_else(PoisonError::into_inner).take();
    took_all(written, printed, console).map_err(|error| (Status::Host, error))?;
    if arguments.report != ReportFormat::Text || linux {
        for failure in &report.failures {
            output::complain(&format!("error: {failure}"));
        }
    }
    Ok(if report.passed() { Status::Success } else { Status::Failed })
}

/// Where the guest's serial port is shown, and where an error of that will be.
fn console(report: ReportFormat) -> (Box<dyn Write + Send>, Arc<Mutex<Option<io::Error>>>) {
    match report {
        // Standard error takes what it can.
        ReportFormat::Json => (Box::new(Stream::new(io::stderr())), Arc::default()),
        ReportFormat::Text | ReportFormat::None => {
            let stream = Stream::new(io::stdout());
            let error = stream.error();
            (Box::new(stream), error)
        }
    }
}

/// Whether what the run had to say was taken.
///
/// # Errors
/// What was not, and why.
fn took_all(
    report_file: io::Result<()>,
    report: io::Result<()>,
    console: Option<io::Error>,
) -> Result<(), String> {
    report_file.map_err(|error| format!("the report file is not written: {error}"))?;
    report.map_err(|error| format!("the report cannot be printed: {error}"))?;
    console.map_or(Ok(()), |error| Err(format!("the guest's console was not taken whole: {error}")))
}

/// Runs a guest whose serial port takes standard input.
///
/// # Errors
/// When the terminal cannot be set up.
fn run_with_console(machine: &Machine, limit: Option<Duration>) -> io::Result<()> {
    let terminal = io::stdin().is_terminal();
    let _raw = terminal.then(RawTerminal::enter).transpose()?;
    let (stop, stopper) = io::pipe()?;
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("pvmsi-console".into());
        reader.spawn_scoped(scope, || {
            match console::carry(terminal, &stop, |bytes| machine.serial_input(bytes)) {
                Ok(true) => machine.stop(),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "standard input cannot be read"),
            }
        })?;
        machine.resume();
        wait(machine, limit);
        drop(stopper);
        Ok(())
    })
}

/// Waits for the guest, a signal or the time limit.
fn wait(machine: &Machine, limit: Option<Duration>) {
    let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
    while machine.wait(Some(LOOK)).is_none() {
        if INTERRUPTED.load(Ordering::Relaxed) {
            machine.stop();
            machine.wait(None);
            return;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            machine.pause();
            if machine.ended().is_none() {
                let seconds = limit.unwrap_or_default().as_secs();
                machine.note_failure(format!("the guest has not finished within {seconds} s"));
                for line in machine.describe_vcpus() {
                    machine.note_failure(line);
                }
            }
            machine.stop();
            machine.wait(None);
            return;
        }
    }
    if let Some(End::Failed(_)) = machine.ended() {
        tracing::debug!("the run has failed");
    }
}

/// What to run.
fn program(arguments: &RunArguments) -> Result<Program, String> {
    let read = |what: &str, path: &Path, remedy: &str| {
        std::fs::read(path).map_err(|error| {
            format!("the {what} {} cannot be read: {error}{remedy}", path.display())
        })
    };
    let Some(kernel) = &arguments.kernel else {
        return read("guest", &guest(arguments.guest())?, "").map(Program::BareMetal);
    };
    let initrd = arguments
        .initrd
        .as_deref()
        .map(|path| {
            read(
                "initrd",
                path,
                "; it is /boot/initrd.img-RELEASE on Debian, and made by update-initramfs",
            )
        })
        .transpose()?;
    let kernel =
        read("kernel", kernel, "; it is /boot/vmlinuz-RELEASE on Debian, readable for root")?;
    Ok(Program::Linux { kernel, initrd })
}

/// The bare-metal guest to run.
fn guest(named: Option<PathBuf>) -> Result<PathBuf, String> {
    if let Some(path) = named {
        return Ok(path);
    }
    let this = std::env::current_exe().map_err(|error| format!("where is pvmsi? {error}"))?;
    let path = this.parent().unwrap_or(Path::new(".")).join(DEMO_GUEST);
    if path.exists() {
        return Ok(path);
    }
    Err(format!(
        "no guest was named, and the demo guest is not at {}: `cargo xtask demo` builds it and puts it there",
        path.display()
    ))
}

fn log(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("--log {filter}: {error}; write warn, debug, or pvmsi=debug"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would panic where standard error takes nothing.
        .log_internal_errors(false)
        .try_init()
        .map_err(|error| error.to_string())
}

/// These signals end the run as if the host had stopped it, and the terminal is as before.
fn end_on_signals() {
    extern "C" fn interrupted(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        if let Err(error) = register_signal_handler(signal, interrupted) {
            tracing::warn!(%error, signal, "the signal will end the program at once");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::programs;
    use crate::control::End;
    use crate::test_guest;

    #[test]
    fn output_that_was_not_taken_fails_the_run() {
        let full = || io::Error::from_raw_os_error(libc::ENOSPC);
        took_all(Ok(()), Ok(()), None).unwrap();
        for failed in [
            took_all(Err(full()), Ok(()), None),
            took_all(Ok(()), Err(full()), None),
            took_all(Ok(()), Ok(()), Some(full())),
        ] {
            assert!(failed.unwrap_err().contains("No space left"));
        }
    }

    #[test]
    fn a_console_that_takes_nothing_does_not_stop_the_guest() {
        let stream = Stream::new(File::options().write(true).open("/dev/full").unwrap());
        let error = stream.error();
        let console: Box<dyn Write + Send> = Box::new(stream);
        let run = test_guest::run(&programs::hi(), |config| config.console = Some(console));
        let Some((machine, end)) = run else { return };
        assert_eq!(end, End::Exited(0));
        assert_eq!(machine.serial_output(), b"hi");
        let error = error.lock().unwrap().take().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    }
}
