//! `pvmsi.ko`: loaded, unloaded, and asked what it has done.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::device::Device;
use super::load::Load;
use super::{Answer, driver, object};

/// Its name.
const NAME: &str = "pvmsi";

/// Slabs that grow by so few objects have not grown for what is done hundreds of times.
const SLACK: u64 = 100;

/// Loads it.
pub(super) fn load(parameters: &str) -> Result<Answer> {
    let begin = Instant::now();
    driver::insert(NAME, parameters)?;
    driver::seconds(begin)
}

/// Unloads it.
pub(super) fn unload() -> Result<Answer> {
    let begin = Instant::now();
    driver::remove(NAME)?;
    driver::seconds(begin)
}

/// What it says about a driver's function, by name.
pub(super) fn state(driver: &str) -> Result<Answer> {
    let address = Device::of(driver)?.address;
    let path = format!("/sys/kernel/debug/pvmsi/{address}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let number = |name: &str| value(name).and_then(|text| text.parse::<u64>().ok());
    object(json!({
        "mode": value("mode").unwrap_or_default(),
        "reasons": value("reasons").unwrap_or_default(),
        "configures": number("configures"),
        "updates": number("updates"),
        "restores": number("restores"),
        "releases": number("releases"),
        "errors": number("errors"),
    }))
}

/// Loads and unloads it, while another function works without it.
pub(super) fn reload(count: u64) -> Result<Answer> {
    // What is allocated once and kept is there after a few times.
    for _ in 0..5 {
        driver::insert(NAME, "")?;
        driver::remove(NAME)?;
    }
    let load = Load::start()?;
    let before = slabs()?;
    let begin = Instant::now();
    for _ in 0..count {
        driver::insert(NAME, "")?;
        driver::remove(NAME)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = slabs()?;
    let pieces = load.stop()?;
    let mut grown = Vec::new();
    for (name, objects) in &after {
        let earlier = before.iter().find(|(found, _)| found == name).map_or(0, |&(_, n)| n);
        // A leak of one object for each time.
        if objects.saturating_sub(earlier) >= count.max(SLACK) {
            grown.push(format!("{name}: {earlier} objects, then {objects}"));
        }
    }
    if !grown.is_empty() {
        bail!("slabs have grown: {}", grown.join("; "));
    }
    object(json!({ "seconds": seconds, "count": count, "pieces": pieces }))
}

/// Objects in use, by the name of their cache.
fn slabs() -> Result<Vec<(String, u64)>> {
    // What waits to be freed is not in use.
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    let text = fs::read_to_string("/proc/slabinfo").context("no /proc/slabinfo")?;
    Ok(text
        .lines()
        .skip(2)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        })
        .collect())
}
