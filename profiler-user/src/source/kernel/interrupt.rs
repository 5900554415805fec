//! The kernel's BTF to the places where a probe finds what an interrupt came upon.

use anyhow::Context;
use btf_rs::{Btf, Type};
use profiler_ebpf::interrupt::InterruptPlaces;
use profiler_ebpf::param::Field;

/// The part of the kernel's image that each CPU has for itself.
const PER_CPU: &str = ".data..percpu";

/// The places; none known where this kernel does not tell: then a page fault looks like user code.
/// `field` says where a field lies.
pub fn places(
    btf: &Btf,
    field: impl Fn(&str, &[&str]) -> anyhow::Result<Field>,
) -> InterruptPlaces {
    let find = || -> anyhow::Result<InterruptPlaces> {
        let [owner, registers] = variables(btf, ["runqueues", "__irq_regs"])?;
        Ok(InterruptPlaces {
            known: 1,
            // Both depend on CONFIG_FAIR_GROUP_SCHED, which the distributions' kernels have.
            task_queue: field("task_struct", &["se", "cfs_rq"])?.offset.into(),
            queue_owner: field("cfs_rq", &["rq"])?.offset.into(),
            registers_from_owner: registers.wrapping_sub(owner),
        })
    };
    find().unwrap_or_default()
}

/// Where variables lie in each CPU's own area.
fn variables<const N: usize>(btf: &Btf, names: [&str; N]) -> anyhow::Result<[u64; N]> {
    let sections = btf.resolve_types_by_name(PER_CPU)?;
    let section = sections.iter().find_map(|found| match found {
        Type::Datasec(section) => Some(section),
        _ => None,
    });
    let section = section.context("no per-CPU variables")?;
    let mut offsets = [None; N];
    for variable in &section.variables {
        let Type::Var(named) = btf.resolve_chained_type(variable)? else { continue };
        let name = btf.resolve_name(&named)?;
        if let Some(index) = names.iter().position(|wanted| *wanted == name) {
            offsets[index] = Some(u64::from(variable.offset()));
        }
    }
    let mut found = [0; N];
    for (into, offset) in found.iter_mut().zip(offsets) {
        *into = offset.context("a per-CPU variable is missing")?;
    }
    Ok(found)
}
