//! What is known of the functions that are attached to one container or iommufd.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::function::Isolation;
use crate::vfio::VfioError;
use crate::vfio::backend::VfioBackend;
use crate::vfio::host_paths::HostPaths;
use crate::vfio::iommu::behind_iommu;
use crate::vfio::isolation::{function_isolation, host_isolation};

/// The functions of one container or iommufd, and the worst verdict that any of them has got. It stays: the kernel asks about isolation when a group comes to the container, not for each function of it, nor again while the container lives.
#[derive(Debug)]
pub(in crate::vfio) struct Attachments {
    paths: HostPaths,
    backend: VfioBackend,
    worst: Arc<Mutex<Isolation>>,
}

impl Attachments {
    /// Nothing is attached yet.
    pub(in crate::vfio) fn new(paths: HostPaths, backend: VfioBackend) -> Self {
        Self { paths, backend, worst: Arc::new(Mutex::new(Isolation::Isolated)) }
    }

    /// The VMM attaches functions itself, from now on or since before: how the host is now goes for them.
    pub(in crate::vfio) fn of_the_vmm(paths: HostPaths, backend: VfioBackend) -> Self {
        let attachments = Self::new(paths, backend);
        attachments.add(host_isolation(&attachments.paths, backend));
        attachments
    }

    /// How functions are attached.
    pub(in crate::vfio) fn backend(&self) -> VfioBackend {
        self.backend
    }

    /// Runs `attach`, which attaches the function with this folder in sysfs, and looks before and after.
    ///
    /// # Errors
    /// [`VfioError::NoIommu`], before anything is attached or where that shows afterwards, and those of `attach`.
    pub(in crate::vfio) fn attach<T>(
        &self,
        function: &Path,
        attach: impl FnOnce() -> Result<T, VfioError>,
    ) -> Result<T, VfioError> {
        behind_iommu(&self.paths, function)?;
        let before = function_isolation(&self.paths, self.backend, function);
        let attached = attach()?;
        // What stood at this address may have been rebound in between.
        behind_iommu(&self.paths, function)?;
        self.add(before);
        self.add(function_isolation(&self.paths, self.backend, function));
        Ok(attached)
    }

    /// The worst verdict so far, shared: it can become worse.
    pub(in crate::vfio) fn worst(&self) -> Arc<Mutex<Isolation>> {
        Arc::clone(&self.worst)
    }

    fn add(&self, verdict: Isolation) {
        let mut worst = self.worst.lock().unwrap_or_else(PoisonError::into_inner);
        if *worst == Isolation::Isolated {
            *worst = verdict;
        }
    }
}
