//! nginx, haproxy and memcached of our own on free ports, each with ways to stall it, and their clients.

use std::fs;
use std::io::{BufRead as _, BufReader, PipeReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::clock::{MILLISECOND, monotonic_ns, patience};
use crate::load::Client;
use crate::target::{Scratch, Target, free_port};
use crate::truth::Truth;

/// How often one request to nginx tries its regular expression: PCRE limits what one match may cost, and a
/// machine ten times as fast as today's is still to be kept busy.
const PATTERNS: usize = 400;

/// A server, its configuration, and the process that serves.
#[derive(Debug)]
pub struct Server {
    pub target: Target,
    /// The process to attach to: the server itself, or its only worker.
    pub pid: u32,
    /// Where its loops listen.
    pub ports: Vec<u16>,
    /// Goes away after the target.
    _scratch: Scratch,
}

impl Server {
    pub fn port(&self) -> u16 {
        self.ports.first().copied().unwrap_or(0)
    }

    /// nginx: a master and one worker. `/` is healthy, `/short` takes 4 ms without holding up anybody,
    /// `/regex?x=` matches, `/nap` waits for a child.
    pub fn nginx(with_jit: bool) -> Result<Self> {
        let scratch = Scratch::new()?;
        let port = free_port()?;
        let file = scratch.file("nginx.conf");
        fs::write(&file, nginx_conf(&scratch.file(""), port, with_jit))?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-c").arg(&file).args(["-e", "stderr"]);
        let mut server = Self::start(command, vec![port], scratch)?;
        let children =
            fs::read_to_string(format!("/proc/{0}/task/{0}/children", server.target.pid()))?;
        let worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        server.pid = worker.context("nginx has no worker")?;
        Ok(server)
    }

    /// haproxy with two threads, each with a port of its own. `/nap` waits for a child.
    pub fn haproxy() -> Result<Self> {
        let scratch = Scratch::new()?;
        let ports = vec![free_port()?, free_port()?];
        let (file, script) = (scratch.file("haproxy.cfg"), scratch.file("nap.lua"));
        fs::write(&script, HAPROXY_LUA)?;
        fs::write(&file, haproxy_cfg(&script, &ports))?;
        let mut command = Command::new("/usr/sbin/haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Self::start(command, ports, scratch)
    }

    fn start(command: Command, ports: Vec<u16>, scratch: Scratch) -> Result<Self> {
        let program = format!("{:?}", command.get_program());
        let target = Target::program(command)?;
        let pid = target.pid();
        for port in &ports {
            wait_until_it_answers(&program, || Client::connect(*port)?.get("/").map(|_| ()))?;
        }
        Ok(Self { target, pid, ports, _scratch: scratch })
    }
}

fn wait_until_it_answers(program: &str, ask: impl Fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + patience(40);
    while let Err(error) = ask() {
        if Instant::now() > deadline {
            return Err(error).with_context(|| format!("{program} does not answer"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn nginx_conf(folder: &Path, port: u16, with_jit: bool) -> String {
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/{name};\n"))
        .concat();
    let matches = "if ($arg_x ~ \"^(a+)+$\") { return 200 \"yes\"; }\n".repeat(PATTERNS);
    let jit = if with_jit { "on" } else { "off" };
    format!(
        "load_module /usr/lib/nginx/modules/ndk_http_module.so;
load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr; pcre_jit {jit};
events {{ worker_connections 256; }}
http {{
access_log off; keepalive_timeout 120; keepalive_requests 100000; {temporary}
server {{
listen 127.0.0.1:{port};
location / {{ return 200 \"ok\"; }}
location /short {{ content_by_lua_block {{
ngx.sleep(0.004); ngx.header['Content-Length'] = 2; ngx.print('ok')
}} }}
location /regex {{ {matches} return 200 \"no\"; }}
location /nap {{ content_by_lua_block {{
os.execute('sleep 0.4'); ngx.header['Content-Length'] = 2; ngx.print('ok')
}} }}
}} }}
"
    )
}

const HAPROXY_LUA: &str = r#"
core.register_service("nap", "http", function(applet)
  os.execute("sleep 0.4")
  applet:set_status(200)
  applet:add_header("content-length", 2)
  applet:start_response()
  applet:send("ok")
end)
"#;

fn haproxy_cfg(script: &Path, ports: &[u16]) -> String {
    let binds = ports.iter().zip(1..);
    let binds: String = binds
        .map(|(port, thread)| format!("  bind 127.0.0.1:{port} thread 1/{thread}\n"))
        .collect();
    format!(
        "global
  nbthread {}
  lua-load-per-thread {}
defaults
  mode http
  timeout client 120s
  timeout connect 5s
  timeout server 120s
frontend all
{binds}
  http-request use-service lua.nap if {{ path /nap }}
  http-request return status 200 content-type text/plain string ok
",
        ports.len(),
        script.display()
    )
}

/// One request, as the record of what kept the server from answering.
pub fn timed(port: u16, path: &str, kind: &str, function: &str) -> Result<Truth> {
    let exchange = Client::connect(port)?.get(path)?;
    Ok(Truth {
        function: Some(function.to_owned()),
        ..record(kind, exchange.sent_ns, exchange.answered_ns)
    })
}

/// A record that names no function.
pub fn record(kind: &str, start_ns: u64, end_ns: u64) -> Truth {
    let kind = kind.to_owned();
    Truth {
        kind,
        function: None,
        file: None,
        line: None,
        last_line: None,
        thread: None,
        start_ns,
        end_ns,
    }
}

/// A path whose matching keeps nginx busy for at least so long, found by trying.
pub fn busy_path(port: u16, at_least: Duration) -> Result<String> {
    // Each further letter doubles the work. Where PCRE gives up, nginx answers with an error: in the
    // interpreter at about 23, in compiled code later.
    for letters in 8..26 {
        let path = format!("/regex?x={}b", "a".repeat(letters));
        let exchange = Client::connect(port)?.get(&path)?;
        if u128::from(exchange.waited_ns()) >= at_least.as_nanos() {
            return Ok(path);
        }
    }
    bail!("no expression keeps nginx busy for {at_least:?}")
}

/// memcached with two workers, which says what it does into a pipe.
#[derive(Debug)]
pub struct Memcached {
    pub target: Target,
    pub port: u16,
    log: Arc<AtomicBool>,
}

impl Memcached {
    pub fn start() -> Result<Self> {
        let port = free_port()?;
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new("memcached");
        command.args(["-u", "nobody", "-l", "127.0.0.1", "-p", &port.to_string()]);
        command.args(["-t", "2", "-vv"]).stderr(writer);
        let target = Target::program(command)?;
        let log = Arc::new(AtomicBool::new(true));
        let is_read = Arc::clone(&log);
        std::thread::spawn(move || drain(reader, &is_read));
        wait_until_it_answers("memcached", || Connection::open(port)?.get().map(|_| ()))?;
        Ok(Self { target, port, log })
    }

    /// Lets the pipe fill up, so that all workers block, and reads it again after `duration`. Every
    /// client sees one of its requests wait.
    pub fn choke(&self, clients: usize, duration: Duration) -> Result<Vec<Truth>> {
        let connections: Result<Vec<_>> =
            (0..clients).map(|_| Connection::open(self.port)).collect();
        self.log.store(false, Ordering::Relaxed);
        let begun = monotonic_ns();
        let asking: Vec<_> = connections?
            .into_iter()
            .map(|mut connection| {
                std::thread::spawn(move || -> Result<Truth> {
                    let mut longest = connection.get()?;
                    while longest.duration_ns() < 50 * MILLISECOND {
                        let next = connection.get()?;
                        longest = std::cmp::max_by_key(longest, next, Truth::duration_ns);
                        if monotonic_ns().saturating_sub(begun) > 20_000 * MILLISECOND {
                            bail!("the pipe does not fill up");
                        }
                    }
                    Ok(longest)
                })
            })
            .collect();
        std::thread::sleep(duration);
        self.log.store(true, Ordering::Relaxed);
        let truths = asking.into_iter().map(|thread| match thread.join() {
            Ok(truth) => truth,
            Err(_) => bail!("the thread that sends requests panicked"),
        });
        truths.collect()
    }
}

/// Reads the log as long as it is to be read, and waits while it is not.
fn drain(mut reader: PipeReader, is_read: &AtomicBool) {
    let mut chunk = [0; 4096];
    loop {
        if !is_read.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(2));
        } else if !matches!(reader.read(&mut chunk), Ok(1..)) {
            return;
        }
    }
}

/// A connection that speaks memcached's text protocol, as far as our requests need it.
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

    /// Asks for what is not there, and returns how long that took.
    pub fn get(&mut self) -> Result<Truth> {
        let start_ns = monotonic_ns();
        self.stream.get_mut().write_all(b"get nothing\r\n")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        if answer.trim_end() != "END" {
            bail!("memcached answered {answer:?}");
        }
        Ok(record("choke", start_ns, monotonic_ns()))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{haproxy_cfg, nginx_conf};

    /// Each thread has its port, and braces come in pairs.
    #[test]
    fn configurations() {
        let text = haproxy_cfg(Path::new("/x/nap.lua"), &[81, 82]);
        assert!(text.contains("nbthread 2\n  lua-load-per-thread /x/nap.lua\n"));
        assert!(text.contains("127.0.0.1:82 thread 1/2\n"));
        let text = nginx_conf(Path::new("/x"), 80, true);
        let count = |brace| text.matches(brace).count();
        assert_eq!(count('{'), count('}'));
        assert!(text.contains("pcre_jit on;") && text.contains("proxy_temp_path /x/proxy;"));
    }
}
