//! KVM's VFIO device, of which a VM has one.

use std::sync::Arc;

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::Kvm;
use pvmsi_hypervisor::vfio_ioctls::VfioDeviceFd;
use pvmsi_hypervisor::{VfioBackend, VfioError, VfioHost};

#[test]
fn a_vmms_own_vfio_device_is_used_where_a_second_is_refused() {
    let vm = Kvm::new().unwrap().create_vm().unwrap();
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    let own = Arc::new(VfioDeviceFd::new_from_kvm(vm.create_device(&mut device).unwrap()));
    match VfioHost::new(&vm) {
        Err(VfioError::KvmDevice(error)) => {
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        }
        other => panic!("a second one: {other:?}"),
    }
    // Whether there is VFIO at all is the host's.
    for backend in [VfioBackend::Group, VfioBackend::Iommufd] {
        match VfioHost::with_kvm_device(Arc::clone(&own), backend) {
            Ok(host) => assert_eq!(host.backend(), backend),
            Err(error) => assert!(matches!(error, VfioError::Unavailable(_)), "{error:?}"),
        }
    }
    drop(own);
    // It went with its last descriptor, so an attempt that failed does not stand in the way of the next.
    for _ in 0..2 {
        if let Err(error) = VfioHost::new(&vm) {
            assert!(matches!(error, VfioError::Unavailable(_)), "{error:?}");
        }
    }
}
