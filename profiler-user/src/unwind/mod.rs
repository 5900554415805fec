//! Where a thread was: a capture's registers and stack to frames, and frames of several kinds to one stack.

mod expression;
pub mod native;
pub mod greenlet;
pub mod pairs;
pub mod javascript;
pub mod merge;
mod step;
