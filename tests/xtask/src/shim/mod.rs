//! `cargo xtask shim`: the guest half for kernels in C, as their linkers take it.
//!
//! | checked in under `guest-shim/c` | what |
//! |---|---|
//! | `include/pvmsi_guest.h` | the header, generated from the crate |
//! | `symbols.txt` | the global symbols of the library: the ABI |
//! | `size.txt` | the most bytes of text and data, and of text where a kernel uses only the main job |

mod guest;
mod header;
mod library;
mod object;
mod toolchain;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

pub(crate) use self::guest::{GUEST, READERS_GUEST, build as build_guests};
use self::library::Library;
use self::object::Size;
use self::toolchain::Toolchain;
use crate::architecture::Architecture;
use crate::check::{self, Check};
use crate::workspace::Workspace;

/// Options of `cargo xtask shim`.
#[derive(Args)]
pub(crate) struct Options {
    /// Change nothing: fail when the checked-in header or symbols are not those of the crate.
    #[arg(long)]
    check: bool,
}

/// Builds the libraries, writes header and symbols anew unless told otherwise, and checks all;
/// true when every check holds.
///
/// # Errors
/// When something cannot be built.
pub(crate) fn command(workspace: &Workspace, options: &Options) -> Result<bool> {
    if !options.check {
        let package = workspace.root.join("guest-shim/c");
        write(&header::path(workspace), &header::generate(workspace)?)?;
        let library = Library::build(workspace, Architecture::native()?)?;
        write(&package.join(SYMBOLS), &lines(&library.object.symbols))?;
    }
    Ok(check::print("shim", &checks(workspace)?))
}

/// What must hold, for all architectures.
///
/// # Errors
/// When something cannot be built.
pub(crate) fn checks(workspace: &Workspace) -> Result<Vec<Check>> {
    let header = header::path(workspace);
    let mut checks =
        vec![Check::new("header is up to date", same(&header, &header::generate(workspace)?))];
    for architecture in Architecture::ALL {
        let name = architecture.name();
        let toolchain = Toolchain::prepare(workspace, architecture)?;
        let compiled = header::compile(&toolchain, &header).map_err(|error| format!("{error:#}"));
        checks.push(Check::new(&format!("{name}: header compiles as C and C++"), compiled));
        let types = header::compile_with_types(workspace, &toolchain);
        let types = types.map_err(|error| format!("{error:#}"));
        checks.push(Check::new(&format!("{name}: header compiles with a kernel's types"), types));

        let library = Library::build(workspace, architecture)?;
        let example = header::compile_examples(workspace, &toolchain);
        let example = example.map_err(|error| format!("{error:#}"));
        checks.push(Check::new(&format!("{name}: example in README compiles"), example));
        let object = &library.object;
        let Size { text, data } = object.size;
        eprintln!("    {}: text {text}, data {data} bytes", library.archive.display());
        let package = workspace.root.join("guest-shim/c");
        let symbols = same(&package.join(SYMBOLS), &lines(&object.symbols));
        checks.push(Check::new(&format!("{name}: symbols are those of {SYMBOLS}"), symbols));
        checks.push(Check::new(&format!("{name}: needs nothing"), object.check_contents()));
        checks.push(Check::new(&format!("{name}: no jump tables"), object.check_jump_tables()));
        let bounds = bounds(&package.join(SIZE), architecture)?;
        let within = |what: &str, bytes: u64, bound: u64| {
            let small = if bytes <= bound {
                Ok(())
            } else {
                Err(format!("the bound in {SIZE} is {bound}"))
            };
            Check::new(&format!("{name}: {what} {bytes} bytes"), small)
        };
        let minimal = library.link_with_collection(workspace, architecture, &MINIMAL)?;
        checks.push(within("text", text, bounds.whole.text));
        checks.push(within("data", data, bounds.whole.data));
        checks.push(within("text of the main job alone", minimal.text, bounds.minimal));
    }
    Ok(checks)
}

/// Bytes of code and constants, as a freestanding kernel links them.
pub(crate) struct TextSizes {
    /// All of the library.
    pub(crate) whole: u64,
    /// What stays of it where a kernel uses only [`MINIMAL`] and its linker collects sections.
    pub(crate) minimal: u64,
}

/// What a kernel calls that does the main job and nothing else, without the prefix of the library.
const MINIMAL: [&str; 9] = [
    "discover",
    "client_init",
    "negotiate",
    "msix_init",
    "msix_enable",
    "msix_set",
    "msix_mask",
    "msix_unmask",
    "msix_disable",
];

/// Weighs the library of an architecture.
///
/// # Errors
/// When it cannot be built or linked.
pub(crate) fn text_sizes(workspace: &Workspace, architecture: Architecture) -> Result<TextSizes> {
    let library = Library::build(workspace, architecture)?;
    let minimal = library.link_with_collection(workspace, architecture, &MINIMAL)?;
    Ok(TextSizes { whole: library.object.size.text, minimal: minimal.text })
}

const SYMBOLS: &str = "symbols.txt";
const SIZE: &str = "size.txt";

/// The most bytes.
struct Bounds {
    whole: Size,
    /// Text of what stays where a kernel uses only [`MINIMAL`] and its linker collects sections.
    minimal: u64,
}

/// Reads the bounds of an architecture: a line with its name and three numbers of bytes.
fn bounds(path: &Path, architecture: Architecture) -> Result<Bounds> {
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix(architecture.name()));
    let numbers: Vec<u64> =
        line.unwrap_or_default().split_whitespace().flat_map(str::parse).collect();
    match *numbers {
        [text, data, minimal] => Ok(Bounds { whole: Size { text, data }, minimal }),
        _ => bail!("{} has no line: {} TEXT DATA MINIMAL", path.display(), architecture.name()),
    }
}

fn same(path: &Path, wanted: &str) -> Result<(), String> {
    match fs::read_to_string(path) {
        Ok(found) if found == wanted => Ok(()),
        Ok(_) => Err(format!("{} is out of date; run: cargo xtask shim", path.display())),
        Err(error) => Err(format!("{}: {error}; run: cargo xtask shim", path.display())),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn lines(names: &[String]) -> String {
    names.iter().map(|name| format!("{name}\n")).collect()
}
