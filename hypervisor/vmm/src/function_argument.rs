//! `--function KIND[:OPTION,...]`: how a function is named on the command line.

use std::str::FromStr;

use pvmsi_hypervisor::Policy;
use pvmsi_protocol::{FunctionId, VECTORS_MAX};
use pvmsi_software::SoftwareOptions;
use thiserror::Error;

use crate::config::{Backend, FunctionConfig};

/// A function cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FunctionArgumentError {
    /// Neither `software` nor `vfio`.
    #[error("'{0}' is no kind of function; write software:vectors=64 or vfio:0000:01:00.0")]
    Kind(String),
    /// `vfio` without a readable address.
    #[error(
        "'{0}' is not the address of a function of the host; write it as vfio:0000:01:00.0, as lspci -D shows it"
    )]
    Address(String),
    /// An option that this kind does not have.
    #[error("'{option}' is no option of a {kind} function; it has {known}")]
    Option {
        /// As written.
        option: String,
        /// `software` or `vfio`.
        kind: &'static str,
        /// Those that there are.
        known: &'static str,
    },
    /// The value of an option.
    #[error("'{value}' is no value for {option}; it takes {takes}")]
    Value {
        /// As written.
        value: String,
        /// The option.
        option: &'static str,
        /// What can be written.
        takes: &'static str,
    },
    /// An option that occurs again.
    #[error("{0} is given twice")]
    Twice(&'static str),
}

const SOFTWARE_OPTIONS: &str = "vectors=1..2048, isolated=yes|no, pv-msi=off|trapped|direct, most-vectors=1..2048, allow-unisolated=yes|no";
const VFIO_OPTIONS: &str =
    "pv-msi=off|trapped|direct, most-vectors=1..2048, allow-unisolated=yes|no";

impl FromStr for FunctionConfig {
    type Err = FunctionArgumentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let (backend, kind, options) = match kind {
            "software" => (Backend::Software(SoftwareOptions::default()), "software", rest),
            "vfio" => {
                let (address, options) = rest.split_once(',').unwrap_or((rest, ""));
                let address: FunctionId = address
                    .parse()
                    .map_err(|_| FunctionArgumentError::Address(address.to_owned()))?;
                (Backend::Vfio(address), "vfio", options)
            }
            _ => return Err(FunctionArgumentError::Kind(text.to_owned())),
        };
        let mut config = Self::new(backend);
        let mut seen = Vec::new();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let name = config.apply(kind, option)?;
            if seen.contains(&name) {
                return Err(FunctionArgumentError::Twice(name));
            }
            seen.push(name);
        }
        Ok(config)
    }
}

impl FunctionConfig {
    /// Applies one option; returns its name.
    fn apply(
        &mut self,
        kind: &'static str,
        option: &str,
    ) -> Result<&'static str, FunctionArgumentError> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match (name, &mut self.backend) {
            ("vectors", Backend::Software(options)) => {
                options.vectors = vectors("vectors", value)?;
                Ok("vectors")
            }
            ("most-vectors", _) => {
                self.most_vectors = Some(vectors("most-vectors", value)?);
                Ok("most-vectors")
            }
            ("isolated", Backend::Software(options)) => {
                options.isolated = yes_or_no("isolated", value)?;
                Ok("isolated")
            }
            ("pv-msi", _) => {
                let policy = policy(value).ok_or_else(|| FunctionArgumentError::Value {
                    value: value.to_owned(),
                    option: "pv-msi",
                    takes: "off, trapped or direct",
                })?;
                self.policy = Some(policy);
                Ok("pv-msi")
            }
            ("allow-unisolated", _) => {
                self.allow_unisolated = yes_or_no("allow-unisolated", value)?;
                Ok("allow-unisolated")
            }
            _ => Err(FunctionArgumentError::Option {
                option: option.to_owned(),
                kind,
                known: if kind == "software" { SOFTWARE_OPTIONS } else { VFIO_OPTIONS },
            }),
        }
    }
}

/// A policy as it is written; `None` when it is none.
pub(crate) fn policy(text: &str) -> Option<Policy> {
    match text {
        "off" => Some(Policy::Off),
        "trapped" => Some(Policy::Trapped),
        "direct" => Some(Policy::Direct),
        _ => None,
    }
}

fn vectors(option: &'static str, value: &str) -> Result<u16, FunctionArgumentError> {
    let number = value.parse().ok().filter(|vectors| (1..=VECTORS_MAX).contains(vectors));
    number.ok_or_else(|| FunctionArgumentError::Value {
        value: value.to_owned(),
        option,
        takes: "1 to 2048",
    })
}

fn yes_or_no(option: &'static str, value: &str) -> Result<bool, FunctionArgumentError> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err(FunctionArgumentError::Value {
            value: value.to_owned(),
            option,
            takes: "yes or no",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<FunctionConfig, String> {
        text.parse().map_err(|error: FunctionArgumentError| error.to_string())
    }

    #[test]
    fn functions_as_users_write_them() {
        assert_eq!(parse("software").unwrap(), FunctionConfig::software(64));
        assert_eq!(parse("software:vectors=2048").unwrap(), FunctionConfig::software(2048));
        let function =
            parse("software:vectors=3,isolated=no,pv-msi=trapped,allow-unisolated=yes").unwrap();
        assert_eq!(
            function,
            FunctionConfig {
                backend: Backend::Software(SoftwareOptions { vectors: 3, isolated: false }),
                policy: Some(Policy::Trapped),
                allow_unisolated: true,
                most_vectors: None,
            }
        );
        let function = parse("vfio:0000:01:00.0,pv-msi=off,most-vectors=2").unwrap();
        assert_eq!(function.most_vectors, Some(2));
        assert_eq!(function.backend, Backend::Vfio(FunctionId::new(0, 1, 0, 0).unwrap()));
        assert_eq!(function.policy, Some(Policy::Off));
        assert_eq!(parse("vfio:01:00.0").unwrap().backend, function.backend);
    }

    #[test]
    fn errors_say_what_to_write() {
        for (text, part) in [
            ("", "write software:vectors=64 or vfio:"),
            ("nvme", "write software:vectors=64 or vfio:"),
            ("vfio", "as lspci -D shows it"),
            ("vfio:1.0", "as lspci -D shows it"),
            ("vfio:0000:01:00.9", "as lspci -D shows it"),
            ("software:vectors=0", "1 to 2048"),
            ("software:vectors=2049", "1 to 2048"),
            ("software:vectors=", "1 to 2048"),
            ("software:isolated=maybe", "yes or no"),
            ("software:pv-msi=on", "off, trapped or direct"),
            ("software:queues=4", "it has vectors=1..2048"),
            ("vfio:0000:01:00.0,vectors=4", "no option of a vfio function"),
            ("vfio:0000:01:00.0,most-vectors=0", "most-vectors; it takes 1 to 2048"),
            ("software:vectors=4,vectors=5", "given twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
