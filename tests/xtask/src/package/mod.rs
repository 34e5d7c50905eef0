//! `cargo xtask package`: the Debian package with the sources of the Linux module, for DKMS.
//!
//! | in `guest-shim/linux` | what becomes of it |
//! |---|---|
//! | `*.c`, `*.h`, `Kbuild`, `Makefile`, `dkms.conf` | `/usr/src/pvmsi-VERSION`, where DKMS builds the module |
//! | `system/` | the module is loaded before drivers, in the initial ramdisk as well |
//! | `debian/` | control files, licence, changelog |
//! | `README.md` | `/usr/share/doc/pvmsi-dkms` |

mod system;

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::check::{self, Check};
use crate::process;
use crate::workspace::Workspace;

/// Name of the package.
const NAME: &str = "pvmsi-dkms";

/// Its version, and DKMS's: that of all crates.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Bound of a small program.
const LIMIT: Duration = Duration::from_secs(60);

/// Options of `cargo xtask package`.
#[derive(Args)]
pub(crate) struct Options {
    /// Also install it into a Debian system made for that (root rights, minutes): the module must be built, found by initial ramdisks, and gone after removal.
    #[arg(long)]
    install: bool,
}

/// Builds the package and checks it; prints its path. True when every check holds.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    let mut checks = checks(workspace)?;
    let package = path(workspace);
    if options.install {
        checks.extend(system::checks(workspace, &package)?);
    }
    process::print(&format!("{}\n", package.display()));
    Ok(check::print("package", &checks))
}

/// Builds the package and looks at it.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn checks(workspace: &Workspace) -> Result<Vec<Check>> {
    let (package, again) = (path(workspace), workspace.target.join("package/again.deb"));
    build(workspace, &package)?;
    build(workspace, &again)?;
    let same = fs::read(&package)? == fs::read(&again)?;
    fs::remove_file(&again)?;
    let dkms = fs::read_to_string(sources(workspace).join("dkms.conf"))?;
    let version = dkms.lines().any(|line| line == format!("PACKAGE_VERSION=\"{VERSION}\""));
    let result = |good: bool, why: &str| if good { Ok(()) } else { Err(why.to_owned()) };
    Ok(vec![
        Check::new("dkms.conf has the version of the crates", result(version, "another one")),
        Check::new("built twice, it is the same", result(same, "the files differ")),
        Check::new("control fields", fields(&package)?),
        Check::new("files, owners and permissions", contents(&listing(&package)?)),
    ])
}

/// Where the package is put.
fn path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("package").join(format!("{NAME}_{VERSION}_all.deb"))
}

fn sources(workspace: &Workspace) -> PathBuf {
    workspace.root.join("guest-shim/linux")
}

/// A file of the package.
struct Entry {
    content: Vec<u8>,
    mode: u32,
}

/// Builds the package: no file depends on the time, the machine or the builder.
fn build(workspace: &Workspace, package: &Path) -> Result<()> {
    let sources = sources(workspace);
    let stage = workspace.target.join("package/stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let changelog = fs::read_to_string(sources.join("debian/changelog"))?;
    let time = time_of(&changelog)?;
    let files = files(workspace, &sources)?;
    for (name, entry) in &files {
        write(&stage.join(name), entry)?;
    }
    for (name, entry) in control(&sources, &files)? {
        write(&stage.join("DEBIAN").join(name), &entry)?;
    }
    set_times(&stage, time)?;
    let epoch = time.duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    let mut command = Command::new("dpkg-deb");
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.args(["--root-owner-group", "-Zgzip", "-z9", "--build"]).arg(&stage).arg(package);
    let (status, text) = process::capture("dpkg-deb", &mut command, LIMIT, false)
        .context("cannot run dpkg-deb, which Debian and its relatives have")?;
    ensure!(status.success(), "dpkg-deb --build: {status}: {text}");
    fs::remove_dir_all(&stage)?;
    Ok(())
}

/// All files, by their paths without the first slash.
fn files(workspace: &Workspace, sources: &Path) -> Result<BTreeMap<String, Entry>> {
    let mut files = BTreeMap::new();
    let mut add = |name: String, content: Vec<u8>, mode: u32| {
        files.insert(name, Entry { content, mode });
    };
    for entry in fs::read_dir(sources)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let code = [".c", ".h"].iter().any(|end| name.ends_with(end)) && !name.ends_with(".mod.c");
        if code || ["Kbuild", "Makefile", "dkms.conf"].contains(&name.as_str()) {
            add(format!("usr/src/pvmsi-{VERSION}/{name}"), fs::read(&path)?, 0o644);
        }
    }
    let system = sources.join("system");
    let rule = fs::read(system.join("udev.rules"))?;
    add("usr/lib/udev/rules.d/40-pvmsi.rules".to_owned(), rule, 0o644);
    let hook = fs::read(system.join("initramfs-hook"))?;
    add("usr/share/initramfs-tools/hooks/pvmsi".to_owned(), hook, 0o755);

    let documents = format!("usr/share/doc/{NAME}");
    let readme = fs::read(sources.join("README.md"))?;
    add(format!("{documents}/README.md"), readme, 0o644);
    let licence = fs::read_to_string(workspace.root.join("LICENSE-MIT"))?;
    let copyright = fs::read_to_string(sources.join("debian/copyright"))?;
    let copyright = copyright.replace("@EXPAT@", folded(&licence).trim_end());
    add(format!("{documents}/copyright"), copyright.into_bytes(), 0o644);
    let changelog = zipped(&sources.join("debian/changelog"))?;
    add(format!("{documents}/changelog.gz"), changelog, 0o644);
    Ok(files)
}

/// Text as a field of a control file has it: each line indented, empty ones with a dot.
fn folded(text: &str) -> String {
    text.lines()
        .map(|line| if line.trim().is_empty() { " .\n".to_owned() } else { format!(" {line}\n") })
        .collect()
}

fn zipped(file: &Path) -> Result<Vec<u8>> {
    let output = Command::new("gzip").args(["-9n", "--stdout"]).arg(file).output();
    let output = output.context("cannot start gzip")?;
    ensure!(output.status.success(), "gzip: {}", output.status);
    Ok(output.stdout)
}

/// The control files, with the package's version and size.
fn control(
    sources: &Path,
    files: &BTreeMap<String, Entry>,
) -> Result<BTreeMap<&'static str, Entry>> {
    let read = |name: &str| {
        let text = fs::read_to_string(sources.join("debian").join(name))?;
        anyhow::Ok(text.replace("@VERSION@", VERSION))
    };
    let kilobytes: usize = files.values().map(|entry| entry.content.len().div_ceil(1024)).sum();
    let fields = read("control")?;
    let fields =
        fields.replace("\nMaintainer:", &format!("\nInstalled-Size: {kilobytes}\nMaintainer:"));
    let mut control = BTreeMap::new();
    for (name, text, mode) in [
        ("control", fields, 0o644),
        ("triggers", read("triggers")?, 0o644),
        ("postinst", read("postinst")?, 0o755),
        ("prerm", read("prerm")?, 0o755),
        ("md5sums", sums(files)?, 0o644),
    ] {
        control.insert(name, Entry { content: text.into_bytes(), mode });
    }
    Ok(control)
}

/// What `dpkg --verify` compares.
fn sums(files: &BTreeMap<String, Entry>) -> Result<String> {
    let mut sums = String::new();
    for (name, entry) in files {
        let mut command = Command::new("md5sum");
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("cannot start md5sum")?;
        let mut input = child.stdin.take().context("md5sum has no stdin")?;
        std::io::Write::write_all(&mut input, &entry.content)?;
        drop(input);
        let text = String::from_utf8(child.wait_with_output()?.stdout)?;
        let sum = text.split_whitespace().next().context("md5sum printed nothing")?;
        sums.push_str(&format!("{sum}  {name}\n"));
    }
    Ok(sums)
}

fn write(path: &Path, entry: &Entry) -> Result<()> {
    let folder = path.parent().context("a file without a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, &entry.content)?;
    fs::set_permissions(path, Permissions::from_mode(entry.mode))?;
    Ok(())
}

/// Gives everything below a folder, and the folder, the same time; folders their permissions.
fn set_times(folder: &Path, time: SystemTime) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            set_times(&path, time)?;
        } else {
            File::open(&path)?.set_modified(time)?;
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    File::open(folder)?.set_modified(time)?;
    Ok(())
}

/// When the newest version of a changelog was made.
fn time_of(changelog: &str) -> Result<SystemTime> {
    let first = changelog.lines().next().unwrap_or_default();
    ensure!(first.starts_with(&format!("{NAME} ({VERSION})")), "debian/changelog begins: {first}");
    let signature = changelog.lines().find(|line| line.starts_with(" -- "));
    let date = signature.and_then(|line| line.split_once(">  ")).context("no date")?.1;
    let mut command = Command::new("date");
    command.args(["--utc", "+%s", "--date", date]);
    let (status, text) = process::capture("date", &mut command, LIMIT, false)?;
    ensure!(status.success(), "debian/changelog has no date: {date}");
    let seconds = text.trim().parse().context("date printed no number")?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .context("a date of another age")
}

/// The fields that a package of this kind must have.
fn fields(package: &Path) -> Result<Result<(), String>> {
    for (field, wanted) in [
        ("Package", NAME),
        ("Version", VERSION),
        ("Architecture", "all"),
        ("Section", "kernel"),
        ("Priority", "optional"),
    ] {
        let found = field_of(package, field)?;
        if let Err(why) = check::equal(field, found.as_str(), wanted) {
            return Ok(Err(why));
        }
    }
    let depends = field_of(package, "Depends")?;
    Ok(if depends.contains("dkms") { Ok(()) } else { Err(format!("Depends: {depends}")) })
}

fn field_of(package: &Path, field: &str) -> Result<String> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--field").arg(package).arg(field);
    let (status, text) = process::capture("dpkg-deb", &mut command, LIMIT, false)?;
    ensure!(status.success(), "dpkg-deb --field: {status}");
    Ok(text.trim().to_owned())
}

/// Permissions, owner and path of each entry, as tar lists them.
fn listing(package: &Path) -> Result<String> {
    let mut command = Command::new("dpkg-deb");
    command.arg("--contents").arg(package);
    let (status, text) = process::capture("dpkg-deb", &mut command, LIMIT, false)?;
    if !status.success() {
        bail!("dpkg-deb --contents: {status}");
    }
    Ok(text)
}

/// Whether a listing is that of a good package.
fn contents(listing: &str) -> Result<(), String> {
    const PROGRAMS: &[&str] = &["./usr/share/initramfs-tools/hooks/pvmsi"];
    let mut names = Vec::new();
    for line in listing.lines() {
        let mut words = line.split_whitespace();
        let (mode, owner, name) = (words.next(), words.next(), words.last());
        let name = name.ok_or_else(|| format!("no name: {line}"))?;
        let wanted = match name {
            _ if name.ends_with('/') => "drwxr-xr-x",
            _ if PROGRAMS.contains(&name) => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        check::equal(name, (mode, owner), (Some(wanted), Some("root/root")))?;
        names.push(name);
    }
    let source = format!("./usr/src/pvmsi-{VERSION}");
    let inside = |file: &str| format!("{source}/{file}");
    let wanted = [
        inside("pvmsi_main.c"),
        inside("pvmsi_wire.c"),
        inside("pvmsi_wire.h"),
        inside("Kbuild"),
        inside("Makefile"),
        inside("dkms.conf"),
        "./usr/lib/udev/rules.d/40-pvmsi.rules".to_owned(),
        PROGRAMS.concat(),
        format!("./usr/share/doc/{NAME}/copyright"),
        format!("./usr/share/doc/{NAME}/changelog.gz"),
        format!("./usr/share/doc/{NAME}/README.md"),
    ];
    match wanted.iter().find(|name| !names.contains(&name.as_str())) {
        Some(missing) => Err(format!("{missing} is missing")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_folded() {
        assert_eq!(folded("one\n\ntwo"), " one\n .\n two\n");
    }

    #[test]
    fn the_time_is_the_changelogs() {
        let changelog = |version| {
            format!(
                "{NAME} ({version}) unstable; urgency=low\n\n  * x\n\n -- A <a@b>  Thu, 01 Jan 1970 00:01:00 +0000\n"
            )
        };
        let time = time_of(&changelog(VERSION)).unwrap();
        assert_eq!(time, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        assert!(time_of(&changelog("9.9.9")).is_err());
        assert!(time_of("").is_err());
    }

    #[test]
    fn a_listing_is_judged() {
        let source = format!("./usr/src/pvmsi-{VERSION}");
        let lines = [
            ("drwxr-xr-x", "./".to_owned()),
            ("-rw-r--r--", format!("{source}/pvmsi_main.c")),
            ("-rw-r--r--", format!("{source}/pvmsi_wire.c")),
            ("-rw-r--r--", format!("{source}/pvmsi_wire.h")),
            ("-rw-r--r--", format!("{source}/Kbuild")),
            ("-rw-r--r--", format!("{source}/Makefile")),
            ("-rw-r--r--", format!("{source}/dkms.conf")),
            ("-rw-r--r--", "./usr/lib/udev/rules.d/40-pvmsi.rules".to_owned()),
            ("-rwxr-xr-x", "./usr/share/initramfs-tools/hooks/pvmsi".to_owned()),
            ("-rw-r--r--", format!("./usr/share/doc/{NAME}/copyright")),
            ("-rw-r--r--", format!("./usr/share/doc/{NAME}/changelog.gz")),
            ("-rw-r--r--", format!("./usr/share/doc/{NAME}/README.md")),
        ];
        let text: Vec<_> = lines
            .iter()
            .map(|(mode, name)| format!("{mode} root/root 1 2026-11-28 12:00 {name}\n"))
            .collect();
        assert_eq!(contents(&text.concat()), Ok(()));
        for (index, (from, to)) in
            [("root/root", "builder/root"), ("drwxr-xr-x", "drwxrwxr-x")].iter().enumerate()
        {
            let bad = text.concat().replacen(from, to, 1);
            assert!(contents(&bad).is_err(), "{index}");
        }
        for left_out in 1..lines.len() {
            let fewer: String = text
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != left_out)
                .map(|(_, line)| line.as_str())
                .collect();
            assert!(contents(&fewer).is_err(), "{left_out}");
        }
    }
}
