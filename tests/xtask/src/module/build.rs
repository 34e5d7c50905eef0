//! Builds in the root: with the kernel's own rules, and nothing but its warnings for a result.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::kernel::Headers;
use super::root::Root;
use crate::architecture::Architecture;
use crate::process;
use crate::workspace::Workspace;

/// Bound of one build.
const LIMIT: Duration = Duration::from_secs(600);

/// Builds the module, without the debugger's information; its path.
///
/// # Errors
/// When compiler, modpost or objtool fail, or warn.
pub(super) fn compile(
    workspace: &Workspace,
    root: &Root,
    architecture: Architecture,
    headers: &Headers,
) -> Result<PathBuf> {
    let place = Place::prepare(workspace, root, &format!("{}-build", headers.release))?;
    let title = format!("building pvmsi.ko for Linux {}", headers.release);
    let output = process::step(&title, || place.make(root, architecture, headers, &[]))?;
    let warnings = warnings(&output);
    if !warnings.is_empty() {
        bail!("the build warns:\n{}", warnings.join("\n"));
    }

    let mut strip = root.command(&format!("{}-linux-gnu-strip", architecture.name()));
    strip.arg("--strip-debug").arg(place.inside.join("pvmsi.ko"));
    process::run("strip", &mut strip, LIMIT)?;
    let folder = workspace.target.join("module").join(architecture.name()).join(&headers.release);
    fs::create_dir_all(&folder)?;
    let module = folder.join("pvmsi.ko");
    fs::copy(place.outside.join("pvmsi.ko"), &module)
        .with_context(|| format!("cannot write {}", module.display()))?;
    Ok(module)
}

/// Runs sparse over the sources; false where the kernel wants a newer one than there is.
///
/// # Errors
/// When it finds something.
pub(super) fn analyse(
    workspace: &Workspace,
    root: &Root,
    architecture: Architecture,
    headers: &Headers,
) -> Result<bool> {
    let place = Place::prepare(workspace, root, &format!("{}-sparse", headers.release))?;
    let title = format!("sparse, with the headers of Linux {}", headers.release);
    let output = process::step(&title, || place.make(root, architecture, headers, &["C=2"]))?;
    if output.contains("sparse is not available or not up to date") {
        return Ok(false);
    }
    let checked = output.lines().filter(|line| line.trim_start().starts_with("CHECK ")).count();
    if checked < place.sources {
        bail!("sparse has looked at {checked} of {} files", place.sources);
    }
    // It reports with or without that word.
    let found: Vec<&str> = output
        .lines()
        .filter(|line| line.contains(".c:") || line.contains(".h:") || is_warning(line))
        .collect();
    if !found.is_empty() {
        bail!("sparse reports:\n{}", found.join("\n"));
    }
    Ok(true)
}

/// A folder in the root with a copy of the sources.
struct Place {
    /// As the root sees it.
    inside: PathBuf,
    /// As this machine does.
    outside: PathBuf,
    /// How many files are compiled.
    sources: usize,
}

impl Place {
    fn prepare(workspace: &Workspace, root: &Root, name: &str) -> Result<Self> {
        let inside = Path::new("/build").join(name);
        let outside = root.path(&inside);
        if outside.exists() {
            fs::remove_dir_all(&outside)?;
        }
        fs::create_dir_all(&outside)?;
        let mut sources: usize = 0;
        for file in super::style::sources(workspace)? {
            let name = file.file_name().unwrap_or_default();
            fs::copy(&file, outside.join(name))?;
            if file.extension().is_some_and(|extension| extension == "c") {
                sources = sources.saturating_add(1);
            }
        }
        fs::copy(super::style::folder(workspace).join("Kbuild"), outside.join("Kbuild"))?;
        Ok(Self { inside, outside, sources })
    }

    /// Runs make; what it printed.
    fn make(
        &self,
        root: &Root,
        architecture: Architecture,
        headers: &Headers,
        arguments: &[&str],
    ) -> Result<String> {
        let (kernel, prefix) = match architecture {
            Architecture::X86_64 => ("x86", "x86_64-linux-gnu-"),
            Architecture::Aarch64 => ("arm64", "aarch64-linux-gnu-"),
        };
        let mut command = root.command("make");
        command
            .arg("-C")
            .arg(&headers.folder)
            .arg(format!("M={}", self.inside.display()))
            .arg(format!("ARCH={kernel}"))
            .arg(format!("CROSS_COMPILE={prefix}"))
            .arg(format!("CC={prefix}gcc-14"))
            // It would take the kernel's own, which is not among the headers of all kernels.
            .arg("CONFIG_DEBUG_INFO_BTF_MODULES=")
            .args(arguments)
            .arg("modules");
        let log = self.outside.join("make.log");
        process::run_logged("make", &mut command, &log, LIMIT, || None)?;
        fs::read_to_string(&log).with_context(|| format!("cannot read {}", log.display()))
    }
}

fn warnings(output: &str) -> Vec<&str> {
    output.lines().filter(|line| is_warning(line)).collect()
}

/// Compiler, modpost and objtool all use the word.
fn is_warning(line: &str) -> bool {
    let line = line.to_lowercase();
    line.contains("warning") || line.contains("error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_all_tools_are_found() {
        let output = "  CC [M]  pvmsi_main.o\npvmsi_main.c:3:1: warning: unused\n\
                      WARNING: modpost: missing MODULE_LICENSE()\n\
                      pvmsi.o: warning: objtool: x+0x4: unreachable\n  LD [M]  pvmsi.ko\n";
        assert_eq!(warnings(output).len(), 3);
    }
}
