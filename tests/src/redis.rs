//! A Redis server of our own, and a client that times each command: the server's own truth.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::clock::{MILLISECOND, monotonic_ns, patience};
use crate::target::{Target, free_port};
use crate::truth::Truth;

/// Starts `redis-server` on a free loopback port, without persistence.
pub fn start() -> Result<(Target, u16)> {
    let port = free_port()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning"]);
    command.args(["--enable-debug-command", "yes"]);
    let target = Target::program(command)?;
    let deadline = Instant::now() + patience(40);
    while Connection::open(port).and_then(|mut redis| redis.command(&["PING"])).is_err() {
        if Instant::now() > deadline {
            bail!("redis-server does not answer");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((target, port))
}

/// A connection that speaks RESP, as far as our commands need it.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience(60)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends one command and returns the first line of its reply, or the second for a string.
    pub fn command(&mut self, words: &[&str]) -> Result<String> {
        self.stream.get_mut().write_all(encode(words).as_bytes())?;
        let head = self.line()?;
        match head.split_at_checked(1) {
            Some(("+" | ":", reply)) => Ok(reply.to_owned()),
            Some(("$", "-1")) => Ok(String::new()),
            Some(("$", _)) => self.line(),
            _ => bail!("{words:?} was answered with {head:?}"),
        }
    }

    /// The same, with the time that it took: the server did nothing else meanwhile.
    pub fn timed(&mut self, kind: &str, words: &[&str]) -> Result<Truth> {
        let start_ns = monotonic_ns();
        self.command(words)?;
        let end_ns = monotonic_ns();
        let kind = kind.to_owned();
        let (function, file, line, last_line) = (None, None, None, None);
        Ok(Truth { kind, function, file, line, last_line, thread: None, start_ns, end_ns })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("no reply")? == 0 {
            bail!("the server closed the connection");
        }
        Ok(line.trim_end().to_owned())
    }
}

/// A command as an array of strings.
fn encode(words: &[&str]) -> String {
    let strings = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    format!("*{}\r\n{}", words.len(), strings.collect::<String>())
}

/// A Lua script that keeps the server busy for at least about `milliseconds`, and its argument.
///
/// Redis stops its clock while a script runs, so the script counts; how far is measured beforehand.
pub fn busy_script(redis: &mut Connection, milliseconds: u64) -> Result<[String; 4]> {
    const SCRIPT: &str =
        "local x = 0; for i = 1, tonumber(ARGV[1]) do x = (x * 31 + i) % 1000003 end; return x";
    const ROUNDS: u64 = 1_000_000;
    const TRIALS: u32 = 5;
    // The quickest: others on the machine can only make it slower.
    let mut quickest_ns = u64::MAX;
    for _ in 0..TRIALS {
        let trial = redis.timed("trial", &["EVAL", SCRIPT, "0", &ROUNDS.to_string()])?;
        quickest_ns = quickest_ns.min(trial.duration_ns().max(1));
    }
    let wanted_ns = u128::from(milliseconds) * 1_000_000;
    let rounds = wanted_ns * u128::from(ROUNDS) / u128::from(quickest_ns);
    Ok(["EVAL".to_owned(), SCRIPT.to_owned(), "0".to_owned(), rounds.to_string()])
}

/// A command that looks at every key, with so many keys that it keeps the server busy for at least about
/// `milliseconds`.
pub fn busy_keys(redis: &mut Connection, milliseconds: u64) -> Result<[&'static str; 3]> {
    const COMMAND: [&str; 3] = ["EVAL", "return #redis.call('KEYS', 'none*')", "0"];
    const TRIALS: u32 = 3;
    const MOST_KEYS: u64 = 40_000_000;
    let mut keys: u64 = 250_000;
    loop {
        // Those that are there already are left alone.
        redis.command(&["DEBUG", "POPULATE", &keys.to_string()])?;
        let mut quickest_ns = u64::MAX;
        for _ in 0..TRIALS {
            quickest_ns = quickest_ns.min(redis.timed("trial", &COMMAND)?.duration_ns().max(1));
        }
        if quickest_ns >= milliseconds * MILLISECOND {
            return Ok(COMMAND);
        }
        // A tenth more, as a trial and the next differ.
        let wanted = u128::from(keys) * u128::from(milliseconds * MILLISECOND) * 11 / 10;
        keys = u64::try_from(wanted / u128::from(quickest_ns))?.max(keys + 1);
        if keys > MOST_KEYS {
            bail!("{keys} keys would be needed to keep redis-server busy for {milliseconds} ms");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::encode;

    /// Lengths are in bytes, as the protocol wants them.
    #[test]
    fn commands_are_encoded() {
        assert_eq!(encode(&["GET", "é"]), "*2\r\n$3\r\nGET\r\n$2\r\né\r\n");
    }
}
