//! The task that ran inside a loop when a stack was taken, as far as that could be proved.

use crate::gap::Gap;

/// A task whose own coroutine is one of the stack's frames: that is what proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    pub name: Result<String, Gap>,
    /// The address of its coroutine's frame.
    pub frame: u64,
    /// Which of the stack's Python frames is the task's coroutine, counted from the innermost.
    pub root: usize,
    /// Which of those up to there are called with what to call next, as middleware is.
    pub middleware: Vec<usize>,
}

/// The coroutines that ran when a stack was taken. Tasks that are started eagerly run inside the
/// coroutine that started them, so these may belong to more than one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The addresses of their frames, innermost first. Within a turn they tell tasks apart, for what
    /// is created in one turn is first run in the next; but eager ones may follow each other.
    pub coroutines: Vec<u64>,
    /// Whose turn it was, or why that could not be proved.
    pub task: Result<Task, Gap>,
}

/// Coroutines that ran, and the part of the stall that they stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// None: plain callbacks, which have no task.
    pub running: Option<Running>,
    pub samples: u64,
    pub time_ns: u64,
}
