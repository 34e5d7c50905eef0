//! Starts programs, bounds their time and keeps the terminal informed.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a silent step says that it still runs.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How often a child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(50);

/// Prints the heading of a step that may take a while, and its time when it has ended.
pub(crate) fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    eprintln!("==> {what}");
    let result = action();
    if result.is_ok() && start.elapsed() >= Duration::from_secs(1) {
        eprintln!("    {:.1} s", start.elapsed().as_secs_f64());
    }
    result
}

/// Runs a program whose output belongs on the terminal. All of it goes to stderr: stdout is
/// kept for the result of the command.
///
/// # Errors
/// When it cannot be started, exits with another status than 0, or exceeds `limit`.
pub(crate) fn run(what: &str, command: &mut Command, limit: Duration) -> Result<()> {
    let child = spawn(command.stdin(Stdio::null()).stdout(io::stderr()))?;
    success(what, wait(child, what, limit, || None)?)
}

/// Runs a program and returns its exit status and what it printed on stdout, which is shown on
/// stderr as it comes with `echo`.
///
/// # Errors
/// When it cannot be started or exceeds `limit`.
pub(crate) fn capture(
    what: &str,
    command: &mut Command,
    limit: Duration,
    echo: bool,
) -> Result<(ExitStatus, String)> {
    let mut child = spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("the child has no stdout")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(stdout).split(b'\n').map_while(io::Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if echo {
                eprintln!("{line}");
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    });
    let status = wait(child, what, limit, || None)?;
    let text = reader.join().unwrap_or_default();
    Ok((status, text))
}

/// Runs a program whose output goes to the file `log`; its last lines are shown when it fails.
///
/// # Errors
/// When it cannot be started, exits with another status than 0, or exceeds `limit`.
pub(crate) fn run_logged(
    what: &str,
    command: &mut Command,
    log: &Path,
    limit: Duration,
    progress: impl FnMut() -> Option<String>,
) -> Result<()> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = spawn(command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file))?;
    let result = wait(child, what, limit, progress).and_then(|status| success(what, status));
    if result.is_err() {
        show_tail(log);
    }
    result
}

/// Shows the last lines of a log on stderr.
pub(crate) fn show_tail(log: &Path) {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- the end of {}", log.display());
    for line in lines.iter().skip(lines.len().saturating_sub(30)) {
        eprintln!("    {line}");
    }
    eprintln!("---");
}

/// Whether a program is found in the search path.
pub(crate) fn available(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

fn success(what: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{what}: {status}");
    }
    Ok(())
}

fn wait(
    mut child: Child,
    what: &str,
    limit: Duration,
    mut progress: impl FnMut() -> Option<String>,
) -> Result<ExitStatus> {
    let start = Instant::now();
    let mut spoken = start;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if let Some(line) = progress() {
            eprintln!("    {line}");
            spoken = Instant::now();
        }
        if spoken.elapsed() >= HEARTBEAT {
            eprintln!("    ... {what}: {} s", start.elapsed().as_secs());
            spoken = Instant::now();
        }
        if start.elapsed() >= limit {
            kill_tree(child.id());
            child.wait()?;
            bail!("{what}: not finished after {} s, stopped", limit.as_secs());
        }
        thread::sleep(POLL);
    }
}

/// Kills a process and what it has started. All are found before the first is killed: the children
/// of a killed process are no longer known as its own.
fn kill_tree(process: u32) {
    let mut family = Vec::new();
    let mut found = vec![process];
    while let Some(parent) = found.pop() {
        found.extend(children(parent));
        family.push(parent);
    }
    for id in family {
        if let Some(id) = i32::try_from(id).ok().and_then(Pid::from_raw) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(id, Signal::KILL);
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>())
        .collect()
}

/// Prints a result on stdout; a closed pipe is the reader's choice, not an error.
pub(crate) fn print(text: &str) {
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_over_its_limit_is_stopped_with_its_children() {
        let start = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "echo begun; sleep 60 & sleep 60; wait"]);
        let error = capture("sleep", &mut command, Duration::from_millis(300), false).unwrap_err();
        assert!(error.to_string().contains("stopped"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn output_and_status_are_handed_over() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two; exit 3"]);
        let (status, text) = capture("sh", &mut command, Duration::from_secs(30), false).unwrap();
        assert_eq!((status.code(), text.as_str()), (Some(3), "one\ntwo\n"));
    }
}
