//! Turns a machine that lacks something into one that lacks nothing, group by group.

use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process::which;
use crate::report::note;
use crate::{apt, debian, kernel, python, toolchain};

/// What can be set up on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// The compiler and linker of the probes.
    Probes,
    /// What the demo attaches to: Python.
    Demo,
    /// What the tests attach to: redis, nginx, haproxy, memcached, uWSGI, Python with FastAPI and uvicorn, other
    /// CPythons, a C compiler.
    Targets,
    /// A virtual machine with Debian's kernel.
    Vm,
}

/// Something that must be there, and the package that brings it.
struct Need {
    /// A program's name, or a file's path.
    what: &'static str,
    package: &'static str,
}

const fn need(what: &'static str, package: &'static str) -> Need {
    Need { what, package }
}

// The interpreter of the distribution, stripped as it is, is a target of its own.
const DEMO: [Need; 1] = [need("/usr/bin/python3", "python3")];

const TARGETS: [Need; 13] = [
    need("redis-server", "redis-server"),
    need("redis-benchmark", "redis-tools"),
    need("/usr/sbin/nginx", "nginx"),
    need("/usr/lib/nginx/modules/ngx_http_lua_module.so", "libnginx-mod-http-lua"),
    need("/usr/sbin/haproxy", "haproxy"),
    need("memcached", "memcached"),
    need("wrk", "wrk"),
    need("gcc", "gcc"),
    need("dwz", "dwz"),
    need("/usr/include/stdio.h", "libc6-dev"),
    need("/usr/bin/python3", "python3"),
    need("uwsgi-core", "uwsgi-core"),
    need("/usr/lib/uwsgi/plugins/python3_plugin.so", "uwsgi-plugin-python3"),
];

const VM: [Need; 1] = [need("qemu-system-x86_64", "qemu-system-x86")];

/// The command of a person: says so too where nothing was missing.
pub fn setup(groups: &[Group]) -> Result<()> {
    let all = [Group::Probes, Group::Demo, Group::Targets, Group::Vm];
    ensure(if groups.is_empty() { &all } else { groups })?;
    note("everything is in place");
    Ok(())
}

/// Sets up what of these groups is missing, in silence where nothing is.
pub fn ensure(groups: &[Group]) -> Result<()> {
    for group in groups {
        match group {
            Group::Probes => toolchain::ensure().context("no toolchain for the probes")?,
            Group::Demo => packages(&DEMO)?,
            Group::Targets => {
                packages(&TARGETS)?;
                python::ensure().context("no virtual environment for the Python targets")?;
                debian::ensure();
            }
            Group::Vm => {
                packages(&VM)?;
                kernel::ensure(None).context("no kernel for the virtual machine")?;
            }
        }
    }
    Ok(())
}

fn packages(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<&str> =
        needs.iter().filter(|need| !is_there(need.what)).map(|need| need.package).collect();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { apt::install(&missing) }
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { which(what).is_some() }
}
