//! Inside a guest: does what the console asks for, and answers with one line each.
//!
//! A request is a line of words. The answer is [`MARK`], a space and a JSON object: `ok` says whether it
//! was done, `error` why not; the rest depends on the request. Other lines on the console are the
//! kernel's.

mod device;
mod disk;
mod driver;
mod interrupts;
mod load;
mod log;
mod module;
mod network;
mod system;

use std::io::{self, BufRead, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use self::device::Device;
pub(crate) use self::log::KernelLog;
use crate::packets::{self, Listener};

/// What an answer starts with.
pub(crate) const MARK: &str = "@pvmsi";

/// What an answer says beside `ok`.
type Answer = Map<String, Value>;

/// Answers requests until the guest ends.
pub(crate) fn run() -> Result<bool> {
    let mut log = KernelLog::open()?;
    let mut listener = None;
    answer(hello())?;
    for line in io::stdin().lock().lines() {
        let line = line.context("cannot read the console")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        // What wakes a guest is an empty line.
        if !words.is_empty() {
            answer(perform(&words, &mut log, &mut listener))?;
        }
    }
    Ok(true)
}

fn answer(result: Result<Answer>) -> Result<()> {
    let mut object = Map::new();
    match result {
        Ok(answer) => {
            object.insert("ok".to_owned(), true.into());
            object.extend(answer);
        }
        Err(error) => {
            object.insert("ok".to_owned(), false.into());
            object.insert("error".to_owned(), format!("{error:#}").into());
        }
    }
    let mut out = io::stdout().lock();
    // The kernel's lines may have been left open.
    writeln!(out, "\n{MARK} {}", Value::Object(object))?;
    out.flush()?;
    Ok(())
}

fn perform(words: &[&str], log: &mut KernelLog, listener: &mut Option<Listener>) -> Result<Answer> {
    match words {
        ["prepare", driver] => driver::prepare(driver),
        ["load", driver] => driver::load(driver),
        ["unload", driver] => driver::unload(driver),
        ["bind", driver] => driver::bind(driver),
        ["unbind", driver] => driver::unbind(driver),
        ["gone", driver] => driver::gone(driver),
        ["vanishes", driver] => driver::vanishes(driver),
        ["read", count, bytes] => disk::read(number(count)?, number(bytes)?),
        ["affinity", driver, count] => interrupts::affinity(driver, number(count)?),
        ["affinity_under_load", driver, count] => {
            let load = load::Load::start()?;
            let result = interrupts::affinity(driver, number(count)?);
            load.stop()?;
            result
        }
        ["affinity_for", driver, seconds] => {
            let load = load::Load::start()?;
            let result = interrupts::affinity_for(driver, Duration::from_secs(number(seconds)?));
            load.stop()?;
            result
        }
        ["gather", driver] => interrupts::gather(driver),
        ["mask_unmask", driver, count] => interrupts::mask_unmask(driver, number(count)?),
        ["check", driver] => driver::check(driver),
        ["disable_enable", driver] => driver::disable_enable(driver),
        ["reset", driver] => driver::reset(driver),
        ["cpu_off_on", driver] => system::processor_off_on(driver),
        ["suspend", driver] => system::suspend(driver),
        ["module_load", parameters @ ..] => module::load(&parameters.join(" ")),
        ["module_unload"] => module::unload(),
        ["module_state", driver] => module::state(driver),
        ["module_reload", driver, count] => module::reload(driver, number(count)?),
        ["listen"] => {
            *listener = Some(Listener::start(&network::interface()?)?);
            object(json!({}))
        }
        ["heard"] => {
            let heard = listener.take().context("nobody listens")?.stop()?;
            object(json!({ "count": heard.frames, "doubled": heard.doubled }))
        }
        ["hear", count] => {
            listener.as_ref().context("nobody listens")?.wait(number(count)?);
            object(json!({}))
        }
        ["send", first, end] => {
            packets::send(&network::interface()?, number(first)?..number(end)?)?;
            object(json!({}))
        }
        ["log"] => log.answer(),
        ["kexec", command_line @ ..] => system::kexec(&command_line.join(" ")),
        ["power_off"] => system::power_off(),
        _ => bail!("no request {words:?}"),
    }
}

/// Which kernel this is, and which functions it has.
fn hello() -> Result<Answer> {
    let name = rustix::system::uname();
    let functions: Result<Vec<Value>> = Device::all()?.iter().map(Device::describe).collect();
    object(json!({
        "release": name.release().to_string_lossy(),
        "machine": name.machine().to_string_lossy(),
        "uptime": system::uptime()?,
        "functions": functions?,
    }))
}

fn object(value: Value) -> Result<Answer> {
    match value {
        Value::Object(map) => Ok(map),
        _ => bail!("an answer is an object"),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().with_context(|| format!("{text} is no number"))
}
