//! `pvmsi.ko`: loaded, unloaded, and asked what it has done.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::device::Device;
use super::load::Load;
use super::{Answer, driver, object};

/// Its name.
const NAME: &str = "pvmsi";

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
    let others: Option<u64> = ["busy", "restores", "releases"].into_iter().map(number).sum();
    object(json!({
        "mode": value("mode").unwrap_or_default(),
        "reasons": value("reasons").unwrap_or_default(),
        "configures": number("configures"),
        "updates": number("updates"),
        "busy": number("busy"),
        "others": others,
        "queries": number("queries"),
        "errors": number("errors"),
    }))
}

/// Loads and unloads it, while another function works without it. Every second time a driver takes its
/// function in between, uses its interrupts, and lets it go.
pub(super) fn reload(driver: &str, count: u64) -> Result<Answer> {
    // What is allocated once and kept is there after a few times.
    for number in 0..6 {
        reload_once(driver, number)?;
    }
    let load = Load::start()?;
    let begin = Instant::now();
    let (half, mut seen) = (count / 2, vec![slabs()?]);
    for numbers in [0..half, half..count] {
        for number in numbers {
            reload_once(driver, number)?;
        }
        seen.push(slabs()?);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let pieces = load.stop()?;
    // Every second time a driver had its function: a leak of one object each time.
    let grown = grown(&seen, half / 2);
    if !grown.is_empty() {
        bail!("slabs have grown: {}", grown.join("; "));
    }
    object(json!({ "seconds": seconds, "count": count, "pieces": pieces }))
}

/// Those that have grown by so many objects from each time to the next. What grows once is no leak:
/// the caches of a busy kernel move by pages of objects.
fn grown(seen: &[Vec<(String, u64)>], least: u64) -> Vec<String> {
    let names = seen.last().into_iter().flatten().map(|(name, _)| name);
    names
        .filter_map(|name| {
            let objects = |slabs: &Vec<(String, u64)>| {
                slabs.iter().find(|(found, _)| found == name).map_or(0, |&(_, objects)| objects)
            };
            let counts: Vec<u64> = seen.iter().map(objects).collect();
            let grows = counts.windows(2).all(|pair| match pair {
                [before, after] => after.saturating_sub(*before) >= least,
                _ => false,
            });
            grows.then(|| format!("{name}: {counts:?} objects"))
        })
        .collect()
}

fn reload_once(driver: &str, number: u64) -> Result<()> {
    driver::insert(NAME, "")?;
    // Drivers take seconds.
    if number.is_multiple_of(2) {
        occupy_and_leave(driver)?;
    }
    driver::remove(NAME)
}

fn occupy_and_leave(driver: &str) -> Result<()> {
    driver::occupy(driver)?;
    if state(driver)?.get("configures").and_then(Value::as_u64).is_none_or(|calls| calls == 0) {
        bail!("{driver} has its interrupts without {NAME}");
    }
    if driver::remove(NAME).is_ok() {
        bail!("{NAME} goes while {driver} uses it");
    }
    driver::unbind(driver).map(drop)
}

/// Objects in use, by the name of their cache.
fn slabs() -> Result<Vec<(String, u64)>> {
    // What waits to be freed is not in use, nor what a processor keeps for its next object.
    fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop caches")?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    for cache in fs::read_dir("/sys/kernel/slab").context("no caches in sysfs")? {
        fs::write(cache?.path().join("shrink"), "1").context("a cache does not shrink")?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_each_time_leaks() {
        let seen = |counts: [u64; 3]| counts.map(|count| vec![("kmalloc-96".to_owned(), count)]);
        assert_eq!(grown(&seen([100, 150, 200]), 50), ["kmalloc-96: [100, 150, 200] objects"]);
        for still in [[100, 226, 226], [100, 100, 226], [100, 149, 200], [200, 150, 100]] {
            assert!(grown(&seen(still), 50).is_empty(), "{still:?}");
        }
        assert_eq!(grown(&[vec![], vec![("new".to_owned(), 50)]], 50).len(), 1);
    }
}
