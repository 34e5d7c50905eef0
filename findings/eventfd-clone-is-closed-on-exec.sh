#!/usr/bin/env bash
# vmm-sys-util 0.15.0: a clone of an eventfd is closed on exec, the eventfd that it was made of is not.
#
# `EventFd::new` passes its flags to eventfd2(2) as they are, so a descriptor made with 0 or
# EFD_NONBLOCK alone is inherited by every program that the process starts. `EventFd::try_clone`
# goes by the standard library, which duplicates with F_DUPFD_CLOEXEC. A VMM that looks at the
# clones that it hands around finds them right, and leaks the originals: a child that holds one keeps
# an irqfd's event alive, and can signal it. Whoever wants both alike passes EFD_CLOEXEC.
# Found while the open files of a VMM were compared before and after it starts a program.
# Needs: cargo. Runs in a temporary folder.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
vmm-sys-util = "=0.15.0"
TOML
cat > src/main.rs <<'RUST'
use std::os::fd::AsRawFd;
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

/// Whether the kernel closes the descriptor on exec: O_CLOEXEC among the flags that it shows.
fn closed_on_exec(event: &EventFd) -> bool {
    const O_CLOEXEC: u32 = 0o2000000;
    let path = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap() & O_CLOEXEC != 0
}

fn main() {
    for (name, flags) in [("EFD_NONBLOCK", EFD_NONBLOCK), ("with EFD_CLOEXEC", EFD_NONBLOCK | EFD_CLOEXEC)] {
        let event = EventFd::new(flags).unwrap();
        let clone = event.try_clone().unwrap();
        println!("{name}: eventfd {}, clone {}", closed_on_exec(&event), closed_on_exec(&clone));
    }
}
RUST
seen=$(cargo run --quiet)
printf '%s\n' "$seen"
expected='EFD_NONBLOCK: eventfd false, clone true
with EFD_CLOEXEC: eventfd true, clone true'
if [ "$seen" != "$expected" ]; then
    echo "it is another now" >&2
    exit 1
fi
echo "as found: the clone is closed on exec, the original is not"
