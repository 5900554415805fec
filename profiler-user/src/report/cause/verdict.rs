//! The cause of a stall with what it rests on: the stacks that show it, and whose they are.

use crate::gap::Gap;
use crate::report::schema::stall::Cause;
use crate::turn::Sampled;

/// A cause, and what it rests on.
#[derive(Debug)]
pub struct Conclusion<'a> {
    pub cause: Cause,
    /// The stacks that show it, heaviest first: the culprit is among their frames.
    pub evidence: Vec<&'a Sampled>,
    /// Whose stacks they are: the loop's own thread, or the one that it waited for.
    pub blamed: u32,
    /// The same for each part in `cause.also`: its stacks, and whose they are.
    pub also: Vec<(Vec<&'a Sampled>, u32)>,
    pub gaps: Vec<Gap>,
}
