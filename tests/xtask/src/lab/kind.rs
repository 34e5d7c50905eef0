//! The kinds of emulated hosts: kernel, IOMMU, how functions are attached, size of pages.

use std::fmt;

use anyhow::{Context, Result};
use clap::builder::PossibleValue;

use super::kernel::Series;
use crate::architecture::Architecture;

/// A kind of host: a row of the table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Of `--host`, and of its folder.
    pub(crate) name: &'static str,
    pub(crate) architecture: Architecture,
    pub(crate) kernel: Series,
    pub(crate) iommu: Iommu,
    pub(crate) attach: Attach,
    pub(crate) pages: PageSize,
}

/// What stands between functions and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Iommu {
    /// Nothing: functions cannot be attached.
    None,
    /// Intel's.
    VtD,
    /// AMD's.
    Amd,
    /// Arm's, before an interrupt translation service.
    SmmuV3,
}

/// How functions are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// By group and type1 container: the one way of Debian's kernels.
    Group,
    /// By character device and iommufd: the one way of kernels that `cargo xtask lab-kernel` builds from
    /// Debian's sources.
    Iommufd,
}

/// The page size of a host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// 4 KiB.
    K4,
    /// 16 KiB: NVMe's doorbells share a page with its vector table.
    K16,
    /// 64 KiB: the same. No kernel of Debian has them.
    K64,
}

/// All kinds. The first of an architecture is the usual one. None of arm64 has 6.1: its KVM hands no SMCCC calls
/// to user space, as the guests' doorbell needs (6.4 does).
static KINDS: &[Kind] = &[
    x86("vtd", Series::V6_12, Iommu::VtD),
    x86("vtd-6.1", Series::V6_1, Iommu::VtD),
    x86("vtd-newest", Series::Newest, Iommu::VtD),
    x86("amd", Series::V6_12, Iommu::Amd),
    x86("amd-6.1", Series::V6_1, Iommu::Amd),
    x86("amd-newest", Series::Newest, Iommu::Amd),
    x86("none", Series::V6_12, Iommu::None),
    built(x86("vtd-iommufd", Series::V6_12, Iommu::VtD)),
    arm("smmu", Series::V6_12, PageSize::K4),
    arm("smmu-16k", Series::V6_12, PageSize::K16),
    arm("smmu-newest", Series::Newest, PageSize::K4),
    arm("smmu-newest-16k", Series::Newest, PageSize::K16),
    built(arm("smmu-64k", Series::V6_12, PageSize::K64)),
];

const fn x86(name: &'static str, kernel: Series, iommu: Iommu) -> Kind {
    let architecture = Architecture::X86_64;
    Kind { name, architecture, kernel, iommu, attach: Attach::Group, pages: PageSize::K4 }
}

const fn arm(name: &'static str, kernel: Series, pages: PageSize) -> Kind {
    let architecture = Architecture::Aarch64;
    Kind { name, architecture, kernel, iommu: Iommu::SmmuV3, attach: Attach::Group, pages }
}

/// The same with a kernel that is built from Debian's sources.
const fn built(kind: Kind) -> Kind {
    Kind { attach: Attach::Iommufd, ..kind }
}

impl Kind {
    /// Those of an architecture, the usual one first.
    pub(crate) fn all(architecture: Architecture) -> impl Iterator<Item = &'static Self> {
        KINDS.iter().filter(move |kind| kind.architecture == architecture)
    }

    /// The usual one.
    ///
    /// # Errors
    /// When the table has none.
    pub(crate) fn usual(architecture: Architecture) -> Result<&'static Self> {
        Self::all(architecture).next().context("the architecture has no hosts")
    }

    /// The one with a name, which names of other architectures' hosts are not.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn named(architecture: Architecture, name: &str) -> Result<&'static Self> {
        Self::all(architecture)
            .find(|kind| kind.name == name)
            .with_context(|| format!("{name} is no host of {}", architecture.name()))
    }

    /// Names of all, for the command line.
    pub(crate) fn names() -> impl Iterator<Item = PossibleValue> {
        KINDS.iter().map(|kind| PossibleValue::new(kind.name).help(kind.to_string()))
    }

    /// Whether its kernel remaps interrupts where the IOMMU can. The newest finds no IOAPIC that it would
    /// trust beside the emulated AMD IOMMU ("No southbridge IOAPIC found"), and leaves it off.
    pub(crate) fn remaps(&self) -> bool {
        match self.iommu {
            Iommu::None => false,
            Iommu::Amd => self.kernel != Series::Newest,
            Iommu::VtD | Iommu::SmmuV3 => true,
        }
    }

    /// Whether the host goes on after a fault that the IOMMU logs. 6.1 reads the log of AMD's as long as its status says
    /// that there is something, and QEMU does not clear that.
    pub(crate) fn survives_faults(&self) -> bool {
        (self.iommu, self.kernel) != (Iommu::Amd, Series::V6_1)
    }

    /// Whether its kernel is none of Debian's.
    pub(crate) fn is_built(&self) -> bool {
        self.attach == Attach::Iommufd
    }

    /// Debian's name for kernels like this one's.
    pub(super) fn flavour(&self) -> &'static str {
        match (self.architecture, self.kernel, self.pages) {
            _ if self.is_built() => "built",
            // The generic one: that for clouds lacks KVM for AMD, and SVM is what is emulated.
            (Architecture::X86_64, ..) => "amd64",
            (Architecture::Aarch64, Series::V6_12, PageSize::K4) => "cloud-arm64",
            (Architecture::Aarch64, _, PageSize::K4) => "arm64",
            (Architecture::Aarch64, _, PageSize::K16 | PageSize::K64) => "arm64-16k",
        }
    }

    /// The folder of its kernel, which kinds share.
    pub(super) fn kernel_folder(&self) -> String {
        format!("{}-{}", self.kernel.name(), self.flavour())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, kernel {}, IOMMU {}, attached by {}, pages of {}",
            self.architecture.name(),
            self.kernel.name(),
            self.iommu,
            self.attach,
            self.pages
        )
    }
}

impl PageSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4096,
            Self::K16 => 16384,
            Self::K64 => 65536,
        }
    }
}

impl fmt::Display for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::VtD => "VT-d",
            Self::Amd => "AMD",
            Self::SmmuV3 => "SMMUv3",
        })
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Group => "group",
            Self::Iommufd => "iommufd",
        })
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K4 => "4K",
            Self::K16 => "16K",
            Self::K64 => "64K",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_host() {
        for architecture in Architecture::ALL {
            for kind in Kind::all(architecture) {
                assert_eq!(Kind::named(architecture, kind.name).unwrap(), kind);
            }
        }
        assert_eq!(Kind::usual(Architecture::X86_64).unwrap().kernel, Series::V6_12);
        let error = Kind::named(Architecture::Aarch64, "vtd").unwrap_err();
        assert_eq!(error.to_string(), "vtd is no host of aarch64");
    }
}
