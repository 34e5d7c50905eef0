//! Verdicts on made-up hosts.

use std::os::unix::fs::symlink;

use super::*;
use crate::vfio::VfioError;
use crate::vfio::iommu::NoIommu;
use crate::vfio::made_up::MadeUp;

const GROUP: VfioBackend = VfioBackend::Group;

/// Why functions are not isolated on a host, if they are not.
fn why(host: &MadeUp, backend: VfioBackend) -> Option<String> {
    let verdict = function_isolation(&host.paths(), backend, &host.function());
    let same = host_isolation(&host.paths(), backend);
    match (verdict, same) {
        (Isolation::Isolated, Isolation::Isolated) => None,
        (Isolation::NotIsolated(why), Isolation::NotIsolated(same)) => {
            assert_eq!(why, same);
            assert!(why.contains("; "), "what to do: {why}");
            Some(why)
        }
        (function, host) => panic!("{function:?}, {host:?}"),
    }
}

fn says(host: &MadeUp, backend: VfioBackend, words: &str) {
    let why = why(host, backend).expect(words);
    assert!(why.contains(words), "{why}");
}

#[test]
fn a_host_that_confines_functions_is_isolated() {
    assert_eq!(why(&MadeUp::new("isolated"), GROUP), None);
}

#[test]
fn each_parameter_that_is_there_must_be_off() {
    let host = MadeUp::new("parameters");
    host.set_type1("Y");
    says(&host, GROUP, "vfio_iommu_type1.allow_unsafe_interrupts=1");
    host.set_type1("N");
    host.set_iommufd("N");
    assert_eq!(why(&host, GROUP), None);
    assert_eq!(why(&host, VfioBackend::Iommufd), None);
    host.set_iommufd("Y");
    says(&host, GROUP, "iommufd.allow_unsafe_interrupts=1");
    says(&host, VfioBackend::Iommufd, "iommufd.allow_unsafe_interrupts=1");
    host.set_iommufd("N");
    host.set_type1("1");
    says(&host, VfioBackend::Iommufd, "vfio_iommu_type1.allow_unsafe_interrupts=1");
    for odd in ["", "maybe", "NY"] {
        host.set_type1(odd);
        says(&host, GROUP, "nobody can tell");
    }
}

#[test]
fn the_parameter_of_the_module_in_use_must_be_there() {
    let host = MadeUp::new("module");
    // Beside a loaded type1, an iommufd whose parameter cannot be read.
    says(&host, VfioBackend::Iommufd, "of iommufd cannot be read");
    host.remove("sys/module/vfio_iommu_type1");
    says(&host, GROUP, "of vfio_iommu_type1 or iommufd cannot be read");
    // `/dev/vfio/vfio` is iommufd's, so there is no type1 to have a parameter.
    host.set_iommufd("N");
    assert_eq!(why(&host, GROUP), None);
    host.set_iommufd("Y");
    says(&host, GROUP, "iommufd.allow_unsafe_interrupts=1");
}

#[test]
fn a_container_node_that_is_iommufds_needs_iommufds_parameter() {
    let host = MadeUp::new("node");
    // Made-up nodes have number 0:0.
    host.write("sys/class/misc/iommu/dev", "10:127\n");
    assert_eq!(why(&host, GROUP), None);
    host.write("dev/iommu", "");
    host.write("sys/class/misc/iommu/dev", "0:0\n");
    host.remove("dev/vfio/vfio");
    symlink("../iommu", host.paths().dev.join("vfio/vfio")).unwrap();
    says(&host, GROUP, "of iommufd cannot be read");
    host.set_iommufd("N");
    assert_eq!(why(&host, GROUP), None);
}

#[test]
fn what_contradicts_isolation_is_believed() {
    let host = MadeUp::new("nosid");
    host.write("proc/cmdline", "ro intremap=nosid\n");
    says(&host, GROUP, "intremap=nosid");
    host.write("proc/cmdline", "ro intremap=off\n");
    says(&host, GROUP, "switched off on the kernel's command line");
    host.remove("proc/cmdline");
    says(&host, GROUP, "nobody can tell");

    let host = MadeUp::new("chip");
    host.write("sys/kernel/irq/25/chip_name", "PCI-MSIX-0000:00:1f.2\n");
    says(&host, GROUP, "interrupt 25 of the host is not remapped");

    let host = MadeUp::new("log");
    host.write("dev/kmsg", "3,400,12345,-;AMD-Vi: Disabling interrupt remapping\n");
    says(&host, GROUP, "Disabling interrupt remapping");

    let host = MadeUp::new("no-iommu-at-all");
    host.remove("sys/class/iommu");
    says(&host, GROUP, "no IOMMU is in use");
}

#[test]
fn the_log_s_words_on_one_function_are_that_function_s() {
    let host = MadeUp::new("words-on-one");
    let line =
        "4,500,12345,-;vfio-pci 0000:01:00.0: MSI interrupts are not secure, they cannot be\n";
    host.write("dev/kmsg", line);
    let verdict =
        |address: &str| function_isolation(&host.paths(), GROUP, &host.paths().function(address));
    assert!(matches!(verdict("0000:01:00.0"), Isolation::NotIsolated(_)));
    assert_eq!(verdict("0000:02:00.0"), Isolation::Isolated);
    assert_eq!(host_isolation(&host.paths(), GROUP), Isolation::Isolated);
}

/// What a container's functions are, after an attach during which `meanwhile` happens.
fn attach(attachments: &Attachments, host: &MadeUp, meanwhile: impl FnOnce()) -> Isolation {
    let attach = || {
        meanwhile();
        Ok(())
    };
    attachments.attach(&host.function(), attach).unwrap();
    attachments.worst().lock().unwrap().clone()
}

#[test]
fn the_parameter_counts_before_and_after_the_attach() {
    let host = MadeUp::new("before-after");
    let set = |value| {
        let host = &host;
        move || host.set_type1(value)
    };
    let new = || Attachments::new(host.paths(), GROUP);
    assert_eq!(attach(&new(), &host, || {}), Isolation::Isolated);
    set("Y")();
    let on_and_off = attach(&new(), &host, set("N"));
    assert!(matches!(on_and_off, Isolation::NotIsolated(_)), "on at the attach, off afterwards");
    let off_and_on = attach(&new(), &host, set("Y"));
    assert!(matches!(off_and_on, Isolation::NotIsolated(_)), "off before, on at the attach");
    set("N")();
    assert_eq!(attach(&new(), &host, || {}), Isolation::Isolated);
}

#[test]
fn the_worst_verdict_of_a_container_stays() {
    let host = MadeUp::new("worst");
    let attachments = Attachments::new(host.paths(), GROUP);
    let first = attachments.worst();
    assert_eq!(attach(&attachments, &host, || {}), Isolation::Isolated);
    host.set_type1("Y");
    assert!(matches!(attach(&attachments, &host, || {}), Isolation::NotIsolated(_)));
    host.set_type1("N");
    assert!(matches!(attach(&attachments, &host, || {}), Isolation::NotIsolated(_)), "the third");
    assert!(matches!(*first.lock().unwrap(), Isolation::NotIsolated(_)), "the first as well");
}

#[test]
fn functions_that_the_vmm_attaches_are_as_the_host_was_when_it_began() {
    let host = MadeUp::new("of-the-vmm");
    host.set_type1("Y");
    let attachments = Attachments::of_the_vmm(host.paths(), GROUP);
    host.set_type1("N");
    assert!(matches!(attach(&attachments, &host, || {}), Isolation::NotIsolated(_)));
    let attachments = Attachments::of_the_vmm(host.paths(), GROUP);
    assert_eq!(attach(&attachments, &host, || {}), Isolation::Isolated);
}

#[test]
fn an_attach_that_fails_says_nothing_of_others() {
    let host = MadeUp::new("failed");
    let attachments = Attachments::new(host.paths(), GROUP);
    host.set_type1("Y");
    let refused = || Err::<(), _>(VfioError::File(io::Error::other("refused")));
    attachments.attach(&host.function(), refused).unwrap_err();
    host.set_type1("N");
    assert_eq!(attach(&attachments, &host, || {}), Isolation::Isolated);
}

#[test]
fn a_function_without_an_iommu_is_never_attached() {
    for backend in [GROUP, VfioBackend::Iommufd] {
        let host = MadeUp::new("never");
        host.set_iommufd("N");
        let attachments = Attachments::new(host.paths(), backend);
        let device = "sys/bus/pci/devices/0000:01:00.0/vfio-dev/noiommu-vfio0/dev";
        host.write(device, "511:0");
        let attached = attachments.attach(&host.function(), || -> Result<(), _> {
            panic!("attached");
        });
        assert!(matches!(attached, Err(VfioError::NoIommu(NoIommu::Mode(_)))), "{attached:?}");
        host.remove("sys/bus/pci/devices/0000:01:00.0/vfio-dev");
        // Rebound by somebody while it was attached.
        let rebound = attachments.attach(&host.function(), || {
            host.write(device, "511:0");
            Ok(())
        });
        assert!(matches!(rebound, Err(VfioError::NoIommu(NoIommu::Mode(_)))), "{rebound:?}");
    }
}
