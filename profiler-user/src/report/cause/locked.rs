//! A cause that is a wait for a lock, or for another thread, to its words.

use super::gvl;
use crate::report::schema::call::ReportedWaker;
use crate::report::schema::stall::{AwaitedOf, CauseKind, ReportedHolder, Thread};

/// `waiting for a lock held by thread 77 (reports)`
pub fn phrase(kind: &CauseKind) -> String {
    let gil = if gvl::is_it(kind) { "Ruby's GVL" } else { "the GIL" };
    match kind {
        CauseKind::Gil { holder_thread: Some(holder), holders, .. } => {
            format!("waiting for {gil}, held by {}", in_turn(holder, holders))
        }
        CauseKind::Gil { holder_thread: None, .. } => format!("waiting for {gil}"),
        CauseKind::Lock { owner_thread: Some(owner), holders, .. } => {
            format!("waiting for a lock held by {}", in_turn(owner, holders))
        }
        CauseKind::Lock { woken_by, awaited, .. } => for_another(woken_by.as_ref(), *awaited),
        _ => String::new(),
    }
}

/// `thread 77 (reports)`, or how many there were where each had it for a while: a convoy.
fn in_turn(most: &Thread, holders: &[ReportedHolder]) -> String {
    match holders.len() {
        0 | 1 => words(most),
        count => format!("{count} threads in turn, most by {}", words(most)),
    }
}

pub fn words(thread: &Thread) -> String {
    match &thread.name {
        Some(name) => format!("thread {} ({name})", thread.tid),
        None => format!("thread {}", thread.tid),
    }
}

/// `waiting for the result of another thread (futex)`
fn for_another(woken_by: Option<&ReportedWaker>, awaited: Option<AwaitedOf>) -> String {
    let what = match awaited {
        Some(AwaitedOf::Result) => "waiting for a result of another thread",
        Some(AwaitedOf::End) => "waiting for another thread to end",
        Some(AwaitedOf::Queue) => "waiting at a queue for another thread",
        Some(AwaitedOf::Grpc) => "waiting for the answer to a gRPC call",
        Some(AwaitedOf::Import) => "waiting for another thread that imports a module",
        Some(AwaitedOf::Object) => "waiting for an object that another thread uses",
        Some(AwaitedOf::Event) | None => "waiting for another thread (futex)",
    };
    match woken_by {
        Some(ReportedWaker { tid, name, .. }) => {
            format!("{what}, released by thread {tid} ({name})")
        }
        None => what.to_owned(),
    }
}
