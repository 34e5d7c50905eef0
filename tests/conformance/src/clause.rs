//! The clauses of the specification, read from its text when this crate is built.

use std::fmt;

/// The specification's chapters: number, name of the file, text.
const CHAPTERS: [(u8, &str, &str); 9] = [
    (1, "discovery", include_str!("../../../spec/src/discovery.md")),
    (2, "buffer", include_str!("../../../spec/src/buffer.md")),
    (3, "encoding", include_str!("../../../spec/src/encoding.md")),
    (4, "calls", include_str!("../../../spec/src/calls.md")),
    (5, "modes", include_str!("../../../spec/src/modes.md")),
    (6, "messages", include_str!("../../../spec/src/messages.md")),
    (7, "errors", include_str!("../../../spec/src/errors.md")),
    (8, "resets", include_str!("../../../spec/src/resets.md")),
    (9, "security", include_str!("../../../spec/src/security.md")),
];

/// Who must keep a clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `H-`: the host.
    Host,
    /// `G-`: the guest.
    Guest,
    /// `W-`: both.
    Wire,
}

/// A normative sentence of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clause {
    /// As in the text: `H-440`.
    pub id: &'static str,
    /// The version since when it holds: `1.0`.
    pub since: &'static str,
    /// The number of its chapter.
    pub chapter: u8,
    /// The name of its chapter's file, without the extension.
    pub chapter_name: &'static str,
    /// Its words, with the line breaks of the source.
    pub text: &'static str,
}

impl Clause {
    /// Who must keep it.
    pub fn side(&self) -> Side {
        match self.id.as_bytes().first() {
            Some(b'H') => Side::Host,
            Some(b'G') => Side::Guest,
            _ => Side::Wire,
        }
    }
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (since {}) {}", self.id, self.since, self.text.replace('\n', " "))
    }
}

/// All clauses, in the order of the text.
pub fn clauses() -> Vec<Clause> {
    CHAPTERS
        .into_iter()
        .flat_map(|(chapter, chapter_name, text)| {
            text.split("\n\n").filter_map(move |paragraph| parse(chapter, chapter_name, paragraph))
        })
        .collect()
}

/// A paragraph of the form `**H-440** (since 1.0) …`.
fn parse(chapter: u8, chapter_name: &'static str, paragraph: &'static str) -> Option<Clause> {
    let (id, rest) = paragraph.trim().strip_prefix("**")?.split_once("** (since ")?;
    let (since, text) = rest.split_once(") ")?;
    Some(Clause { id, since, chapter, chapter_name, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_in_bold_is_a_clause_of_its_chapter_and_stands_once() {
        let clauses = clauses();
        let in_bold: usize = CHAPTERS
            .iter()
            .flat_map(|(.., text)| ["\n**H-", "\n**G-", "\n**W-"].map(|s| text.matches(s).count()))
            .sum();
        assert_eq!(clauses.len(), in_bold);
        for (index, clause) in clauses.iter().enumerate() {
            let number: u16 = clause.id[2..].parse().unwrap();
            assert_eq!(number / 100, u16::from(clause.chapter), "{}", clause.id);
            assert_eq!(clause.since, "1.0");
            assert!(clause.text.ends_with(['.', ':']), "{clause}");
            assert!(clauses[..index].iter().all(|other| other.id != clause.id), "{}", clause.id);
        }
    }
}
