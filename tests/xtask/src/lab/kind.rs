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
    /// Arm's, before an interrupt translation service.
    SmmuV3,
}

/// How functions are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attach {
    /// By group and type1 container: the one way of Debian's kernels.
    Group,
}

/// The page size of a host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageSize {
    /// 4 KiB.
    K4,
    /// 16 KiB: NVMe's doorbells share a page with its vector table.
    K16,
}

/// All kinds. The first of an architecture is the usual one.
static KINDS: &[Kind] = &[
    x86("vtd", Series::V6_12, Iommu::VtD),
    x86("vtd-6.1", Series::V6_1, Iommu::VtD),
    x86("vtd-newest", Series::Newest, Iommu::VtD),
    x86("none", Series::V6_12, Iommu::None),
    arm("smmu", Series::V6_12, PageSize::K4),
    arm("smmu-16k", Series::V6_12, PageSize::K16),
    arm("smmu-6.1", Series::V6_1, PageSize::K4),
    arm("smmu-newest", Series::Newest, PageSize::K4),
    arm("smmu-newest-16k", Series::Newest, PageSize::K16),
];

const fn x86(name: &'static str, kernel: Series, iommu: Iommu) -> Kind {
    let architecture = Architecture::X86_64;
    Kind { name, architecture, kernel, iommu, attach: Attach::Group, pages: PageSize::K4 }
}

const fn arm(name: &'static str, kernel: Series, pages: PageSize) -> Kind {
    let architecture = Architecture::Aarch64;
    Kind { name, architecture, kernel, iommu: Iommu::SmmuV3, attach: Attach::Group, pages }
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

    /// Debian's name for kernels like this one's.
    pub(super) fn flavour(&self) -> &'static str {
        match (self.architecture, self.kernel, self.pages) {
            // The generic one: that for clouds lacks KVM for AMD, and SVM is what is emulated.
            (Architecture::X86_64, ..) => "amd64",
            (Architecture::Aarch64, Series::V6_12, PageSize::K4) => "cloud-arm64",
            (Architecture::Aarch64, _, PageSize::K4) => "arm64",
            (Architecture::Aarch64, _, PageSize::K16) => "arm64-16k",
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
            self.iommu.name(),
            self.attach.name(),
            self.pages.name()
        )
    }
}

impl Iommu {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::VtD => "VT-d",
            Self::SmmuV3 => "SMMUv3",
        }
    }
}

impl Attach {
    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::Group => "group",
        }
    }
}

impl PageSize {
    /// In bytes.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::K4 => 4096,
            Self::K16 => 16384,
        }
    }

    /// For people.
    fn name(self) -> &'static str {
        match self {
            Self::K4 => "4K",
            Self::K16 => "16K",
        }
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
