//! The two interfaces of VFIO.

/// How functions are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioBackend {
    /// `/dev/vfio/vfio` and IOMMU groups.
    Group,
    /// `/dev/iommu` and `/dev/vfio/devices`.
    Iommufd,
}
