//! Whether KVM forwards interrupts to guests without the host's processor on a kernel whose log a guest can fill then.
//!
//! arm64 only: elsewhere kernels keep no such books.

use std::fs;

use pvmsi_hypervisor::HostPaths;

use super::check::Check;

/// Forwarding is something for arm64 to look at.
pub(super) const IS_LOGGED: bool = cfg!(target_arch = "aarch64");

/// From this release on no order of a guest's is logged: G-622 and the chapter on security of the specification.
const QUIET: (u32, u32) = (6, 16);

/// What is said of GICv4; `None` where the kernel was not told to use it.
pub(super) fn gicv4(paths: &HostPaths) -> Option<Check> {
    const NAME: &str = "GICv4";
    let command_line = fs::read_to_string(paths.procfs.join("cmdline")).ok()?;
    if !enabled(&command_line) {
        return None;
    }
    let kernel = fs::read_to_string(paths.procfs.join("sys/kernel/osrelease")).unwrap_or_default();
    let kernel = kernel.trim();
    // A release that nobody can read may be an old one.
    if release(kernel).is_some_and(|release| release >= QUIET) {
        return Some(Check::good(NAME, "KVM may forward interrupts without the host's processor"));
    }
    Some(Check::advice(
        NAME,
        "gicv4-log",
        format!(
            "KVM was told to forward interrupts without the host's processor, and this kernel ({kernel}) can log a warning \
             each time a guest binds a vector to another event"
        ),
        "use Linux 6.16 or later, or take kvm-arm.vgic_v4_enable off the kernel's command line, unless all guests are \
         trusted; with panic_on_warn in any case",
    ))
}

/// Reads a kernel command line as the kernel does (`early_gicv4_enable` in `arch/arm64/kvm/vgic/vgic-v3.c`; `parameq`, `kstrtobool`): the last value that is one counts.
fn enabled(command_line: &str) -> bool {
    let words = command_line.split_whitespace().map(|word| word.trim_matches('"'));
    // What follows is for init.
    let values = words.take_while(|&word| word != "--").filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        let value = value.trim_matches('"');
        let is_it = name.replace('-', "_") == "kvm_arm.vgic_v4_enable";
        match (is_it, value.as_bytes()) {
            (true, [b'1' | b'y' | b'Y' | b't' | b'T', ..] | [b'o' | b'O', b'n' | b'N', ..]) => {
                Some(true)
            }
            (true, [b'0' | b'n' | b'N' | b'f' | b'F', ..] | [b'o' | b'O', b'f' | b'F', ..]) => {
                Some(false)
            }
            _ => None,
        }
    });
    values.last().unwrap_or(false)
}

/// The first two numbers of a release as `6.12.118+deb13-arm64`.
fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|at: char| !at.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read_as_the_kernel_reads_it() {
        for (line, expected) in [
            ("ro quiet", false),
            ("ro kvm-arm.vgic_v4_enable=1", true),
            ("kvm_arm.vgic-v4-enable=Y", true),
            ("\"kvm-arm.vgic_v4_enable=on\"", true),
            ("kvm-arm.vgic_v4_enable=\"true\" quiet", true),
            ("kvm-arm.vgic_v4_enable=0", false),
            ("kvm-arm.vgic_v4_enable=off", false),
            ("kvm-arm.vgic_v4_enable=1 kvm-arm.vgic_v4_enable=n", false),
            ("kvm-arm.vgic_v4_enable=1 kvm-arm.vgic_v4_enable=x", true),
            ("kvm-arm.vgic_v4_enable", false),
            ("kvm-arm.vgic_v4_enable=", false),
            ("kvm-arm.vgic_v4_enable=o", false),
            ("kvm-arm.vgic_v3_common_trap=1", false),
            ("ro -- kvm-arm.vgic_v4_enable=1", false),
        ] {
            assert_eq!(enabled(line), expected, "{line}");
        }
    }

    #[test]
    fn releases_begin_with_two_numbers() {
        for (text, expected) in [
            ("6.12.118+deb13-cloud-arm64", Some((6, 12))),
            ("6.16-rc1", Some((6, 16))),
            ("7.3.4", Some((7, 3))),
            ("6", None),
            ("", None),
            ("linux 6.1", None),
            ("99999999999.1", None),
        ] {
            assert_eq!(release(text), expected, "{text}");
        }
    }
}
