//! The two interfaces of VFIO.

use vfio_ioctls::VfioContainer;

/// How functions are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioBackend {
    /// `/dev/vfio/vfio` and IOMMU groups.
    Group,
    /// `/dev/iommu` and `/dev/vfio/devices`.
    Iommufd,
}

impl VfioBackend {
    /// The interface that [`VfioHost::new`](crate::VfioHost::new) uses on this machine: groups where the container can be opened and has an IOMMU driver, else an iommufd. `None` where neither can be used.
    pub fn usable() -> Option<Self> {
        if VfioContainer::new(None).is_ok() {
            Some(Self::Group)
        } else if iommufd_ioctls::IommuFd::new().is_ok() {
            Some(Self::Iommufd)
        } else {
            None
        }
    }
}
