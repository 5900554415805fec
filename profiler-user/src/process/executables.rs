//! A catalogue: the files of interpreters and of the libraries under every program, by their exact names.
//!
//! A name counts with the version that distributions put behind it (`python3.13t`, `php-fpm8.2`,
//! `libruby-3.1.so.3.1`), and with nothing else: `node-agent` and `monolith` are programs of their own.

/// Interpreters, each with the family that it is of.
const INTERPRETERS: [(&str, &str); 31] = [
    ("python", "python"),
    ("pypy", "pypy"),
    ("graalpy", "graalpy"),
    ("micropython", "micropython"),
    ("uwsgi", "uwsgi"),
    ("uwsgi-core", "uwsgi"),
    ("uwsgi_python", "uwsgi"),
    ("node", "node"),
    ("nodejs", "node"),
    ("deno", "deno"),
    ("bun", "bun"),
    ("ruby", "ruby"),
    ("truffleruby", "ruby"),
    ("java", "java"),
    ("perl", "perl"),
    ("php", "php"),
    ("php-fpm", "php"),
    ("php-cgi", "php"),
    ("phpdbg", "php"),
    ("lua", "lua"),
    ("luajit", "lua"),
    ("tclsh", "tcl"),
    ("beam.smp", "beam.smp"),
    ("beam", "beam.smp"),
    ("dotnet", "dotnet"),
    ("mono", "mono"),
    ("mono-sgen", "mono"),
    ("Rscript", "R"),
    ("julia", "julia"),
    ("guile", "guile"),
    ("racket", "racket"),
];

/// Libraries that hold an interpreter.
const INTERPRETER_LIBRARIES: [&str; 12] = [
    "libpython",
    "libpypy",
    "libnode",
    "libruby",
    "libjvm",
    "libperl",
    "libphp",
    "liblua",
    "libluajit",
    "libmono",
    "libmonosgen",
    "libcoreclr",
];

/// Libraries under every program.
const SYSTEM_LIBRARIES: [&str; 11] = [
    "libc",
    "ld",
    "ld-linux",
    "libpthread",
    "libstdc++",
    "libc++",
    "libc++abi",
    "libm",
    "librt",
    "libdl",
    "libgcc_s",
];

/// What builds of one version are told apart by.
const BUILDS: [&str; 8] = ["dbg", "debug", "nogil", "c", "intel64", "zts", "nts", "sgen"];

/// Whether a mapped file is a C library, or the loader that comes with one.
pub fn is_libc(path: &str) -> bool {
    const KNOWN: [&str; 5] = ["libc.so", "libc-2", "ld-linux", "ld-musl", "libc.musl"];
    KNOWN.iter().any(|known| basename(path).starts_with(known))
}

/// The last component of a path.
pub fn basename(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The interpreter that an executable is, if it is one that is known: its family.
pub fn interpreter(exe: &str) -> Option<&'static str> {
    let name = basename(exe);
    let is_it = |known: &&(&str, &str)| name.strip_prefix(known.0).is_some_and(is_version);
    INTERPRETERS.iter().find(is_it).map(|(_, family)| *family)
}

/// Whether a mapped file is an interpreter, or the library of one.
pub fn is_interpreters(path: &str) -> bool {
    interpreter(path).is_some() || is_interpreter_library(path)
}

/// Whether a mapped file is the library of an interpreter.
pub fn is_interpreter_library(path: &str) -> bool {
    is_library(path, &INTERPRETER_LIBRARIES)
}

/// Whether a mapped file is under every program.
pub fn is_system_library(path: &str) -> bool {
    // Loaders, and musl's library, which is its loader, have the architecture in their names.
    let of_architecture = ["ld-linux-", "ld-musl-", "libc.musl-"];
    is_library(path, &SYSTEM_LIBRARIES)
        || of_architecture.iter().any(|known| basename(path).starts_with(known))
}

/// `libm.so.6` and `libm-2.31.so`, and not `libmagic.so.1`.
fn is_library(path: &str, known: &[&str]) -> bool {
    let Some((name, _)) = basename(path).split_once(".so") else { return false };
    known.iter().any(|known| name.strip_prefix(known).is_some_and(is_version))
}

/// Whether this is nothing, or a version and the like: `3`, `3.13t`, `-20`, `8.2`, `5.36-x86_64-linux-gnu`.
fn is_version(rest: &str) -> bool {
    let rest = match rest.strip_prefix('-') {
        Some(build) if is_build(build) => return true,
        Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => version,
        Some(_) => return false,
        None => rest,
    };
    let is_of_number = |c: char| c.is_ascii_digit() || c == '.';
    let after = rest.trim_start_matches(is_of_number);
    if after.len() == rest.len() {
        return rest.is_empty();
    }
    // ABI flags: debug, pymalloc, wide unicode, free-threaded.
    let after = after.trim_start_matches(['d', 'm', 'u', 't', 'w']);
    after.is_empty() || after.strip_prefix('-').is_some_and(is_build)
}

fn is_build(build: &str) -> bool {
    BUILDS.contains(&build)
        || ["x86_64", "aarch64", "beta", "rc"].iter().any(|arch| build.starts_with(arch))
}

#[cfg(test)]
mod tests {
    use super::{interpreter, is_interpreter_library, is_system_library};

    /// Whatever version follows, it is the interpreter; whatever else does, it is a program of its own.
    #[test]
    fn interpreters_by_name() {
        for (exe, family) in [
            ("/usr/bin/python3", "python"),
            ("/usr/bin/python3.11", "python"),
            ("/opt/bin/python3.13t", "python"),
            ("/usr/bin/python3.11-dbg", "python"),
            ("/usr/bin/python3.8d", "python"),
            ("/opt/pypy/bin/pypy3.10", "pypy"),
            ("/usr/bin/pypy3.10-c", "pypy"),
            ("/usr/bin/node", "node"),
            ("/opt/node20", "node"),
            ("/opt/node-20", "node"),
            ("/usr/bin/nodejs", "node"),
            ("/usr/sbin/php-fpm8.2", "php"),
            ("/usr/bin/php8.2", "php"),
            ("/usr/bin/ruby3.1", "ruby"),
            ("/usr/bin/lua5.4", "lua"),
            ("/usr/bin/luajit-2.1.0-beta3", "lua"),
            ("/usr/bin/perl5.36.0", "perl"),
            ("/usr/bin/perl5.36-x86_64-linux-gnu", "perl"),
            ("/usr/bin/mono-sgen", "mono"),
            ("/usr/lib/erlang/bin/beam.smp", "beam.smp"),
            ("/usr/bin/uwsgi_python3", "uwsgi"),
        ] {
            assert_eq!(interpreter(exe).unwrap_or_default(), family, "{exe}");
        }
        for exe in [
            "monolith",
            "node-agent",
            "node_exporter",
            "nodetool",
            "perlite",
            "phpmyserver",
            "javaws",
            "bunyan",
            "luarocks",
            "pythonista",
            "python-gateway",
            "python3-worker",
            "rubyforge",
            "denominator",
            "dotnet-svc",
            "uwsgi-exporter",
            "node20-api",
            "java-agent",
            "monod",
        ] {
            assert_eq!(interpreter(&format!("/srv/bin/{exe}")), None, "{exe}");
        }
    }

    /// Libraries are known by their whole names, too.
    #[test]
    fn libraries_by_name() {
        for file in [
            "libpython3.11.so.1.0",
            "libpython3.13t.so.1.0",
            "libnode.so.115",
            "libruby-3.1.so.3.1",
            "libjvm.so",
            "libperl.so.5.36",
            "libphp8.2.so",
        ] {
            assert!(is_interpreter_library(&format!("/usr/lib/{file}")), "{file}");
        }
        for file in ["libpythonic.so", "libnodeagent.so.1", "libjvmti-tools.so", "libperlin.so"] {
            assert!(!is_interpreter_library(&format!("/usr/lib/{file}")), "{file}");
        }
        for file in [
            "libc.so.6",
            "libc-2.31.so",
            "ld-linux-x86-64.so.2",
            "ld-musl-x86_64.so.1",
            "libm.so.6",
            "ld-2.31.so",
            "libstdc++.so.6.0.30",
            "libgcc_s.so.1",
            "libc.musl-x86_64.so.1",
        ] {
            assert!(is_system_library(&format!("/lib/{file}")), "{file}");
        }
        for file in ["librtmp.so.1", "libdlib.so.19", "libmagic.so.1", "libcrypto.so.3"] {
            assert!(!is_system_library(&format!("/lib/{file}")), "{file}");
        }
    }
}
