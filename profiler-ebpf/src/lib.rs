//! What kernel side and user side agree on: limits, parameters, records, losses, and the rules of turns and statistics.
//!
//! Nothing in this half of the package names aya, a map or a helper, so the same rules that the
//! kernel runs are tested on the host. The probes are the binary half, `main.rs`.
#![cfg_attr(not(test), no_std)]
#![warn(missing_docs)]

pub mod limits;
pub mod param;
pub mod interrupt;
pub mod python;
pub mod wait_call;
pub mod account;
pub mod outcome;
pub mod turn;
pub mod sleep;
pub mod parks;
pub mod histogram;
pub mod loop_counters;
pub mod credit;
pub mod record;
pub mod contention;
pub mod wanted;
pub mod counter;
pub mod version;
