//! stalltrace: says which line of which function froze an event loop, while it is frozen.
//!
//! Two doors lead in: [`source::EventSource`] (what happened) and [`process::TargetMemory`] (what the
//! target looks like). Everything right of them is data in, data out. The modules stand in the order
//! in which data flows, and a stage uses only stages above it.

pub mod cli;
pub mod config;
pub mod error;
pub mod whom;
pub mod check;
pub mod watch;
pub mod succession;
pub mod stop;
pub mod alarm;
pub mod attached;
pub mod start;
pub mod queue;
pub mod urgency;
pub mod lookout;
pub mod detected;
pub mod session;
pub mod job;
pub mod sleeping_threads;
pub mod holders;
pub mod known;
pub mod stall_builder;
pub mod analyst;

pub mod clock;
pub mod gap;
pub mod frame;
pub mod activity;
pub mod environment;
pub mod task;
pub mod interval;
pub mod call;
pub mod syscall;
pub mod process;
pub mod source;
pub mod turn;
pub mod unwind;
pub mod runtime;
pub mod symbolize;
pub mod report;
pub mod sink;
#[cfg(test)]
mod hostile;
