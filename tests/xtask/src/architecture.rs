//! The architectures of guests and hosts, and what their tools are called.

use anyhow::{Context, Result};
use clap::ValueEnum;

/// An architecture of hosts and of their guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Architecture {
    /// Intel and AMD.
    #[value(name = "x86_64")]
    X86_64,
    /// Arm, 64-bit (arm64).
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

/// What Debian calls the things of an architecture.
pub(crate) struct Names {
    /// In package names and lists.
    pub architecture: &'static str,
    /// The C compiler, which links programs.
    pub linker: &'static str,
    /// Its package.
    pub linker_package: &'static str,
    /// The C library's package for that compiler.
    pub library_package: &'static str,
    /// A file of the C library's package.
    pub library: &'static str,
    /// Runs single programs.
    pub user_emulator: &'static str,
}

impl Architecture {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// That of this machine.
    ///
    /// # Errors
    /// When it is none of them.
    pub(crate) fn native() -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.name() == std::env::consts::ARCH)
            .with_context(|| format!("nothing here runs on {}", std::env::consts::ARCH))
    }

    /// As Rust spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// The target of guests that run without an operating system. Soft-float: some hosts that
    /// interpret guest code know no vector registers.
    pub(crate) fn bare_metal(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-none",
            Self::Aarch64 => "aarch64-unknown-none-softfloat",
        }
    }

    /// The target of programs of a Linux host.
    pub(crate) fn linux(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Debian's names.
    pub(crate) fn debian(self) -> Names {
        match self {
            Self::X86_64 => Names {
                architecture: "amd64",
                linker: "x86_64-linux-gnu-gcc",
                linker_package: "gcc-x86-64-linux-gnu",
                library_package: "libc6-dev-amd64-cross",
                library: "/usr/x86_64-linux-gnu/lib/libc.a",
                user_emulator: "qemu-x86_64",
            },
            Self::Aarch64 => Names {
                architecture: "arm64",
                linker: "aarch64-linux-gnu-gcc",
                linker_package: "gcc-aarch64-linux-gnu",
                library_package: "libc6-dev-arm64-cross",
                library: "/usr/aarch64-linux-gnu/lib/libc.a",
                user_emulator: "qemu-aarch64",
            },
        }
    }
}
