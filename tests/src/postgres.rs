//! A PostgreSQL server of our own, in a cluster that is made for one test.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::User;

use crate::clock::patience;
use crate::target::{Scratch, Target, free_port};

/// Where Debian keeps the servers, one folder a version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Whom the server runs as: it refuses root.
const OWNER: &str = "postgres";

/// A server that accepts connections on a loopback port from anybody.
#[derive(Debug)]
pub struct Postgres {
    port: u16,
    _target: Target,
    /// Goes away after the target.
    _scratch: Scratch,
}

impl Postgres {
    pub fn start() -> Result<Self> {
        let owner = User::from_name(OWNER)?.context("there is no user postgres")?;
        let (programs, scratch, port) = (programs()?, Scratch::new()?, free_port()?);
        let folder = scratch.file("");
        chown(&folder, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
        let cluster = folder.join("cluster");
        let as_owner = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw()).current_dir(&folder);
            command.env("LC_ALL", "C");
            command
        };
        let mut make = as_owner("initdb");
        make.args(["--auth=trust", "--no-sync", "--pgdata"]).arg(&cluster);
        let made = make.stdin(Stdio::null()).output()?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let mut serve = as_owner("postgres");
        serve.arg("-D").arg(&cluster).args(["-p", &port.to_string()]).arg("-k").arg(&folder);
        serve.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"]).stderr(Stdio::null());
        let server = Self { port, _target: Target::program(serve)?, _scratch: scratch };
        let deadline = Instant::now() + patience(20);
        while !server.answers(&programs)? {
            ensure!(Instant::now() < deadline, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn answers(&self, programs: &Path) -> Result<bool> {
        let mut ask = Command::new(programs.join("pg_isready"));
        ask.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        Ok(ask.status().context("pg_isready does not start")?.success())
    }

    /// As libpq takes it.
    pub fn address(&self) -> String {
        format!("host=127.0.0.1 port={} user={OWNER} dbname=postgres", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

/// The folder of the newest version's programs.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS);
    let newest = versions.into_iter().flatten().flatten().filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let programs = entry.path().join("bin");
        programs.join("initdb").exists().then_some((version, programs))
    });
    match newest.max() {
        Some((_, programs)) => Ok(programs),
        None => bail!("PostgreSQL is missing: `cargo xtask setup targets` installs it"),
    }
}
