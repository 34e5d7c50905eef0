//! Whether the host has slept.
//!
//! When the host goes to sleep the kernel saves the configuration space of each function and puts
//! it into a state of low power; when it wakes up it writes table messages and mask bits as it knows
//! them itself (`pci_restore_msi_state`). It tells nobody who has a function open.
//!
//! Two things that anybody can read show it afterwards. `CLOCK_BOOTTIME` counts while the host sleeps and `CLOCK_MONOTONIC`
//! does not, so the first gains on the second; the same code of the kernel ends a timer with
//! `TFD_TIMER_CANCEL_ON_SET`, which says less: setting the clock does so, too. Neither sees a sleep in
//! which processors only idle (*s2idle* without idle states that stop the clock), nor one that was given up half
//! way; the kernel counts these, where sysfs has `power/suspend_stats`.
//!
//! Source: Linux `kernel/time/timekeeping.c`, `kernel/power/suspend.c`, `kernel/power/main.c`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Notices that the host has slept. The service has no threads: a VMM asks now and then, each second or so, and
/// [repairs](crate::FunctionHandle::repair) its functions when the answer is yes. It may be a moment late: the
/// guest's processors wake up with the VMM. A host that knows before it sleeps freezes them first, which loses nothing.
#[derive(Debug)]
pub struct SleepWatch {
    sysfs: PathBuf,
    /// What has been slept since the boot, at most.
    slept: Duration,
    /// Attempts to sleep that the kernel has counted.
    attempts: u64,
}

impl SleepWatch {
    /// From now on.
    pub fn new() -> Self {
        Self::with_sysfs(Path::new("/sys"))
    }

    fn with_sysfs(sysfs: &Path) -> Self {
        let Range { most, .. } = slept();
        Self { sysfs: sysfs.to_owned(), slept: most, attempts: attempts(sysfs) }
    }

    /// Whether the host has slept, or has tried to, since the last look, or since there is this value. Costs three readings of clocks and two small files; waits for nothing.
    pub fn has_slept(&mut self) -> bool {
        let attempts = attempts(&self.sysfs);
        let tried = std::mem::replace(&mut self.attempts, attempts) != attempts;
        self.has_grown(&slept()) || tried
    }

    /// Whether more has been slept than before, for certain.
    fn has_grown(&mut self, now: &Range) -> bool {
        let grown = now.least > self.slept;
        self.slept = if grown { now.most } else { now.most.min(self.slept) };
        grown
    }
}

impl Default for SleepWatch {
    fn default() -> Self {
        Self::new()
    }
}

/// How long the host has slept since it was booted. The clocks are read one after the other, and this process may wait in between.
struct Range {
    least: Duration,
    most: Duration,
}

fn slept() -> Range {
    let before = clock(libc::CLOCK_MONOTONIC);
    let all = clock(libc::CLOCK_BOOTTIME);
    let after = clock(libc::CLOCK_MONOTONIC);
    Range { least: all.saturating_sub(after), most: all.saturating_sub(before) }
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec, and the kernel only writes it. It has both clocks, so it does not fail.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// How often the kernel has put the host to sleep, or has tried to. 0 where it does not say.
fn attempts(sysfs: &Path) -> u64 {
    let count = |name| {
        let path = sysfs.join("power/suspend_stats").join(name);
        fs::read_to_string(path).ok()?.trim().parse::<u64>().ok()
    };
    ["success", "fail"].into_iter().filter_map(count).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_stays_awake_has_not_slept() {
        let mut watch = SleepWatch::new();
        for _ in 0..1000 {
            assert!(!watch.has_slept());
        }
    }

    #[test]
    fn a_clock_that_has_gained_more_than_can_be_told_by_chance_says_so_once() {
        let ms = Duration::from_millis;
        let mut watch = SleepWatch { sysfs: PathBuf::new(), slept: ms(100), attempts: 0 };
        let mut look = |least, most| watch.has_grown(&Range { least: ms(least), most: ms(most) });
        assert!(!look(90, 150), "the process waited for 60 ms between the clocks");
        assert!(look(105, 130), "what was known before is not forgotten");
        assert!(!look(129, 131));
        assert!(!look(120, 126));
        assert!(look(127, 128));
    }

    #[test]
    fn a_sleep_that_no_clock_sees_is_counted() {
        let sysfs = std::env::temp_dir().join(format!("pvmsi-sleep-{}", std::process::id()));
        let stats = sysfs.join("power/suspend_stats");
        let mut watch = SleepWatch::with_sysfs(&sysfs);
        assert!(!watch.has_slept(), "a kernel without it");
        fs::create_dir_all(&stats).unwrap();
        for name in ["success", "fail"] {
            fs::write(stats.join(name), "3\n").unwrap();
            assert!(watch.has_slept(), "{name}");
            assert!(!watch.has_slept(), "{name}");
        }
        fs::remove_dir_all(sysfs).unwrap();
    }
}
