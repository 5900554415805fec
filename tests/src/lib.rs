//! Starts targets, attaches stalltrace, and holds what it reports against what the target itself recorded.

pub mod clock;
pub mod truth;
pub mod report;
pub mod failure;
pub mod compare;
pub mod lives;
pub mod tally;

pub mod noise;
pub mod target;
pub mod cgroup;
pub mod interpreters;
pub mod redis;
pub mod postgres;
pub mod load;
pub mod servers;
pub mod tracer;
pub mod attaching;
pub mod programs;
pub mod log_systems;
pub mod compiled;
pub mod scenario;
pub mod turns;
pub mod waits;
pub mod twins;
pub mod peace;
