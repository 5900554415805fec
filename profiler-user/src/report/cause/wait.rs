//! A wait that a thread was blocked in to a cause: a system call, a lock, a disk, memory, or a sleep.

use std::collections::BTreeMap;

use profiler_ebpf::record::Registers;

use super::component::Component;
use super::explanation::{Basis, Explanation};
use super::same_wait::{has_kernel_frame, is_disk};
use super::{called, futex, gvl, held};
use crate::gap::Gap;
use crate::report::schema::stall::CauseKind;
use crate::report::units::hexadecimal;
use crate::syscall;
use crate::turn::{Lock, Sampled, Stall};

pub fn explain<'a>(
    component: &Component<'a>,
    stall: &'a Stall,
    descriptors: &BTreeMap<u32, String>,
) -> Explanation<'a> {
    let mut gaps = Vec::new();
    let heaviest = component.stacks.first();
    let kind = heaviest.map_or(CauseKind::Unknown, |heaviest| {
        let others = called::others(&component.stacks);
        wait_kind(stall, heaviest, others, descriptors, &mut gaps)
    });
    let basis = match kind {
        CauseKind::Unknown => Basis::Missing,
        _ if futex::is_guess(&kind) || gvl::is_inferred(&kind) => Basis::Sampled,
        _ if held::is_all(stall, &kind, component.time_ns, &mut gaps) => Basis::Measured,
        _ => Basis::Sampled,
    };
    let lock = heaviest.and_then(|heaviest| held::lock_of(stall, heaviest));
    let (evidence, blamed) = lock
        .and_then(|lock| held::evidence(stall, &kind, lock, &mut gaps))
        .unwrap_or_else(|| (component.stacks.clone(), stall.tid));
    Explanation { gaps, ..Explanation::new(kind, basis, evidence, blamed) }
}

/// What a blocked stack was waiting for. `others` is on how many more things the same call waited.
pub fn wait_kind(
    stall: &Stall,
    sampled: &Sampled,
    others: usize,
    descriptors: &BTreeMap<u32, String>,
    gaps: &mut Vec<Gap>,
) -> CauseKind {
    let registers = &sampled.registers;
    let inside = registers.syscall >= 0;
    let is_fault = !inside && has_kernel_frame(sampled, "filemap_fault");
    if !inside && !is_disk(sampled) && !is_fault {
        let reason = "the thread was blocked outside any system call, and its kernel stack does not say in what";
        gaps.push(Gap::new("cause", reason));
        return CauseKind::Unknown;
    }
    if !inside {
        gaps.push(Gap::new("target", "which file the page belongs to is not recorded"));
        let file_system = called::file_system(sampled).map(str::to_owned);
        return CauseKind::Disk { syscall: None, target: None, file_system };
    }
    let syscall = syscall_name(registers);
    if syscall::is_sleep(registers) {
        return called::sleep(sampled, syscall, gaps);
    }
    match held::lock_of(stall, sampled) {
        Some(Lock::Gil) => return held::gil(stall, gaps),
        Some(Lock::Gvl) => return gvl::cause(stall, gaps),
        Some(Lock::Futex(futex)) => return futex::explain(stall, sampled, futex, gaps),
        None => {}
    }
    let target = called::target(sampled, &syscall, descriptors, gaps);
    let target = target.map(|target| called::with_others(target, others));
    if is_disk(sampled) {
        let file_system = called::file_system(sampled).map(str::to_owned);
        return CauseKind::Disk { syscall: Some(syscall), target, file_system };
    }
    let args = registers.args.map(hexadecimal).to_vec();
    let call = Box::new(called::call(stall, sampled, gaps));
    CauseKind::Syscall { syscall, args, target, call }
}

fn syscall_name(registers: &Registers) -> String {
    let number = registers.syscall;
    syscall::name(number).map_or_else(|| format!("system call {number}"), str::to_owned)
}
