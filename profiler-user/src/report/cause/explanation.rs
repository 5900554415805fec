//! Why a part of a stall took its time, and how much that is worth.

use crate::gap::Gap;
use crate::report::schema::stall::CauseKind;
use crate::turn::Sampled;

/// What an explanation rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// What it was and how long it took was measured.
    Measured,
    /// How long is measured, what it was is sampled.
    Sampled,
    /// What it was is not known.
    Missing,
}

/// Why a component took its time.
#[derive(Debug)]
pub struct Explanation<'a> {
    pub kind: CauseKind,
    pub basis: Basis,
    pub evidence: Vec<&'a Sampled>,
    pub blamed: u32,
    pub gaps: Vec<Gap>,
}

impl<'a> Explanation<'a> {
    pub fn new(kind: CauseKind, basis: Basis, evidence: Vec<&'a Sampled>, blamed: u32) -> Self {
        Self { kind, basis, evidence, blamed, gaps: Vec::new() }
    }

    pub fn missing(blamed: u32, reason: &str) -> Self {
        let gaps = vec![Gap::new("cause", reason)];
        Self { gaps, ..Self::new(CauseKind::Unknown, Basis::Missing, Vec::new(), blamed) }
    }
}
