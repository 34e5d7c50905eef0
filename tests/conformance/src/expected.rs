//! The failures that an implementer knows of: a file of lines `test-name: reason`.

use std::collections::BTreeMap;
use std::fmt;

use crate::suite::tests;

/// Tests that are expected to fail, each with the reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpectedFailures(BTreeMap<String, String>);

/// A line that is not of the form `test-name: reason`, or names no test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseExpectedFailuresError {
    line: usize,
    problem: &'static str,
}

impl fmt::Display for ParseExpectedFailuresError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}; write `test-name: reason`", self.line, self.problem)
    }
}

impl std::error::Error for ParseExpectedFailuresError {}

impl ExpectedFailures {
    /// Reads lines; empty ones and those that start with `#` are left out.
    ///
    /// # Errors
    /// The first line that says nothing.
    pub fn parse(text: &str) -> Result<Self, ParseExpectedFailuresError> {
        let tests = tests();
        let mut failures = BTreeMap::new();
        for (line, content) in (1..).zip(text.lines().map(str::trim)) {
            if content.is_empty() || content.starts_with('#') {
                continue;
            }
            let error = |problem| ParseExpectedFailuresError { line, problem };
            let (name, reason) = content.split_once(':').ok_or_else(|| error("no reason"))?;
            if reason.trim().is_empty() {
                return Err(error("no reason"));
            }
            if !tests.iter().any(|test| test.name == name) {
                return Err(error("no test has that name"));
            }
            failures.insert(name.to_owned(), reason.trim().to_owned());
        }
        Ok(Self(failures))
    }

    /// Why a test is expected to fail; `None` where it is not.
    pub fn reason(&self, test: &str) -> Option<&str> {
        self.0.get(test).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_a_test_and_a_reason() {
        let name = tests()[0].name;
        let read = |text: &str| ExpectedFailures::parse(text);
        let failures = read(&format!("# known\n\n{name}: not yet\n")).unwrap();
        assert_eq!(failures.reason(name), Some("not yet"));
        assert_eq!(failures.reason("another"), None);
        assert_eq!(read(&format!("{name}\n")).unwrap_err().line, 1);
        assert_eq!(read(&format!("\n{name}: \n")).unwrap_err().line, 2);
        assert_eq!(read("no-such-test: why").unwrap_err().problem, "no test has that name");
    }
}
