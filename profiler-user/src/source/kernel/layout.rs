//! Offsets of the kernel's own fields, from its BTF.

use anyhow::{Context, bail};
use btf_rs::{Backend, Btf, Type};
use profiler_ebpf::param::Offsets;

/// Where the running kernel describes its types. Since 4.18 with `CONFIG_DEBUG_INFO_BTF`.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Anonymous structures within structures are searched at most so deep; the kernel nests them twice.
const MAX_NESTING: u32 = 8;

/// What the probes must know about the running kernel.
#[derive(Debug, Clone, Copy)]
pub struct KernelLayout {
    pub offsets: Offsets,
    /// `sched_switch` passes the previous state (since 5.18).
    pub switch_has_state: bool,
}

impl KernelLayout {
    /// Reads the running kernel's BTF; what it takes is given back on return.
    pub fn of_running_kernel() -> anyhow::Result<Self> {
        // Mapping the file saves its 5 MB; older kernels (6.1 is one) refuse to map it.
        let btf = Btf::from_file_with_backend(BTF_PATH, Backend::Mmap)
            .or_else(|_| Btf::from_file_with_backend(BTF_PATH, Backend::Cache))
            .with_context(|| format!("cannot read {BTF_PATH}"))?;
        let field = |structure, path: &[&str]| offset(&btf, structure, path);
        let offsets = Offsets {
            task_pid: field("task_struct", &["pid"])?,
            task_tgid: field("task_struct", &["tgid"])?,
            task_state: field("task_struct", &["__state"])
                .or_else(|_| field("task_struct", &["state"]))?,
            task_mm: field("task_struct", &["mm"])?,
            task_files: field("task_struct", &["files"])?,
            task_fsbase: field("task_struct", &["thread", "fsbase"])?,
            mm_start_stack: field("mm_struct", &["start_stack"])?,
            mm_lock_count: field("mm_struct", &["mmap_lock", "count"]).unwrap_or(0),
            files_fdt: field("files_struct", &["fdt"])?,
            fdtable_max_fds: field("fdtable", &["max_fds"])?,
            fdtable_fd: field("fdtable", &["fd"])?,
            file_f_op: field("file", &["f_op"])?,
            task_nvcsw: field("task_struct", &["nvcsw"])?,
            task_nivcsw: field("task_struct", &["nivcsw"])?,
            task_on_cpu: field("task_struct", &["on_cpu"])?,
            task_cpu: field("task_struct", &["thread_info", "cpu"])
                .or_else(|_| field("task_struct", &["cpu"]))?,
            task_min_flt: field("task_struct", &["min_flt"])?,
            task_maj_flt: field("task_struct", &["maj_flt"])?,
            task_flags: field("task_struct", &["flags"])?,
            // Depends on CONFIG_SCHED_INFO, which the distributions' kernels have.
            task_run_delay: field("task_struct", &["sched_info", "run_delay"])?,
            task_migrations: field("task_struct", &["se", "nr_migrations"])?,
            task_jobctl: field("task_struct", &["jobctl"])?,
        };
        Ok(Self { offsets, switch_has_state: tracepoint_arguments(&btf, "sched_switch")? >= 4 })
    }
}

/// Arguments of a tracepoint, without the context that comes first.
fn tracepoint_arguments(btf: &Btf, tracepoint: &str) -> anyhow::Result<usize> {
    let name = format!("btf_trace_{tracepoint}");
    for found in btf.resolve_types_by_name(&name)? {
        let Type::Typedef(typedef) = found else { continue };
        let Type::Ptr(pointer) = btf.resolve_chained_type(&typedef)? else { continue };
        if let Type::FuncProto(prototype) = btf.resolve_chained_type(&pointer)? {
            return Ok(prototype.parameters.len().saturating_sub(1));
        }
    }
    bail!("the kernel's BTF has no {name}")
}

/// Offset in bytes of a field within a structure by name.
fn offset(btf: &Btf, structure: &str, path: &[&str]) -> anyhow::Result<u64> {
    let found = btf
        .resolve_types_by_name(structure)
        .with_context(|| format!("the kernel's BTF has no struct {structure}"))?
        .into_iter()
        .find(|found| matches!(found, Type::Struct(_)));
    let mut at = found.with_context(|| format!("the kernel's BTF has no struct {structure}"))?;
    let mut bits = 0;
    for name in path {
        let (more, next) = member(btf, &at, name, 0)?
            .with_context(|| format!("the kernel's struct {structure} has no field {name}"))?;
        bits += more;
        at = next;
    }
    Ok(u64::from(bits) / 8)
}

/// Offset in bits of a member and its type; looks into anonymous members too.
fn member(
    btf: &Btf,
    structure: &Type,
    name: &str,
    depth: u32,
) -> anyhow::Result<Option<(u32, Type)>> {
    let (Type::Struct(structure) | Type::Union(structure)) = structure else { return Ok(None) };
    for field in &structure.members {
        let field_name = btf.resolve_name(field).unwrap_or_default();
        if field_name == name {
            let mut field_type = btf.resolve_chained_type(field)?;
            while let Type::Const(inner) | Type::Volatile(inner) = &field_type {
                field_type = btf.resolve_chained_type(inner)?;
            }
            return Ok(Some((field.bit_offset(), field_type)));
        }
        if field_name.is_empty() && depth < MAX_NESTING {
            let inner = btf.resolve_chained_type(field)?;
            if let Some((bits, found)) = member(btf, &inner, name, depth + 1)? {
                return Ok(Some((field.bit_offset() + bits, found)));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{BTF_PATH, KernelLayout};

    /// Every field is found on the kernel that runs the tests, and none of the offsets coincide
    /// that cannot.
    #[test]
    fn running_kernel() {
        if !std::path::Path::new(BTF_PATH).exists() {
            println!("skipped: this kernel has no BTF");
            return;
        }
        let layout = KernelLayout::of_running_kernel().unwrap();
        assert_ne!(layout.offsets.task_pid, layout.offsets.task_tgid);
        assert_ne!(layout.offsets.task_mm, layout.offsets.task_files);
        assert_ne!(layout.offsets.mm_lock_count, layout.offsets.mm_start_stack);
        assert!(layout.offsets.task_fsbase > layout.offsets.task_pid);
    }
}
