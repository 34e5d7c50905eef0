//! What attaching a function shows.

use std::io;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use pvmsi_hypervisor::vfio_ioctls::VfioError as Source;
use pvmsi_hypervisor::{
    Isolation, KvmWindow, MemorySlots, PciFunction, VfioError, VfioFunction, VfioHost, Window,
};

use super::check::Check;
use super::function::mapping;
use crate::arch;

/// What was found.
pub(super) struct Attached {
    pub(super) checks: Vec<Check>,
    /// Whether the kernel has attached it as isolated, or refused it for want of isolation; `None` where it did neither.
    pub(super) isolated: Option<bool>,
}

/// Attaches the function, without starting a guest, and looks at what can be mapped.
pub(super) fn attach(folder: &Path) -> Attached {
    let other = |error: String| {
        let check = Check::bad("attach", "attach", error, "see the kernel log");
        Attached { checks: vec![check], isolated: None }
    };
    let vm = match Kvm::new().and_then(|kvm| kvm.create_vm()) {
        Ok(vm) => Arc::new(vm),
        Err(error) => return other(format!("no VM can be had to attach it to: {error}")),
    };
    let attached = VfioHost::new(&vm).and_then(|host| VfioFunction::open(&host, folder));
    let function = match attached {
        Ok(function) => function,
        Err(error) => return refused(&error),
    };
    let mappings = match function.mappings() {
        Ok(mappings) => mappings,
        Err(error) => return other(error.to_string()),
    };
    let slots = Arc::new(MemorySlots::new(vm, 0..1));
    let window = KvmWindow::new(slots, function.layout(), mappings);
    let isolation = function.isolation();
    let isolated = (isolation == Isolation::Isolated).then_some(true);
    let checks = vec![
        Check::good("attach", "VFIO hands the function out"),
        confined(isolation),
        mapping(function.layout(), window.table_can_be_direct(), folder),
    ];
    Attached { checks, isolated }
}

/// The check of a function's isolation.
pub(super) fn confined(verdict: Isolation) -> Check {
    Check::isolation(verdict, "confined to its own interrupts")
}

/// Why not, and what to do.
fn refused(error: &VfioError) -> Attached {
    let (remedy, isolated) = remedy(error);
    let mut checks = vec![Check::bad("attach", "attach", error.to_string(), remedy)];
    if isolated == Some(false) {
        checks.push(confined(Isolation::NotIsolated(format!(
            "the kernel knows of nothing that isolates its interrupts; {}",
            arch::REMAPPING.remedy
        ))));
    }
    Attached { checks, isolated }
}

fn remedy(error: &VfioError) -> (String, Option<bool>) {
    let VfioError::Request { source, .. } = error else {
        return ("see the kernel log".to_owned(), None);
    };
    if error.refuses_isolation() {
        let no_isolation = arch::REMAPPING.remedy;
        let remedy = match source {
            // The container has got its first group, so the group was to be had.
            Source::ContainerSetIOMMU(_) => no_isolation.to_owned(),
            _ => format!(
                "{no_isolation}. With an iommufd the kernel answers the same where another process has a \
                 function of its IOMMU group"
            ),
        };
        return (remedy, Some(false));
    }
    let remedy = match source {
        Source::OpenGroup(error, group) => match error.kind() {
            io::ErrorKind::PermissionDenied => {
                format!("run as a user that may open /dev/vfio/{group}")
            }
            io::ErrorKind::ResourceBusy => {
                format!("another process has it; `fuser -v /dev/vfio/{group}` says which")
            }
            _ => format!("see why there is no /dev/vfio/{group}"),
        },
        Source::GroupViable => {
            "take the other functions of its IOMMU group from the host".to_owned()
        }
        _ => "see that no other process uses the function's IOMMU group, and see the kernel log"
            .to_owned(),
    };
    (remedy, None)
}

#[cfg(test)]
mod tests {
    use pvmsi_hypervisor::vmm_sys_util::errno;

    use super::*;

    fn request(source: Source) -> Attached {
        refused(&VfioError::Request { operation: "attaching the function", source })
    }

    fn permission() -> errno::Error {
        errno::Error::new(libc::EPERM)
    }

    #[test]
    fn a_refusal_for_want_of_isolation_is_no_other_process() {
        let found = request(Source::ContainerSetIOMMU(permission()));
        assert_eq!(found.isolated, Some(false));
        let problems: Vec<_> = found.checks.iter().filter_map(|check| check.problem).collect();
        assert_eq!(problems, ["attach", "no-isolation"]);
        for check in &found.checks {
            let remedy = check.remedy.as_deref().unwrap();
            assert!(remedy.contains(arch::REMAPPING.remedy), "{remedy}");
            assert!(!remedy.contains("process"), "{remedy}");
        }
        // Of an iommufd it can be either.
        for source in
            [Source::VfioDeviceBindIommufd(permission()), Source::GroupGetDeviceFD(permission())]
        {
            let found = request(source);
            assert_eq!(found.isolated, Some(false));
            let remedy = found.checks[0].remedy.as_deref().unwrap();
            assert!(remedy.contains(arch::REMAPPING.remedy) && remedy.contains("another process"));
        }
    }

    #[test]
    fn other_refusals_say_nothing_of_isolation() {
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        for (source, words) in [
            (Source::OpenGroup(busy, "7".to_owned()), "fuser -v /dev/vfio/7"),
            (Source::GroupViable, "other functions of its IOMMU group"),
            (Source::ContainerSetIOMMU(errno::Error::new(libc::EBUSY)), "no other process"),
            (Source::GroupSetContainer, "no other process"),
        ] {
            let found = request(source);
            assert_eq!((found.isolated, found.checks.len()), (None, 1));
            let remedy = found.checks[0].remedy.as_deref().unwrap();
            assert!(remedy.contains(words), "{remedy}");
        }
    }
}
