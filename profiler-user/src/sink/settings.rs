//! What sinks are opened with: where reports go, and how they look.

use std::path::PathBuf;

use crate::report::fit::Limits;
use crate::report::schema::session::StackCounts;

/// Where reports go and how they look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub file: Option<PathBuf>,
    pub format: Format,
    /// Of lines of JSON.
    pub limits: Limits,
}

impl Settings {
    /// Whether every frame is shown with all that is known of it.
    pub fn shows_all(&self) -> bool {
        match self.format {
            Format::Json => self.limits.stacks == StackCounts::Full,
            Format::Text(look) => look.detail == Detail::Everything,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    Text(TextLook),
}

/// How text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextLook {
    pub colour: ColourUse,
    pub detail: Detail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColourUse {
    Always,
    Never,
}

/// How much of a report text has. JSON has all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What fits a terminal beside other stalls.
    Brief,
    /// Exact times, libraries' frames, other stacks, what is missing.
    More,
    /// Nothing is folded or left out.
    Everything,
}
