//! What a check has found.

use pvmsi_hypervisor::Isolation;
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
    /// What is wrong, for scripts; absent where nothing is. With `ok`, it does not keep a table from being direct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<&'static str>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
    /// How to go back to what was before the remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) undo: Option<String>,
}

/// What it means on an architecture whether the host's own interrupts are remapped.
pub(crate) struct RemappingWords {
    /// They are.
    pub(crate) good: &'static str,
    /// They are not.
    pub(crate) bad: &'static str,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

impl Check {
    pub(crate) fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, ok: true, found: found.into(), problem: None, remedy: None, undo: None }
    }

    pub(crate) fn bad(
        name: &'static str,
        problem: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (found, remedy) = (found.into(), Some(remedy.into()));
        Self { name, ok: false, found, problem: Some(problem), remedy, undo: None }
    }

    /// What does not keep a table from being direct, and should be otherwise.
    pub(super) fn advice(
        name: &'static str,
        problem: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { ok: true, ..Self::bad(name, problem, found, remedy) }
    }

    /// The same with a way back.
    pub(super) fn with_undo(self, undo: impl Into<String>) -> Self {
        Self { undo: Some(undo.into()), ..self }
    }

    /// A verdict, of the host or of a function; `good` says what it means where it is good.
    pub(super) fn isolation(verdict: Isolation, good: &str) -> Self {
        match verdict {
            Isolation::Isolated => Self::good("isolation", good),
            Isolation::NotIsolated(why) => {
                // The verdict names the remedy after a semicolon.
                let (found, remedy) = why.split_once("; ").unwrap_or((why.as_str(), ""));
                Self::bad("isolation", "no-isolation", found, remedy)
            }
        }
    }
}
