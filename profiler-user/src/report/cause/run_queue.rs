//! Time in which the thread was ready and had no CPU to a cause.

use super::{Basis, Component, Explanation, shown};
use crate::gap::Gap;
use crate::report::account::Part;
use crate::report::schema::stall::CauseKind;
use crate::turn::Stall;

pub fn explain<'a>(component: &Component<'a>, stall: &'a Stall) -> Explanation<'a> {
    // What it would have gone on with shows where it ran before.
    let own = component.stacks.clone();
    let evidence = if own.is_empty() { shown(stall, Part::Running) } else { own };
    let reason = "what had the CPU meanwhile is not recorded";
    let gaps = vec![Gap::new("preempted_by", reason)];
    let kind = CauseKind::RunQueue { preempted_by: None };
    Explanation { gaps, ..Explanation::new(kind, Basis::Measured, evidence, stall.tid) }
}
