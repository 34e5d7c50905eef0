//! Programs of Debian with all that they need, to be run beside another Debian or in an initial file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use elf::ElfBytes;
use elf::abi::DT_NEEDED;
use elf::endian::AnyEndian;

use super::host::files_under;
use crate::debian::{self, Apt};
use crate::process;

/// What is fetched.
pub(super) struct Wanted {
    /// The program.
    pub(super) program: &'static str,
    /// Its package.
    pub(super) package: &'static str,
    /// The suite that is preferred; none: whichever has it.
    pub(super) suite: Option<&'static str>,
    /// Files that it reads.
    pub(super) firmware: &'static [&'static str],
}

/// A program of Debian with all that it needs, to be run anywhere.
pub(crate) struct Program {
    /// Folder of `loader`, the program, `libraries` and `firmware`.
    pub folder: PathBuf,
    /// Of its package.
    pub version: String,
}

impl Program {
    /// One that was fetched.
    pub(super) fn in_folder(folder: &Path) -> Option<Self> {
        let version = fs::read_to_string(folder.join("version")).ok()?;
        Some(Self { folder: folder.to_owned(), version })
    }

    /// Fetches it into a folder.
    ///
    /// # Errors
    /// When Debian lacks it.
    pub(super) fn fetch(apt: &Apt, folder: &Path, wanted: &Wanted) -> Result<Self> {
        let title = format!("fetching {} and what it needs", wanted.package);
        let version = process::step(&title, || unpack(apt, folder, wanted))?;
        // Last: this file is the mark of a complete set.
        fs::write(folder.join("version"), &version)?;
        Ok(Self { folder: folder.to_owned(), version })
    }

    /// Starts it, by its own loader.
    pub(super) fn command(&self, program: &str) -> Vec<PathBuf> {
        let inside = |name| self.folder.join(name);
        vec![
            inside("loader"),
            "--library-path".into(),
            inside("libraries"),
            inside(program),
            "-L".into(),
            inside("firmware"),
        ]
    }
}

fn unpack(apt: &Apt, folder: &Path, wanted: &Wanted) -> Result<String> {
    let Wanted { program, package, suite, firmware } = *wanted;
    let unpacked = folder.join("unpacked");
    for old in [&unpacked, &folder.join("libraries"), &folder.join("firmware")] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    let packages = apt.download_with_dependencies(package, suite)?;
    for package in &packages {
        debian::unpack(package, &unpacked, &["./*"])?;
    }
    let version = packages
        .iter()
        .filter_map(|file| file.file_name()?.to_str()?.strip_prefix(&format!("{package}_")))
        .filter_map(|rest| rest.split('_').next())
        .map(|version| version.replace("%3a", ":"))
        .next()
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    let files = files_under(&unpacked);
    let find = |name: &str| {
        files
            .iter()
            .find(|file| file.file_name().is_some_and(|found| found == name))
            .with_context(|| format!("the packages of {package} hold no {name}"))
    };
    let libraries = folder.join("libraries");
    fs::create_dir_all(&libraries)?;
    fs::create_dir_all(folder.join("firmware"))?;
    for name in firmware {
        fs::copy(find(name)?, folder.join("firmware").join(name))?;
    }
    // Not its configuration, which may have the same name.
    let installed = files
        .iter()
        .find(|file| ["bin", "sbin"].iter().any(|bin| file.ends_with(format!("{bin}/{program}"))))
        .with_context(|| format!("the packages of {package} hold no program {program}"))?;
    fs::copy(installed, folder.join(program))?;
    let mut open = vec![folder.join(program)];
    while let Some(file) = open.pop() {
        for needed in needed_libraries(&file)? {
            let copy = libraries.join(&needed);
            if !copy.is_file() {
                let found = resolve(&unpacked, &needed)?;
                fs::copy(&found, &copy)?;
                open.push(copy);
            }
        }
    }
    let loader = fs::read_dir(&libraries)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ld-linux")))
        .with_context(|| format!("{program} needs no loader"))?;
    fs::copy(loader, folder.join("loader"))?;
    for package in packages {
        fs::remove_file(package)?;
    }
    fs::remove_dir_all(unpacked)?;
    Ok(version)
}

/// A library by its name, which may be a link.
fn resolve(root: &Path, name: &str) -> Result<PathBuf> {
    let output = Command::new("find")
        .arg(root)
        .args(["-name", name, "-not", "-type", "d"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start find")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().next().with_context(|| format!("no library {name}"))?;
    fs::canonicalize(found).with_context(|| format!("{found} is a link to nowhere"))
}

/// DT_NEEDED of a program or library.
fn needed_libraries(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file)?;
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&bytes)?;
    let Some(dynamic) = elf.dynamic()? else {
        bail!("{} is linked statically", file.display());
    };
    let strings = elf.section_headers_with_strtab()?;
    let (Some(headers), Some(names)) = strings else { bail!("{} has no sections", file.display()) };
    let table = headers
        .iter()
        .find(|header| {
            usize::try_from(header.sh_name)
                .is_ok_and(|at| names.get(at).is_ok_and(|name| name == ".dynstr"))
        })
        .with_context(|| format!("{} has no .dynstr", file.display()))?;
    let strings = elf.section_data_as_strtab(&table)?;
    dynamic
        .iter()
        .filter(|entry| entry.d_tag == DT_NEEDED)
        .map(|entry| {
            let at = usize::try_from(entry.d_val())?;
            Ok(strings.get(at)?.to_owned())
        })
        .collect()
}
