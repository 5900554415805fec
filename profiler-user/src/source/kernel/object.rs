//! The maps and programs of the probes' object, by name.

use anyhow::{Context, anyhow};
use aya::Ebpf;
use aya::maps::{Map, MapFd};
use aya::programs::Program;

pub fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).ok_or_else(|| anyhow!("the probes have no map `{name}`"))
}

pub fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> anyhow::Result<&'a MapFd> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data.fd()),
        _ => Err(anyhow!("the probes have no array `{name}`")),
    }
}

pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name).with_context(|| format!("the probes have no program `{name}`"))
}
