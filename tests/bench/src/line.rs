//! What the program prints: a line of JSON for each count.

use serde::Serialize;

/// Which of two ways to do the same thing a count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// By calls, with the table direct where nothing else is said.
    PvMsi,
    /// The guest writes messages into a trapped table.
    Standard,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Instructions in user space.
    Instructions,
    /// Exits to the VMM.
    Exits,
    /// Requests to the host's kernel.
    Requests,
    /// Accesses of 32 bits.
    Accesses,
    /// Bytes of call buffers that are written and read, headers included.
    Bytes,
    /// A share of a whole.
    Share,
}

/// A count, or its place among those that are made from outside, in the order of these lines.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The row.
    pub name: String,
    /// Which side of the row.
    pub side: Side,
    /// What is counted.
    pub unit: Unit,
    /// For how many vectors.
    pub vectors: u16,
    /// Through how much the count is divided for the row's value.
    pub per: u16,
    /// The count; none where it is made from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
}
