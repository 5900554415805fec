//! Where a thread was: a capture's registers and stack to frames, and frames of several kinds to one stack.

mod tables;
mod sections;
mod expression;
mod step;
mod call;
mod functions;
mod search;
mod stack;
pub mod native;
pub mod greenlet;
pub mod pairs;
pub mod merge;
#[cfg(test)]
mod fuzz;
