//! A program that a VMM starts must not get the machine's files: it could raise interrupts of the guest, or keep a function busy. Alone in its process, whose files it looks at.

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use pvmsi_hypervisor::Policy;
use pvmsi_kvm_tests::{Bench, config};

fn open_files() -> BTreeSet<RawFd> {
    let names = std::fs::read_dir("/proc/self/fd").unwrap().map(|file| file.unwrap().file_name());
    let listed: Vec<RawFd> = names.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
    // The list itself was one of them.
    listed.into_iter().filter(|&file| look(file).is_some()).collect()
}

/// Whether a file ends with the program, and what it is; `None`: it has been closed meanwhile.
fn look(file: RawFd) -> Option<(bool, String)> {
    let what = std::fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{file}")).ok()?;
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    Some((flags & libc::O_CLOEXEC != 0, what.display().to_string()))
}

#[test]
fn a_program_that_is_started_gets_none_of_a_machines_files() {
    let before = open_files();
    let bench = Bench::start(config(4, Policy::Direct));
    bench.control(pvmsi_kvm_tests::ENABLE);
    bench.configure(4);
    let new: Vec<_> = open_files().difference(&before).filter_map(|&file| look(file)).collect();
    let events = new.iter().filter(|(_, what)| what.contains("eventfd")).count();
    assert!(events > 2 * 4, "each vector's, of both sides, and the serial port's: {new:?}");
    let kept: Vec<_> = new.iter().filter(|(ends, _)| !ends).collect();
    assert!(kept.is_empty(), "{kept:?}");
}
