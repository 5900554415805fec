//! What the entry of a wait, and a switch away from the CPU, mean for a turn.

use crate::account::Turn;

/// What the entry of a wait means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The loop's own wait after a turn: the turn is over, and this is its account.
    TurnOver(Turn),
    /// The loop's own wait, with no turn before it that could be measured.
    Idle,
    /// A wait inside a callback: part of the turn.
    Nested,
    /// The loop's own wait, although it had not been seen to leave the one before.
    ReturnMissed,
}

/// What a switch away from the CPU means for a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Not inside a turn.
    Elsewhere,
    /// It waits for something from now on.
    Blocked,
    /// It would go on if it could.
    Runnable,
    /// It exited.
    Dead,
}
