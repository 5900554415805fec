//! Where the kernel's own fields lie and how wide they are, from its BTF.

use anyhow::{Context, bail};
use btf_rs::{Backend, Btf, Type};
use profiler_ebpf::interrupt::InterruptPlaces;
use profiler_ebpf::param::{Field, Fields};

use super::interrupt;

/// Where the running kernel describes its types. Since 4.18 with `CONFIG_DEBUG_INFO_BTF`.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Anonymous structures within structures are searched at most so deep; the kernel nests them twice.
const MAX_NESTING: u32 = 8;

/// What the probes must know about the running kernel.
#[derive(Debug, Clone, Copy)]
pub struct KernelLayout {
    pub fields: Fields,
    /// `sched_switch` passes the previous state (since 5.18).
    pub switch_has_state: bool,
    /// What an interrupt came upon.
    pub interrupts: InterruptPlaces,
}

impl KernelLayout {
    /// Reads the running kernel's BTF; what it takes is given back on return.
    pub fn of_running_kernel() -> anyhow::Result<Self> {
        // Mapping the file saves its 5 MB; older kernels (6.1 is one) refuse to map it.
        let btf = Btf::from_file_with_backend(BTF_PATH, Backend::Mmap)
            .or_else(|_| Btf::from_file_with_backend(BTF_PATH, Backend::Cache))
            .with_context(|| format!("cannot read {BTF_PATH}"))?;
        let of = |structure, path: &[&str]| field(&btf, structure, path);
        let fields = Fields {
            task_pid: of("task_struct", &["pid"])?,
            task_tgid: of("task_struct", &["tgid"])?,
            task_state: of("task_struct", &["__state"])
                .or_else(|_| of("task_struct", &["state"]))?,
            task_mm: of("task_struct", &["mm"])?,
            task_files: of("task_struct", &["files"])?,
            task_fsbase: of("task_struct", &["thread", "fsbase"])?,
            mm_start_stack: of("mm_struct", &["start_stack"])?,
            mm_lock_count: of("mm_struct", &["mmap_lock", "count"]).unwrap_or_default(),
            files_fdt: of("files_struct", &["fdt"])?,
            fdtable_max_fds: of("fdtable", &["max_fds"])?,
            fdtable_fd: of("fdtable", &["fd"])?,
            file_f_op: of("file", &["f_op"])?,
            task_nvcsw: of("task_struct", &["nvcsw"])?,
            task_nivcsw: of("task_struct", &["nivcsw"])?,
            task_on_cpu: of("task_struct", &["on_cpu"])?,
            task_cpu: of("task_struct", &["thread_info", "cpu"])
                .or_else(|_| of("task_struct", &["cpu"]))?,
            task_min_flt: of("task_struct", &["min_flt"])?,
            task_maj_flt: of("task_struct", &["maj_flt"])?,
            task_flags: of("task_struct", &["flags"])?,
            // Depends on CONFIG_SCHED_INFO, which the distributions' kernels have.
            task_run_delay: of("task_struct", &["sched_info", "run_delay"])?,
            task_migrations: of("task_struct", &["se", "nr_migrations"])?,
            task_jobctl: of("task_struct", &["jobctl"])?,
        };
        Ok(Self {
            fields,
            switch_has_state: tracepoint_arguments(&btf, "sched_switch")? >= 4,
            interrupts: interrupt::places(&btf, |structure, path| field(&btf, structure, path)),
        })
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

/// A field within a structure by name.
fn field(btf: &Btf, structure: &str, path: &[&str]) -> anyhow::Result<Field> {
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
    let bytes = width(btf, at, 0)?;
    if bits % 8 != 0 || !matches!(bytes, 1 | 2 | 4 | 8) {
        let path = path.join(".");
        bail!(
            "the kernel's {structure}.{path} is {bytes} bytes wide at bit {bits}: it cannot be read"
        );
    }
    Ok(Field { offset: bits / 8, bytes })
}

/// Bytes that a value of this type takes; 0 for what is no single value. A structure of one counter
/// (`atomic_long_t`) is as wide as that.
fn width(btf: &Btf, of: Type, depth: u32) -> anyhow::Result<u32> {
    Ok(match of {
        Type::Int(int) => int.size() as u32,
        Type::Enum(of) => of.size() as u32,
        Type::Enum64(of) => of.size() as u32,
        Type::Struct(of) | Type::Union(of) => of.size() as u32,
        Type::Ptr(_) => size_of::<u64>() as u32,
        Type::Typedef(of) if depth < MAX_NESTING => {
            width(btf, btf.resolve_chained_type(&of)?, depth + 1)?
        }
        Type::Const(of) if depth < MAX_NESTING => {
            width(btf, btf.resolve_chained_type(&of)?, depth + 1)?
        }
        Type::Volatile(of) if depth < MAX_NESTING => {
            width(btf, btf.resolve_chained_type(&of)?, depth + 1)?
        }
        Type::TypeTag(of) if depth < MAX_NESTING => {
            width(btf, btf.resolve_chained_type(&of)?, depth + 1)?
        }
        _ => 0,
    })
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

    /// Every field is found on the kernel that runs the tests, and none that cannot
    /// coincide do.
    #[test]
    fn running_kernel() {
        if !std::path::Path::new(BTF_PATH).exists() {
            println!("skipped: this kernel has no BTF");
            return;
        }
        let layout = KernelLayout::of_running_kernel().unwrap();
        assert_ne!(layout.fields.task_pid, layout.fields.task_tgid);
        assert_ne!(layout.fields.task_mm, layout.fields.task_files);
        assert_ne!(layout.fields.mm_lock_count, layout.fields.mm_start_stack);
        assert!(layout.fields.task_fsbase.offset > layout.fields.task_pid.offset);
        assert_eq!((layout.fields.task_pid.bytes, layout.fields.task_mm.bytes), (4, 8));
    }
}
