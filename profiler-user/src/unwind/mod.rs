//! Where a thread was: a capture's registers and stack to frames, and frames of several kinds to one stack.

pub mod native;
pub mod greenlet;
pub mod pairs;
pub mod merge;
