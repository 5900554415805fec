//! The healthy twins of every runtime: how each is started, what is asked of it, and what it counts itself.
//!
//! Another one is another line of [`TWINS`] and the function that starts it.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::clock::monotonic_ns;
use crate::compiled;
use crate::load::{Client, Exchange};
use crate::redis;
use crate::servers::Server;
use crate::target::{Target, folder, node, system_python, venv_python};
use crate::truth::Truth;

/// A program that stalls nobody, whatever is asked of it.
#[derive(Debug, Clone, Copy)]
pub struct Twin {
    pub name: &'static str,
    pub start: fn() -> Result<Running>,
}

pub const TWINS: &[Twin] = &[
    Twin { name: "asyncio", start: asyncio },
    Twin { name: "uvicorn-asyncio", start: || uvicorn("asyncio") },
    Twin { name: "uvicorn-uvloop", start: || uvicorn("uvloop") },
    Twin { name: "gunicorn-gthread", start: gthread },
    Twin { name: "uwsgi", start: uwsgi },
    Twin { name: "node", start: node_service },
    Twin { name: "tokio-current-thread", start: || tokio("current_thread") },
    Twin { name: "tokio-multi-thread", start: || tokio("multi_thread") },
    Twin { name: "asio-one-thread", start: || asio("1") },
    Twin { name: "asio-eight-threads", start: || asio("8") },
    Twin { name: "smol", start: smol },
    Twin { name: "leader-and-followers", start: || followers("leader") },
    Twin { name: "herd-on-one-epoll", start: || followers("herd") },
    Twin { name: "go", start: go },
    Twin { name: "obstore", start: || rust_inside("obstore") },
    Twin { name: "primp", start: || rust_inside("primp") },
    Twin { name: "loops-for-single-calls", start: loops_for_single_calls },
    Twin { name: "redis", start: redis_server },
    Twin { name: "nginx", start: nginx },
];

/// A client, asked for one request after the other.
pub type Ask = Box<dyn FnMut(usize) -> Result<Exchange> + Send>;

/// One of those that keep a twin at work.
pub struct Asker {
    pub ask: Ask,
    /// Whether an answer that is late says that the loop was: not where it takes its time on purpose.
    pub is_witness: bool,
}

impl fmt::Debug for Asker {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Asker").field("is_witness", &self.is_witness).finish_non_exhaustive()
    }
}

/// What ends with the twin: its processes, its folders.
pub trait Process: fmt::Debug + Send {
    /// The delays that it noted itself, besides those that its clients feel.
    fn truths(&self) -> Result<Vec<Truth>> {
        Ok(Vec::new())
    }
}

impl Process for Target {
    fn truths(&self) -> Result<Vec<Truth>> {
        Self::truths(self)
    }
}

impl Process for Server {}

/// What a loop knows of its own turns.
pub struct OwnCount {
    /// How many it has had so far.
    pub turns: Box<dyn FnMut() -> Result<u64> + Send>,
    /// How often it waits in one of its turns at most: each time, for whoever watches, a turn ends.
    pub waits_a_turn: u64,
}

impl fmt::Debug for OwnCount {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("OwnCount")
            .field("waits_a_turn", &self.waits_a_turn)
            .finish_non_exhaustive()
    }
}

/// A twin at work.
pub struct Running {
    pub process: Box<dyn Process>,
    /// The process to attach to, whose main thread runs the loop that is counted.
    pub pid: u32,
    pub askers: Vec<Asker>,
    /// Where it counts its turns itself.
    pub own_count: Option<OwnCount>,
}

impl fmt::Debug for Running {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Running").field("process", &self.process).finish_non_exhaustive()
    }
}

impl Running {
    /// One that answers requests over HTTP: those of the first paths at once, those of the others when they are done.
    pub fn http(target: Target, quick: &'static [&'static str], slow: &[&'static str]) -> Self {
        let (pid, port) = (target.loop_pid(), target.port());
        let kept = |paths: &'static [&'static str], is_witness| Asker {
            ask: keeping_connection(port, paths),
            is_witness,
        };
        let mut askers: Vec<Asker> = (0..3).map(|_| kept(quick, true)).collect();
        for path in slow {
            let ask = anew(port, path);
            askers.push(Asker { ask, is_witness: false });
        }
        Self { process: Box::new(target), pid, askers, own_count: None }
    }

    /// It says how many turns it had to whoever asks for `/turns`.
    pub fn counting(mut self, port: u16, waits_a_turn: u64) -> Self {
        let turns = Box::new(move || {
            let body = Client::connect(port)?.body("/turns")?;
            body.trim().parse().with_context(|| format!("{body:?} is no number of turns"))
        });
        self.own_count = Some(OwnCount { turns, waits_a_turn });
        self
    }
}

fn keeping_connection(port: u16, paths: &'static [&'static str]) -> Ask {
    let mut connected = None;
    Box::new(move |round| {
        let client = match &mut connected {
            Some(client) => client,
            none => none.insert(Client::connect(port)?),
        };
        client.get(paths[round % paths.len()])
    })
}

/// A connection for each request, as some servers have it.
fn anew(port: u16, path: &'static str) -> Ask {
    Box::new(move |_| Client::connect(port)?.get(path))
}

fn asyncio() -> Result<Running> {
    let target = Target::service()?;
    let port = target.port();
    let slow = ["/async-sleep?ms=150", "/to-thread?ms=150"];
    Ok(Running::http(target, &["/", "/async-sleep?ms=5", "/short"], &slow).counting(port, 1))
}

fn uvicorn(event_loop: &str) -> Result<Running> {
    let slow = ["/async-sleep?ms=150", "/to-thread?ms=150"];
    Ok(Running::http(Target::uvicorn(event_loop)?, &["/", "/async-sleep?ms=5", "/short"], &slow))
}

fn node_service() -> Result<Running> {
    let target = Target::node(&node(22)?, &[])?;
    let port = target.port();
    let slow = ["/pause?ms=150", "/hash-aside"];
    let running = Running::http(target, &["/", "/read", "/pause?ms=5", "/short"], &slow);
    // To measure its idle time, libuv looks for events without sleeping first.
    Ok(running.counting(port, 2))
}

fn tokio(flavour: &str) -> Result<Running> {
    let mut command = Command::new(own_program("tokio-target")?);
    command.args(["--flavour", flavour]);
    let target = Target::of_ours(command)?;
    let port = target.port();
    let running = Running::http(target, &["/", "/wait?ms=5"], &["/wait?ms=150", "/offload?ms=150"]);
    // Workers share one instance by turns: what each has of it is not what the runtime counts.
    Ok(if flavour == "current_thread" { running.counting(port, 1) } else { running })
}

/// Its threads take turns at one poll.
fn asio(threads: &str) -> Result<Running> {
    let mut command = Command::new(compiled::program("reactor.cpp")?);
    command.arg(threads);
    Ok(Running::http(Target::of_ours(command)?, &["/"], &[]))
}

fn followers(style: &str) -> Result<Running> {
    let mut command = Command::new(compiled::program("followers.c")?);
    command.args([style, "4"]);
    // One of four is held at a time, and the others go on.
    Ok(Running::http(Target::of_ours(command)?, &["/"], &["/sleep?ms=150"]))
}

fn smol() -> Result<Running> {
    let mut command = Command::new(own_program("smol-target")?);
    command.arg("4");
    Ok(Running::http(Target::of_ours(command)?, &["/"], &["/sleep?ms=150"]))
}

fn go() -> Result<Running> {
    let command = Command::new(compiled::program("netpoll.go")?);
    Ok(Running::http(Target::of_ours(command)?, &["/"], &["/compute?ms=150", "/nap?ms=150"]))
}

/// Asks itself, by an extension that has a runtime inside.
fn rust_inside(extension: &str) -> Result<Running> {
    let mut command = Command::new(venv_python()?);
    command.arg(folder().join("rust_inside.py")).arg(extension);
    by_itself(command)
}

/// A loop for each call in the pool of a healthy server, which says when it was late itself.
fn loops_for_single_calls() -> Result<Running> {
    let mut command = Command::new(system_python());
    command.arg(folder().join("ends_of_loops.py")).arg("pool-for-ever");
    by_itself(command)
}

/// One that nobody needs to ask.
fn by_itself(command: Command) -> Result<Running> {
    let running = Running::http(Target::of_ours(command)?, &["/"], &[]);
    Ok(Running { askers: Vec::new(), ..running })
}

/// The loop accepts and hands over; its threads are held for moments.
fn gthread() -> Result<Running> {
    let target = Target::gunicorn_with_threads("wsgi_app:application")?;
    Ok(Running::http(target, &["/", "/sleep?ms=5"], &["/sleep?ms=150"]))
}

/// One thread, which closes each connection after its answer.
fn uwsgi() -> Result<Running> {
    let target = Target::uwsgi("wsgi_app.py")?;
    let (pid, port) = (target.loop_pid(), target.port());
    let ask = |path| Asker { ask: anew(port, path), is_witness: true };
    let askers = ["/", "/sleep?ms=5", "/cpu?ms=5"].map(ask).into();
    Ok(Running { process: Box::new(target), pid, askers, own_count: None })
}

fn nginx() -> Result<Running> {
    let server = Server::nginx(true)?;
    let (pid, port) = (server.pid, server.port());
    let quick = (0..3).map(|_| keeping_connection(port, &["/", "/regex?x=aab"]));
    let new = anew(port, "/");
    let askers = quick.chain([new]).map(|ask| Asker { ask, is_witness: true }).collect();
    Ok(Running { process: Box::new(server), pid, askers, own_count: None })
}

fn redis_server() -> Result<Running> {
    const COMMANDS: [&[&str]; 3] = [&["SET", "a", "1"], &["GET", "a"], &["INCR", "b"]];
    let (target, port) = redis::start()?;
    let pid = target.pid();
    let ask = || -> Result<Asker> {
        let mut connection = redis::Connection::open(port)?;
        let ask = move |round: usize| {
            let sent_ns = monotonic_ns();
            connection.command(COMMANDS[round % COMMANDS.len()])?;
            Ok(Exchange { sent_ns, answered_ns: monotonic_ns() })
        };
        Ok(Asker { ask: Box::new(ask), is_witness: true })
    };
    let askers = (0..4).map(|_| ask()).collect::<Result<_>>()?;
    Ok(Running { process: Box::new(target), pid, askers, own_count: None })
}

/// A program of this package, built beside the one that runs.
fn own_program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe().context("this program has no path")?;
    let beside = here.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    let found = beside.into_iter().find(|path| path.exists());
    found.with_context(|| format!("{name} is not built: see {}", folder().display()))
}
