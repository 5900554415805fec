//! Turns a machine that lacks something into one that lacks nothing, group by group.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::process::which;
use crate::report::note;
use crate::{apt, debian, free_threaded, guests, kernel, node, python, rsyslog, toolchain};

/// What can be set up on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// The compiler and linker of the probes.
    Probes,
    /// What the demo attaches to: Python.
    Demo,
    /// What the tests attach to or talk to: redis, nginx, haproxy, memcached, PostgreSQL, uWSGI, node, Python with
    /// FastAPI and uvicorn, other CPythons, compilers of C (also with musl), C++ and Go; rsyslog, journald and podman,
    /// which take what comes out.
    Targets,
    /// CPythons without the interpreter's lock, built from source, which takes some ten minutes each: only on demand.
    FreeThreaded,
    /// A virtual machine with Debian's kernels: this distribution's, and those that the tests run on.
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

const TARGETS: [Need; 23] = [
    need("redis-server", "redis-server"),
    need("redis-benchmark", "redis-tools"),
    need("/usr/sbin/nginx", "nginx"),
    need("/usr/lib/nginx/modules/ngx_http_lua_module.so", "libnginx-mod-http-lua"),
    need("/usr/sbin/haproxy", "haproxy"),
    need("memcached", "memcached"),
    need("/usr/lib/postgresql", "postgresql"),
    need("wrk", "wrk"),
    need("gcc", "gcc"),
    need("g++", "g++"),
    need("/usr/include/asio.hpp", "libasio-dev"),
    need("go", "golang-go"),
    need("dwz", "dwz"),
    need("musl-gcc", "musl-tools"),
    need("/usr/include/stdio.h", "libc6-dev"),
    need("/usr/bin/python3", "python3"),
    need("uwsgi-core", "uwsgi-core"),
    need("/usr/lib/uwsgi/plugins/python3_plugin.so", "uwsgi-plugin-python3"),
    need("ruby", "ruby"),
    need("npm", "npm"),
    need("systemd-cat", "systemd"),
    need("podman", "podman"),
    need("runc", "runc"),
];

const FREE_THREADED: [Need; 3] =
    [need("gcc", "gcc"), need("make", "make"), need("/usr/include/stdio.h", "libc6-dev")];

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
                rsyslog::ensure();
                node::ensure().context("no node for the JavaScript targets")?;
            }
            Group::FreeThreaded => {
                packages(&FREE_THREADED)?;
                free_threaded::ensure();
            }
            Group::Vm => {
                emulator(&kernel::Choice::Own)?;
                for guest in guests::GUESTS {
                    emulator(&guest.kernel())?;
                }
            }
        }
    }
    Ok(())
}

/// What one virtual machine takes: the emulator, and the folder of its kernel.
pub fn emulator(kernel: &kernel::Choice) -> Result<PathBuf> {
    packages(&VM)?;
    kernel::ensure(kernel).context("no kernel for the virtual machine")
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
