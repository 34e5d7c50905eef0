//! Kernels of Debian, for emulated hosts and for their guests.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::host::{decompress, files_under, is_module};
use crate::debian::{self, Apt};

/// Suites that hold all series.
pub(super) const SUITES: &[&str] =
    &["bookworm", "bookworm-security", "trixie", "trixie-security", "trixie-backports"];

/// The file that says which kernel is in a folder.
pub(super) const RELEASE: &str = "release";

/// A series of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Series {
    /// Debian 12's own.
    V6_1,
    /// Debian 13's own.
    V6_12,
    /// The newest of Debian's backports.
    Newest,
}

impl Series {
    /// In tables and paths.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::Newest => "newest",
        }
    }

    /// What the packages of its images match, for a flavour as "amd64" or "arm64-16k".
    fn expression(self, flavour: &str) -> String {
        match self {
            Self::V6_1 => format!(r"^linux-image-6\.1\.[^-]*-[0-9]+-{flavour}-unsigned$"),
            Self::V6_12 => format!(r"^linux-image-6\.12\.[^-]*-{flavour}-unsigned$"),
            Self::Newest => format!(r"^linux-binary-[^-]*-{flavour}$"),
        }
    }

    /// Its release and all its packages, by the package of an image. Packages are split since 7.1.
    fn packages(self, image: &str) -> Option<(&str, Vec<String>)> {
        match self {
            Self::V6_1 | Self::V6_12 => {
                let release = image.strip_prefix("linux-image-")?.strip_suffix("-unsigned")?;
                Some((release, vec![image.to_owned()]))
            }
            Self::Newest => {
                let release = image.strip_prefix("linux-binary-")?;
                let other = |part| format!("linux-{part}-{release}");
                Some((release, vec![image.to_owned(), other("modules"), other("base")]))
            }
        }
    }
}

/// Drivers, as the names of their modules, and the file that lists in which order they and what they
/// depend on are loaded.
pub(super) struct Order<'a> {
    /// The file's name.
    pub(super) file: String,
    /// The drivers. One that is built into the kernel needs no module.
    pub(super) drivers: &'a [&'a str],
}

/// Fetches the newest kernel of a series into a folder: `vmlinuz`, its `release`, `modules/*.ko` and the orders of
/// loading, beside them.
///
/// # Errors
/// When Debian lacks the kernel, or the kernel a driver.
pub(super) fn fetch(
    apt: &Apt,
    series: Series,
    flavour: &str,
    orders: &[Order<'_>],
    folder: &Path,
) -> Result<()> {
    let image = apt
        .search(&series.expression(flavour))?
        .into_iter()
        .max_by_key(|name| debian::numbers(name))
        .with_context(|| format!("Debian offers no kernel {} for {flavour}", series.name()))?;
    let (release, packages) =
        series.packages(&image).with_context(|| format!("{image} has another name"))?;
    let unpacked = folder.join("unpacked");
    let modules = folder.join("modules");
    for old in [&unpacked, &modules] {
        if old.exists() {
            // Of an interrupted call, maybe of another version.
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(&modules)?;
    for name in &packages {
        let package = apt.download(name)?;
        debian::unpack(&package, &unpacked, &["*/vmlinuz*", "*/modules.builtin", "*/kernel/*"])?;
        fs::remove_file(package)?;
    }
    let files = files_under(&unpacked);
    let set = Modules { release, built_in: built_in(&files)?, files: &files, to: &modules };
    for order in orders {
        let mut list = Vec::new();
        for driver in order.drivers {
            set.take(driver, &mut list)?;
        }
        fs::write(modules.join(&order.file), list.concat())?;
    }
    let image = files
        .iter()
        .find(|file| file.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz")))
        .with_context(|| format!("the packages of {release} hold no kernel image"))?;
    fs::rename(image, folder.join("vmlinuz"))?;
    fs::remove_dir_all(unpacked)?;
    // Last: this file is the mark of a complete set.
    fs::write(folder.join(RELEASE), release)?;
    Ok(())
}

/// The modules of an unpacked kernel.
struct Modules<'a> {
    release: &'a str,
    files: &'a [PathBuf],
    built_in: Vec<String>,
    to: &'a Path,
}

impl Modules<'_> {
    /// Decompresses a module and those that it depends on, and lists them, a line each, in the order of
    /// loading.
    fn take(&self, module: &str, list: &mut Vec<String>) -> Result<()> {
        let line = format!("{module}\n");
        if list.contains(&line) {
            return Ok(());
        }
        let spellings = [module.to_owned(), module.replace('_', "-"), module.replace('-', "_")];
        let is_named = |file: &&PathBuf| spellings.iter().any(|name| is_module(file, name));
        let Some(file) = self.files.iter().find(is_named) else {
            if self.built_in.iter().any(|name| spellings.contains(name)) {
                return Ok(());
            }
            bail!("the kernel {} has no {module}", self.release);
        };
        let plain = self.to.join(format!("{module}.ko"));
        decompress(file, &plain)?;
        for needed in dependencies(&fs::read(&plain)?) {
            self.take(&needed, list)?;
        }
        list.push(line);
        Ok(())
    }
}

/// Names of what would be modules, had they not been built into the kernel.
fn built_in(files: &[PathBuf]) -> Result<Vec<String>> {
    let file = files.iter().find(|file| file.ends_with("modules.builtin"));
    let text = fs::read_to_string(file.context("the packages hold no modules.builtin")?)?;
    let names = text.lines().filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"));
    Ok(names.map(str::to_owned).collect())
}

/// What a module says that it depends on.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|&byte| byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .map(String::from_utf8_lossy)
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_tell_the_release() {
        for (series, image, release, others) in [
            (Series::V6_1, "linux-image-6.1.0-50-amd64-unsigned", "6.1.0-50-amd64", &[][..]),
            (
                Series::V6_12,
                "linux-image-6.12.118+deb13-amd64-unsigned",
                "6.12.118+deb13-amd64",
                &[],
            ),
            (
                Series::Newest,
                "linux-binary-7.3.4+deb13-arm64",
                "7.3.4+deb13-arm64",
                &["linux-modules-7.3.4+deb13-arm64", "linux-base-7.3.4+deb13-arm64"],
            ),
        ] {
            let (found, packages) = series.packages(image).unwrap();
            assert_eq!(found, release);
            assert_eq!(packages[0], image);
            assert_eq!(packages[1..], *others);
        }
        assert_eq!(Series::Newest.packages("linux-image-6.12.118+deb13-amd64-unsigned"), None);
    }

    #[test]
    fn modules_tell_what_they_need() {
        assert_eq!(
            dependencies(b"\x7fELF\0depends=dca,i2c-algo-bit\0name=igb\0"),
            ["dca", "i2c-algo-bit"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }

    #[test]
    fn a_driver_that_is_neither_there_nor_built_in_is_an_error() {
        let set = Modules {
            release: "7.3",
            files: &[],
            built_in: vec!["vfio_iommu_type1".to_owned()],
            to: Path::new("/nowhere"),
        };
        let mut list = Vec::new();
        set.take("vfio-iommu-type1", &mut list).unwrap();
        assert!(list.is_empty());
        let error = set.take("vfio-pci", &mut list).unwrap_err();
        assert!(error.to_string().contains("7.3 has no vfio-pci"));
    }
}
