//! Packages from a Debian mirror, without touching the machine's own package lists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::architecture::Architecture;
use crate::process;

/// Bound of one apt command; the largest download is about 100 MB.
const APT_LIMIT: Duration = Duration::from_secs(900);

/// A private view of a mirror: its lists and downloads live in one folder.
pub(crate) struct Apt {
    folder: PathBuf,
    log: PathBuf,
    /// Whose packages it shows; none: those of the machine, which can be installed.
    architecture: Option<&'static str>,
}

impl Apt {
    /// Fetches the lists of some suites of the machine's mirror, for the machine itself or for
    /// downloads of an architecture's packages.
    ///
    /// # Errors
    /// When this is not Debian or a relative, or the mirror does not answer.
    pub(crate) fn update(
        folder: &Path,
        architecture: Option<Architecture>,
        suites: &[&str],
    ) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            if !process::available(program) {
                bail!("{program} is missing: this set-up takes its parts from Debian packages");
            }
        }
        for name in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let apt = Self {
            folder: folder.to_owned(),
            log: folder.join("apt.log"),
            architecture: architecture.map(|architecture| architecture.debian().architecture),
        };
        let mirror = mirror()?;
        let mut sources = String::new();
        for suite in suites {
            let base = if suite.ends_with("-security") {
                format!("{mirror}-security")
            } else {
                mirror.clone()
            };
            sources.push_str(&format!(
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {base} {suite} main\n"
            ));
        }
        fs::write(folder.join("sources.list"), sources)?;
        apt.logged("apt-get", &["update"])?;
        Ok(apt)
    }

    /// Names of packages that match a regular expression, unordered.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub(crate) fn search(&self, expression: &str) -> Result<Vec<String>> {
        let text = self.query(&["search", "--names-only", expression])?;
        Ok(text.lines().filter_map(|l| l.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Versions of a package that the suites hold.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<String>> {
        let text = self.query(&["madison", package])?;
        Ok(text.lines().filter_map(|l| l.split('|').nth(1)).map(|v| v.trim().to_owned()).collect())
    }

    /// Names of the packages that a package depends on, without alternatives' order.
    ///
    /// # Errors
    /// When apt-cache fails.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = self.query(&["depends", package])?;
        let names = text.lines().filter_map(|line| line.trim().split("Depends: ").nth(1));
        Ok(names.map(|name| name.trim().to_owned()).collect())
    }

    /// Downloads a package (`name` or `name=version`) and returns the path of its file.
    ///
    /// # Errors
    /// When the download fails.
    pub(crate) fn download(&self, package: &str) -> Result<PathBuf> {
        self.logged("apt-get", &["download", package])?;
        // The file of name=1:2 is name_1%3a2_arch.deb.
        let name = package.replacen('=', "_", 1).replace(':', "%3a");
        let prefix = if package.contains('=') { name.clone() } else { format!("{name}_") };
        fs::read_dir(&self.folder)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.extension().is_some_and(|e| e == "deb")
                    && path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
            })
            .with_context(|| format!("apt-get downloaded no {name} into {}", self.folder.display()))
    }

    /// Downloads a package and all that it needs, as if nothing was installed, and returns the
    /// paths of the files. `suite`: from there, as far as it has them.
    ///
    /// # Errors
    /// When the download fails.
    pub(crate) fn download_with_dependencies(
        &self,
        package: &str,
        suite: Option<&str>,
    ) -> Result<Vec<PathBuf>> {
        let archives = self.folder.join("cache/archives");
        let mut arguments = vec!["install", "-y", "--no-install-recommends", "--download-only"];
        arguments.extend(suite.iter().flat_map(|suite| ["-t", suite]));
        arguments.push(package);
        self.logged("apt-get", &arguments)?;
        let files = fs::read_dir(&archives)?.flatten().map(|entry| entry.path());
        Ok(files.filter(|path| path.extension().is_some_and(|e| e == "deb")).collect())
    }

    /// Installs packages into the system.
    ///
    /// # Errors
    /// Without root rights, naming the command that somebody with them should run.
    pub(crate) fn install(&self, suite: &str, packages: &[&str]) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            bail!(
                "these packages are missing; as root, run: apt-get install -y \
                 --no-install-recommends -t {suite} {}",
                packages.join(" ")
            );
        }
        let mut arguments = vec![
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "-y",
            "--no-install-recommends",
            "-t",
            suite,
        ];
        arguments.extend(packages);
        self.logged("apt-get", &arguments)
    }

    fn logged(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let what = format!("{program} {}", arguments.join(" "));
        let mut command = self.command(program);
        command.args(arguments);
        process::run_logged(&what, &mut command, &self.log, APT_LIMIT, || None)
    }

    fn query(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command("apt-cache");
        command.args(arguments);
        let (status, text) = process::capture("apt-cache", &mut command, APT_LIMIT, false)?;
        if !status.success() {
            bail!("apt-cache {}: {status}", arguments.join(" "));
        }
        Ok(text)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder).env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        command.args(["-o", "Acquire::Retries=3"]);
        for (name, value) in [
            ("Dir::Etc::SourceList", self.folder.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", self.folder.join("lists")),
            ("Dir::Cache", self.folder.join("cache")),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        if let Some(architecture) = self.architecture {
            command.arg("-o").arg(format!("APT::Architecture={architecture}"));
            command.arg("-o").arg(format!("APT::Architectures={architecture}"));
            // What is installed here is of no concern to it.
            command.args(["-o", "Dir::State::status=/dev/null"]);
        }
        if rustix::process::geteuid().is_root() {
            // The user `_apt` cannot look into everybody's build folder.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        command
    }
}

/// Unpacks what matches `patterns` (tar's wildcards) from a package into a folder.
///
/// # Errors
/// When dpkg-deb or tar fails.
pub(crate) fn unpack(package: &Path, folder: &Path, patterns: &[&str]) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut archive = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let contents = archive.stdout.take().context("dpkg-deb has no stdout")?;
    let status = Command::new("tar")
        .args(["--extract", "--wildcards", "--directory"])
        .arg(folder)
        .args(patterns)
        .stdin(contents)
        .stderr(Stdio::null())
        .status()
        .context("cannot start tar")?;
    archive.wait()?;
    // tar fails for a pattern that matches nothing; packages differ in /lib and /usr/lib, and the
    // caller looks for what it needs.
    let _ = status;
    Ok(())
}

/// The numbers in a package name, to find the newest.
pub(crate) fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// The release name of this Debian, as in "bookworm".
///
/// # Errors
/// When the machine does not say.
pub(crate) fn release_name() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    if value("ID").as_deref() != Some("debian") {
        bail!("the set-up takes its parts from Debian 12 or newer; this is another system");
    }
    value("VERSION_CODENAME").context("/etc/os-release has no VERSION_CODENAME")
}

/// The mirror that the machine uses already.
///
/// # Errors
/// Where apt knows none.
pub(crate) fn mirror() -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let modern = read("/etc/apt/sources.list.d/debian.sources");
    let modern =
        modern.lines().find_map(|line| line.strip_prefix("URIs:")?.split_whitespace().next());
    let classic = read("/etc/apt/sources.list");
    let classic = classic.lines().find_map(|line| {
        line.strip_prefix("deb ")?
            .split_whitespace()
            .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"))
    });
    let found =
        modern.or(classic).context("no Debian mirror is configured; see sources.list(5)")?;
    Ok(found.trim_end_matches('/').to_owned())
}
