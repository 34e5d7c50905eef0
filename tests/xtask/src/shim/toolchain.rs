//! GNU compilers and binary utilities for an architecture, from Debian's packages when missing.

use std::process::Command;

use anyhow::Result;

use crate::architecture::Architecture;
use crate::tools::{self, Tool};
use crate::workspace::Workspace;

/// C and C++ compilers that produce code of an architecture, and their tools.
pub(super) struct Toolchain {
    architecture: Architecture,
}

impl Toolchain {
    /// Installs what is missing.
    ///
    /// # Errors
    /// When it cannot be installed.
    pub(super) fn prepare(workspace: &Workspace, architecture: Architecture) -> Result<Self> {
        let toolchain = Self { architecture };
        let native = architecture == Architecture::native()?;
        let (c, cpp) = match architecture {
            _ if native => ("gcc", "g++"),
            Architecture::X86_64 => ("gcc-x86-64-linux-gnu", "g++-x86-64-linux-gnu"),
            Architecture::Aarch64 => ("gcc-aarch64-linux-gnu", "g++-aarch64-linux-gnu"),
        };
        tools::install_missing(
            workspace,
            &[Tool::program(&toolchain.name("gcc"), c), Tool::program(&toolchain.name("g++"), cpp)],
        )?;
        Ok(toolchain)
    }

    /// One of the tools, such as `gcc` or `objcopy`.
    pub(super) fn tool(&self, name: &str) -> Command {
        Command::new(self.name(name))
    }

    fn name(&self, tool: &str) -> String {
        format!("{}-linux-gnu-{tool}", self.architecture.name())
    }
}
