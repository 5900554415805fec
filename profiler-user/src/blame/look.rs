//! One look at the other threads, from outside, for a loop that waits: what it is made for, and what it saw.

use crate::job::{Bystander, Job, OthersSeen};

/// What a look is made for.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub loop_tid: u32,
    pub turn_start_ns: u64,
    pub now_ns: u64,
    pub weight_ns: u64,
}

impl Look {
    pub fn seen(
        self,
        still: Vec<Bystander>,
        unmoved: Vec<u32>,
        moving: Vec<u32>,
        left_out: Option<usize>,
    ) -> Job {
        let Self { loop_tid, turn_start_ns, weight_ns, .. } = self;
        Job::Others(Box::new(OthersSeen {
            loop_tid,
            turn_start_ns,
            weight_ns,
            still,
            unmoved,
            moving,
            left_out,
        }))
    }
}
