//! Where a thread was: a capture's registers and stack to frames, and frames of several kinds to one stack.

mod tables;
pub mod native;
pub mod merge;
#[cfg(test)]
mod fuzz;
