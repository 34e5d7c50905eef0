//! The headers of Debian's kernels, as modules are built with them.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};

use super::root::Root;
use crate::architecture::Architecture;
use crate::debian::{self, Apt};
use crate::process;
use crate::workspace::Workspace;

/// Which kernel is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Series {
    /// The long-term kernel of Debian 12.
    Older,
    /// The long-term kernel of Debian 13.
    Stable,
    /// The newest of Debian 13's backports.
    Newest,
    /// The kernel of this release.
    Release(String),
}

impl Series {
    /// All that the module is built for.
    pub(crate) fn all() -> Vec<Self> {
        vec![Self::Older, Self::Stable, Self::Newest]
    }

    fn suites(&self) -> &'static [&'static str] {
        let older = match self {
            Self::Older => true,
            Self::Release(release) => release.starts_with("6.1."),
            Self::Stable | Self::Newest => false,
        };
        if older {
            &["bookworm", "bookworm-security"]
        } else {
            &["trixie", "trixie-security", "trixie-backports"]
        }
    }

    /// What the packages of its headers match; the generic flavour.
    fn expression(&self, architecture: &str) -> String {
        match self {
            Self::Older => format!(r"^linux-headers-6\.1\.[0-9]+-[0-9]+-{architecture}$"),
            Self::Stable => format!(r"^linux-headers-6\.12\.[^-]*-{architecture}$"),
            Self::Newest => format!(r"^linux-headers-[0-9][^-]*-{architecture}$"),
            Self::Release(release) => {
                format!("^linux-headers-{}$", release.replace('.', r"\.").replace('+', r"\+"))
            }
        }
    }
}

impl FromStr for Series {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "6.1" => Ok(Self::Older),
            "6.12" => Ok(Self::Stable),
            "newest" => Ok(Self::Newest),
            _ if text.contains('-')
                && text.starts_with(|first: char| first.is_ascii_digit())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) =>
            {
                Ok(Self::Release(text.to_owned()))
            }
            _ => {
                Err("neither 6.1, 6.12 nor newest, and not a release as uname -r prints it".into())
            }
        }
    }
}

/// A kernel's headers, in the root.
pub(super) struct Headers {
    /// Of the kernel, as `uname -r` prints it.
    pub release: String,
    /// Their folder, as the root sees it.
    pub folder: PathBuf,
}

impl Headers {
    /// Unpacks them into the root, unless they are there.
    ///
    /// # Errors
    /// When Debian lacks them.
    pub(super) fn prepare(
        workspace: &Workspace,
        root: &Root,
        architecture: Architecture,
        series: &Series,
    ) -> Result<Self> {
        if let Series::Release(release) = series {
            // No list need be fetched for it.
            let headers = Self::new(release);
            if root.path(&headers.mark()).is_file() {
                return Ok(headers);
            }
        }
        let folder = workspace.target.join("module/packages").join(series.suites().join("+"));
        let names = architecture.debian();
        let lists = |architecture: Architecture| {
            Apt::update(&folder.join(architecture.name()), Some(architecture), series.suites())
        };
        let native = Architecture::native()?;
        let (apt, tools) = process::step("fetching the package lists of kernels", || {
            Ok((lists(architecture)?, lists(native)?))
        })?;
        let package = apt
            .search(&series.expression(names.architecture))?
            .into_iter()
            .max_by_key(|name| debian::numbers(name))
            .with_context(|| format!("Debian has no headers of the kernel {series:?}"))?;
        let release = package.strip_prefix("linux-headers-").unwrap_or(&package);
        let headers = Self::new(release);
        if !root.path(&headers.mark()).is_file() {
            process::step(&format!("fetching the headers of Linux {release} (15 MB)"), || {
                headers.unpack(root, &apt, &tools, &package)
            })?;
        }
        Ok(headers)
    }

    fn new(release: &str) -> Self {
        let folder = Path::new("/usr/src").join(format!("linux-headers-{release}"));
        Self { release: release.to_owned(), folder }
    }

    /// Present where the headers are complete.
    fn mark(&self) -> PathBuf {
        self.folder.join("pvmsi-complete")
    }

    fn unpack(&self, root: &Root, apt: &Apt, tools: &Apt, package: &str) -> Result<()> {
        let needed = apt.dependencies(package)?;
        let of_all = needed.iter().find(|name| name.ends_with("-common"));
        let of_all = of_all.with_context(|| format!("{package} needs no common headers"))?;
        // What a build runs is of this machine's architecture.
        let programs = needed.iter().find(|name| name.starts_with("linux-kbuild-"));
        let programs = programs.with_context(|| format!("{package} needs no build tools"))?;
        for file in [apt.download(package)?, apt.download(of_all)?, tools.download(programs)?] {
            debian::unpack(&file, &root.folder, &["./usr/src/*", "./usr/lib/linux-kbuild*"])?;
            fs::remove_file(file)?;
        }
        fs::write(root.path(&self.mark()), "")
            .with_context(|| format!("{package} holds no {}", self.folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_series_or_release() {
        let release = "6.12.118+deb13-arm64-16k";
        assert_eq!("6.1".parse(), Ok(Series::Older));
        assert_eq!("newest".parse(), Ok(Series::Newest));
        assert_eq!(release.parse(), Ok(Series::Release(release.to_owned())));
        for wrong in ["", "6.13", "new", "6.12-$(x)", "../6.1-1", "-6.1"] {
            assert!(wrong.parse::<Series>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_release_is_looked_for_literally() {
        let series = Series::Release("6.1.0-57-amd64".to_owned());
        assert_eq!(series.expression("amd64"), r"^linux-headers-6\.1\.0-57-amd64$");
        assert_eq!(series.suites(), Series::Older.suites());
        assert_eq!(
            Series::Release("6.12.118+deb13-amd64".to_owned()).suites(),
            Series::Stable.suites()
        );
    }
}
