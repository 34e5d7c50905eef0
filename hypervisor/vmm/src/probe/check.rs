//! What a check has found, and the signs by which an architecture tells.

use serde::Serialize;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(super) name: &'static str,
    /// Whether it is as it must be.
    pub(super) ok: bool,
    /// What was found.
    pub(super) found: String,
    /// What is wrong, for scripts; absent where nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

/// How an architecture's kernel shows, by the names of its interrupt chips, whether the host's own interrupts are confined.
pub(crate) struct RemappingSigns {
    /// Starts of the names where they are.
    pub(crate) confined: &'static [&'static str],
    /// What that means.
    pub(crate) good: &'static str,
    /// Starts of the names where they are not.
    pub(crate) free: &'static [&'static str],
    /// What that means.
    pub(crate) bad: &'static str,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

impl Check {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, ok: true, found: found.into(), problem: None, remedy: None }
    }

    pub(crate) fn bad(
        name: &'static str,
        problem: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { name, ok: false, found, problem: Some(problem), remedy }
    }
}
