//! The threads that held a lock while a loop waited for it, and for how long each.

use crate::report::schema::stall::ReportedHolder;
use crate::turn::{Lock, Stall};

/// The threads that held something, with the sums of their stacks' shares, longest first.
pub fn shares(stall: &Stall, held: Lock) -> Vec<ReportedHolder> {
    let mut shares: Vec<ReportedHolder> = Vec::new();
    for holder in stall.holders.iter().filter(|holder| holder.held == held) {
        let time_ns = holder.seen.time_ns;
        match shares.iter_mut().find(|share| share.tid == holder.tid) {
            Some(share) => share.time_ns = share.time_ns.saturating_add(time_ns),
            None => {
                shares.push(ReportedHolder { tid: holder.tid, name: holder.name.clone(), time_ns })
            }
        }
    }
    shares.sort_by_key(|share| std::cmp::Reverse(share.time_ns));
    shares
}
