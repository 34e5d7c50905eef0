//! The clauses of the specification: numbered once each, and all that is normative stands in them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Words that make a sentence normative (RFC 2119); MUST NOT and SHOULD NOT begin like others.
const NORMATIVE: [&str; 7] =
    ["MUST", "SHALL", "SHOULD", "MAY", "REQUIRED", "RECOMMENDED", "OPTIONAL"];

#[test]
fn every_clause_is_numbered_once_in_its_chapter() {
    let mut places = BTreeMap::new();
    for Paragraph { place, chapter, text } in paragraphs() {
        let Some(id) = clause(&text) else { continue };
        let start = format!("**{id}** (since 1.");
        assert!(text.starts_with(&start), "{place}: {id} does not say since when it holds");
        assert_eq!(id.chars().nth(2), chapter, "{place}: {id} is of another chapter");
        if let Some(other) = places.insert(id.clone(), place.clone()) {
            panic!("{id} stands in {other} and in {place}");
        }
    }
    assert!(places.len() > 100, "{} clauses", places.len());
}

#[test]
fn every_normative_word_stands_in_a_clause() {
    for Paragraph { place, text, .. } in paragraphs() {
        let normative = words(&text).find(|word| NORMATIVE.contains(word));
        // One paragraph says what these words mean.
        if clause(&text).is_none() && !text.contains("RFC 2119") {
            assert_eq!(normative, None, "{place}: outside a clause: {text}");
        }
    }
}

#[test]
fn every_clause_demands_something() {
    for Paragraph { place, text, .. } in paragraphs() {
        if let Some(id) = clause(&text) {
            let demands = words(&text).any(|word| NORMATIVE.contains(&word));
            assert!(demands, "{place}: {id} has no normative word");
        }
    }
}

#[test]
fn every_clause_that_is_named_exists() {
    let clauses: BTreeSet<_> = paragraphs().iter().filter_map(|each| clause(&each.text)).collect();
    for Paragraph { place, text, .. } in paragraphs() {
        for word in words(&text).filter(|word| is_id(word)) {
            assert!(clauses.contains(word), "{place}: there is no {word}");
        }
    }
    for path in files("../spec/vectors", "json") {
        let file: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            for id in vector["clauses"].as_array().unwrap() {
                let id = id.as_str().unwrap();
                assert!(clauses.contains(id), "{}: there is no {id}", vector["name"]);
            }
        }
    }
}

struct Paragraph {
    place: String,
    /// The first digit of its clauses' numbers.
    chapter: Option<char>,
    text: String,
}

/// All paragraphs of the text, tables and headings among them; listings are left out.
fn paragraphs() -> Vec<Paragraph> {
    let mut paragraphs = Vec::new();
    for path in files("../spec/src", "md") {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = fs::read_to_string(&path).unwrap();
        let chapter = file.strip_prefix("# ").and_then(|title| title.chars().next());
        let (mut text, mut listing, mut start) = (String::new(), false, 1);
        for (number, line) in (1..).zip(file.lines().chain([""])) {
            let fence = line.starts_with("```");
            if fence || listing || line.is_empty() {
                if !text.is_empty() {
                    let place = format!("{name}:{start}");
                    paragraphs.push(Paragraph { place, chapter, text: std::mem::take(&mut text) });
                }
                listing ^= fence;
            } else {
                if text.is_empty() {
                    start = number;
                } else {
                    text.push(' ');
                }
                text.push_str(line);
            }
        }
        assert!(!listing, "{name}: a listing has no end");
    }
    paragraphs
}

/// The number of the clause that a paragraph is.
fn clause(text: &str) -> Option<String> {
    let (id, _) = text.strip_prefix("**")?.split_once("**")?;
    is_id(id).then(|| id.to_owned())
}

fn is_id(word: &str) -> bool {
    let Some((side, number)) = word.split_once('-') else { return false };
    ["W", "H", "G"].contains(&side)
        && number.len() == 3
        && number.bytes().all(|digit| digit.is_ascii_digit())
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-')
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    paths.sort();
    paths
}
