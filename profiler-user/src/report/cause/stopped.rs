//! Time in which the thread was stopped, traced or frozen to a cause.

use super::{Basis, Component, Explanation};
use crate::report::schema::stall::CauseKind;
use crate::turn::Stall;

pub fn explain<'a>(component: &Component<'a>, stall: &Stall) -> Explanation<'a> {
    let evidence = component.stacks.clone();
    Explanation::new(CauseKind::Stopped, Basis::Measured, evidence, stall.tid)
}
