//! Threads that are born while workers are watched: a pool hands the first piece of work to a new thread at once.

use crate::maps::{change, loop_at, param, take_slot};
use crate::task::{Task, clock};

/// A thread is born, on whatever CPU its parent runs; it has not run yet.
#[inline(always)]
pub fn born(child: Task) {
    if u64::from(child.tgid()) != param!(tgid) || child.tid() == child.tgid() {
        return;
    }
    let Some(state) = take_slot(child.tid()).and_then(loop_at) else { return };
    let now_ns = clock();
    change(state, |state| state.born(now_ns));
}
