//! Stalls of every kind to the rule that fits them, and what comes near one but must not have it.

use std::collections::{BTreeMap, BTreeSet};

use profiler_ebpf::turn::Turn;

use super::table::{AdviceTable, TABLE};
use super::{Peers, document, fields, rule};
use crate::call::{Call, Timeout};
use crate::frame::Frame;
use crate::report::application::CodeOwner;
use crate::report::cause;
use crate::report::facts::{Context, SessionFacts, ThreadFacts};
use crate::report::sample::{self, blocked_in, javascript, kernel, native, on_cpu, python};
use crate::turn::{Awaited, Sampled, Stall, ThreadState};

const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/advice.md");

/// Set to write the document instead of comparing with it.
const BLESS: &str = "STALLTRACE_BLESS";

pub(super) const LIB: &str = "/usr/lib/python3.11";
pub(super) const SITE: &str = "/v/lib/python3.11/site-packages";
pub(super) const PYTHON: &str = "/usr/bin/python3.11";
pub(super) const REDIS: &str = "/usr/bin/redis-server";
pub(super) const NODE: &str = "/usr/bin/node";

pub(super) const RECV: i64 = 45;
pub(super) const FUTEX: i64 = 202;
pub(super) const SLEEP: i64 = 230;
pub(super) const READ: i64 = 0;
pub(super) const WRITE: i64 = 1;
pub(super) const WAIT4: i64 = 61;
pub(super) const FLOCK: i64 = 73;

/// A program, and how it is watched.
#[derive(Clone, Copy)]
pub(super) struct Watched {
    pub exe: &'static str,
    pub loop_kind: &'static str,
}

pub(super) const ASYNCIO: Watched = Watched { exe: PYTHON, loop_kind: "asyncio" };

pub(super) fn of(loop_kind: &'static str) -> Watched {
    Watched { exe: PYTHON, loop_kind }
}

/// The rule, and what it says, for a turn with these stacks.
fn advice(watched: Watched, stacks: Vec<Sampled>) -> Option<(String, String)> {
    advice_on(watched, &stall_of(stacks))
}

/// A turn with these stacks.
pub(super) fn stall_of(stacks: Vec<Sampled>) -> Stall {
    let part = |running: bool| {
        let of = stacks.iter().filter(|it| (it.state == ThreadState::RunningUser) == running);
        of.map(|sampled| sampled.time_ns).sum()
    };
    let turn = Turn { running_ns: part(true), blocked_ns: part(false), ..Turn::default() };
    Stall { turn, stacks, ..sample::stall() }
}

pub(super) fn advice_on(watched: Watched, stall: &Stall) -> Option<(String, String)> {
    let mut session: SessionFacts = sample::session();
    session.process.exe = Some(watched.exe.to_owned());
    session.process.name = "shop".to_owned();
    let loop_kind = watched.loop_kind.to_owned();
    let thread = ThreadFacts { loop_kind, ..sample::thread() };
    let descriptors: BTreeMap<u32, String> =
        [(5, "pipe"), (7, "tcp 127.0.0.1:8081"), (9, "/var/lib/x.json")]
            .map(|(number, text)| (number, text.to_owned()))
            .into();
    let context = Context {
        session: &session,
        now_ns: 0,
        thread: &thread,
        threshold_ns: 1,
        error_threshold_ns: 1,
        descriptors: &descriptors,
        losses: &[],
        peers: &Peers::default(),
        gaps: &[],
    };
    let owner = CodeOwner::new(&session.process);
    let mut verdict = cause::judge(stall, &descriptors);
    cause::chain::attach(&mut verdict, stall, &owner);
    let rule = rule(&verdict, &fields(&verdict.cause), &owner, &context)?;
    let text = super::find(&verdict, &owner, &context).unwrap();
    Some((rule.id.clone(), text))
}

/// Inside of asyncio, called by the application.
fn in_callback(mut inner: Vec<Frame>) -> Vec<Frame> {
    inner.push(python("handler", "/srv/app.py", 9));
    inner.push(python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80));
    inner
}

pub(super) fn blocked(syscall: i64, fd: u64, inner: Vec<Frame>) -> Vec<Sampled> {
    let mut sampled = blocked_in(syscall, [fd, 0, 0, 0, 0, 0], 90);
    sampled.stack.frames = in_callback(inner);
    vec![sampled]
}

/// A call that has no timeout.
pub(super) fn endless(syscall: i64, fd: u64) -> Vec<Sampled> {
    let mut stacks = blocked(syscall, fd, Vec::new());
    let call = Call { is_seen: true, timeout: Some(Timeout::None), ..Call::default() };
    stacks[0].call = Some(Box::new(call));
    stacks
}

pub(super) fn running(inner: Vec<Frame>) -> Vec<Sampled> {
    vec![on_cpu(in_callback(inner), 90)]
}

fn id(watched: Watched, stacks: Vec<Sampled>) -> Option<String> {
    advice(watched, stacks).map(|(id, _)| id)
}

/// The table parses, no two rules are called alike, each can be given to some loop, and says where to read
/// more.
#[test]
fn table_is_sound() {
    let table: AdviceTable = toml::from_str(include_str!("advice.toml")).unwrap();
    assert_eq!(table.rules.len(), TABLE.rules.len());
    let ids: BTreeSet<&str> = table.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(ids.len(), table.rules.len());
    for rule in &table.rules {
        let mut families = table.loops.iter().map(Some).chain([None]);
        assert!(families.any(|family| rule.text(family).is_some()), "{}: unknown word", rule.id);
        let is_link = |link: &String| link.starts_with("https://");
        assert!(!rule.links.is_empty() && rule.links.iter().all(is_link), "{}", rule.id);
        assert!(rule.advice.len() < 240, "{} is long: {}", rule.id, rule.advice.len());
    }
}

/// The published document is the one that the table makes.
#[test]
fn published_document() {
    let made = document::markdown();
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(PUBLISHED, &made).unwrap();
    }
    let published = std::fs::read_to_string(PUBLISHED).unwrap();
    assert!(published == made, "{PUBLISHED} is out of date: run this test with {BLESS}=1");
}

/// What an asyncio loop was blocked in, by what the application had called.
#[test]
fn blocking_calls_of_asyncio() {
    let http = || vec![python("HTTPResponse.begin", &format!("{LIB}/http/client.py"), 318)];
    let site = |file: &str| vec![python("f", &format!("{SITE}/{file}"), 3)];
    let lib = |function: &str, file: &str| vec![python(function, &format!("{LIB}/{file}"), 3)];
    let resolving = vec![native("getaddrinfo", "/usr/lib/x86_64-linux-gnu/libc.so.6")];
    let table = [
        (blocked(SLEEP, 0, Vec::new()), "python-sleep"),
        (blocked(RECV, 7, http()), "python-http"),
        (blocked(RECV, 7, site("requests/sessions.py")), "python-http"),
        (blocked(RECV, 7, resolving), "python-resolve"),
        (blocked(RECV, 7, site("pymysql/connections.py")), "python-mysql"),
        (blocked(RECV, 7, site("redis/connection.py")), "python-redis"),
        (blocked(RECV, 7, vec![native("PQgetResult", "/v/libpq.so.5")]), "python-postgres"),
        (blocked(RECV, 7, site("unheard_of/client.py")), "python-blocking"),
        (blocked(WAIT4, 77, lib("Popen._wait", "subprocess.py")), "python-subprocess"),
        (blocked(WAIT4, 77, Vec::new()), "python-wait-child"),
        (blocked(READ, 9, Vec::new()), "python-file"),
        (blocked(FLOCK, 9, Vec::new()), "python-file-lock"),
        (blocked(READ, 9, lib("StreamHandler.emit", "logging/__init__.py")), "python-logging"),
        (blocked(FUTEX, 0, lib("Queue.get", "queue.py")), "python-queue"),
        (
            blocked(FUTEX, 0, lib("Future.result", "concurrent/futures/_base.py")),
            "python-future-result",
        ),
        (blocked(FUTEX, 0, Vec::new()), "python-lock"),
        (blocked(FUTEX, 0, lib("Event.wait", "threading.py")), "python-event"),
        (
            blocked(FUTEX, 0, {
                let mut start = lib("Event.wait", "threading.py");
                start.extend(lib("Thread.start", "threading.py"));
                start
            }),
            "python-thread-start",
        ),
        (blocked(WRITE, 5, Vec::new()), "pipe-full"),
        (blocked(READ, 5, Vec::new()), "python-blocking"),
    ];
    for (stacks, expected) in table {
        assert_eq!(id(ASYNCIO, stacks).as_deref(), Some(expected));
    }
}

/// Many short waits have another remedy than a long one of the same kind: fewer of them.
#[test]
fn many_short_waits() {
    const FSYNC: i64 = 74;
    let site = |file: &str| vec![python("f", &format!("{SITE}/{file}"), 3)];
    let sqlite = || vec![native("sqlite3_step", "/usr/lib/libsqlite3.so.0")];
    let table = [
        (RECV, 7, site("redis/connection.py"), "python-redis-commands", "python-redis"),
        (RECV, 7, site("psycopg/waiting.py"), "python-queries", "python-postgres"),
        (RECV, 7, site("requests/sessions.py"), "python-http-requests", "python-http"),
        (RECV, 7, Vec::new(), "round-trips", "python-blocking"),
        (FSYNC, 9, sqlite(), "python-sqlite-commits", "python-sqlite"),
        (FSYNC, 9, Vec::new(), "python-file-syncs", "python-file"),
        (SLEEP, 0, Vec::new(), "python-sleep", "python-sleep"),
        (READ, 5, Vec::new(), "python-blocking", "python-blocking"),
    ];
    for (syscall, fd, inner, of_many, of_few) in table {
        let short = |waits| {
            let mut stacks = blocked(syscall, fd, inner.clone());
            let many = sample::in_short_waits(syscall, [fd, 0, 0, 0, 0, 0], waits);
            (stacks[0].waits, stacks[0].time_ns) = (many.waits, many.time_ns);
            stacks
        };
        assert_eq!(id(ASYNCIO, short(300)).as_deref(), Some(of_many));
        assert_eq!(id(ASYNCIO, short(4)).as_deref(), Some(of_few));
    }
    let own = Watched { exe: "/srv/server", loop_kind: "epoll" };
    let many = sample::in_short_waits(RECV, [7, 0, 0, 0, 0, 0], 300);
    assert_eq!(id(own, vec![many]).as_deref(), Some("round-trips"));
}

/// What kept the CPU of an asyncio loop.
#[test]
fn computing_in_asyncio() {
    let table = [
        (vec![python("match", &format!("{LIB}/re/__init__.py"), 166)], "python-regex"),
        (vec![native("sre_ucs1_match", PYTHON)], "python-regex"),
        (vec![native("PKCS5_PBKDF2_HMAC", "/usr/lib/libcrypto.so.3")], "python-password-hash"),
        (vec![python("dumps", &format!("{LIB}/json/__init__.py"), 231)], "python-serialisation"),
        (vec![python("frame", &format!("{SITE}/pandas/core/frame.py"), 1)], "python-numeric"),
        (
            vec![
                python("<module>", &format!("{SITE}/numpy/__init__.py"), 1),
                python("_find_and_load", "<frozen importlib._bootstrap>", 1176),
            ],
            "python-import",
        ),
        (Vec::new(), "python-cpu"),
    ];
    for (inner, expected) in table {
        assert_eq!(id(ASYNCIO, running(inner)).as_deref(), Some(expected));
    }
}

/// What led to the culprit does not name its remedy, nor does what was there for a while only.
#[test]
fn near_misses() {
    let app = python("default", "/srv/app.py", 3);
    let dumps = python("dumps", &format!("{LIB}/json/__init__.py"), 231);
    assert_eq!(id(ASYNCIO, running(vec![app, dumps.clone()])).as_deref(), Some("python-cpu"));
    let stacks = vec![on_cpu(in_callback(Vec::new()), 60), on_cpu(in_callback(vec![dumps]), 40)];
    assert_eq!(id(ASYNCIO, stacks).as_deref(), Some("python-cpu"));
    // A file of the application that is called like a module's.
    let own = vec![python("match", "/srv/re.py.d/x.py", 1)];
    assert_eq!(id(ASYNCIO, running(own)).as_deref(), Some("python-cpu"));
}

/// What is not known has no remedy, and neither has a loop that nobody knows.
#[test]
fn no_advice() {
    let unseen = Turn { running_ns: 90, ..Turn::default() };
    let stall = Stall { turn: unseen, stacks: Vec::new(), ..sample::stall() };
    assert_eq!(advice_on(ASYNCIO, &stall), None);
    let own = Watched { exe: "/srv/server", loop_kind: "epoll" };
    assert_eq!(id(own, vec![blocked_in(RECV, [7, 0, 0, 0, 0, 0], 90)]), None);
    assert_eq!(id(own, vec![blocked_in(SLEEP, [0; 6], 90)]), None);
    assert_eq!(id(own, vec![on_cpu(vec![native("parse", "/srv/server")], 90)]), None);
}

/// Each kind of loop is told in its own words, and what would be wrong for it is not said.
#[test]
fn words_of_each_loop() {
    let sleep = |kind| advice(of(kind), blocked(SLEEP, 0, Vec::new())).map(|(_, text)| text);
    for (kind, word) in [
        ("asyncio", "asyncio.sleep"),
        ("uvloop", "asyncio.sleep"),
        ("trio", "trio.sleep"),
        ("gevent", "gevent.sleep"),
        ("eventlet", "eventlet.sleep"),
        ("twisted", "deferLater"),
        ("tokio", "tokio::time::sleep"),
        ("thread-pool", "A worker may block"),
    ] {
        let text = sleep(kind).unwrap();
        assert!(text.contains(word) && !text.contains('{'), "{kind}: {text}");
    }
    let hash = || running(vec![native("PKCS5_PBKDF2_HMAC", "/usr/lib/libcrypto.so.3")]);
    let (_, text) = advice(of("trio"), hash()).unwrap();
    assert!(!text.contains("asyncio") && text.contains("trio.to_thread.run_sync"), "{text}");
    assert_eq!(id(of("thread-pool"), hash()).as_deref(), Some("worker-cpu"));
}

/// A worker may block, and is told what it blocks for: not of a peer where it waits for a lock or a child.
#[test]
fn workers() {
    let child = || vec![python("Popen._wait", &format!("{LIB}/subprocess.py"), 1964)];
    let regex = vec![python("match", &format!("{LIB}/re/__init__.py"), 166)];
    let table = [
        (blocked(SLEEP, 0, Vec::new()), "worker-blocked"),
        (blocked(FLOCK, 9, Vec::new()), "worker-file-lock"),
        (blocked(WAIT4, 77, child()), "worker-subprocess"),
        (blocked(READ, 7, child()), "worker-subprocess"),
        (endless(FLOCK, 9), "worker-file-lock"),
        (endless(WAIT4, 77), "worker-blocked"),
        (endless(RECV, 7), "worker-no-timeout"),
        (running(regex), "worker-regex"),
        (running(Vec::new()), "worker-cpu"),
    ];
    for (stacks, expected) in table {
        assert_eq!(id(of("uwsgi"), stacks).as_deref(), Some(expected));
    }
}

/// Numeric code that mostly took pages from the kernel is told about those.
#[test]
fn page_faults() {
    let mut stacks = running(vec![python("ones", &format!("{SITE}/numpy/core/numeric.py"), 191)]);
    stacks[0].state = ThreadState::RunningKernel;
    stacks[0].stack.kernel = vec![kernel("clear_huge_page"), kernel("asm_exc_page_fault")];
    let turn = Turn { running_ns: 90, ..Turn::default() };
    let stall = Stall { turn, stacks, ..sample::stall() };
    let (id, _) = advice_on(ASYNCIO, &stall).unwrap();
    assert_eq!(id, "python-page-faults");
}

/// A wait for the interpreter's lock is told before what the waiting line was about.
#[test]
fn interpreter_lock() {
    let mut waiting = blocked(FUTEX, 0, Vec::new());
    waiting[0].awaited = Awaited::Gil;
    assert_eq!(id(ASYNCIO, waiting).as_deref(), Some("python-gil-unseen"));
}

/// Commands of Redis, by what the server ran.
#[test]
fn redis() {
    let redis = Watched { exe: REDIS, loop_kind: "epoll" };
    let command = |names: &[&str]| {
        let frames = names.iter().chain(&["call", "processCommand", "aeMain"]);
        vec![on_cpu(frames.map(|name| native(name, REDIS)).collect(), 90)]
    };
    let table: [(&[&str], &str); 6] = [
        (&["stringmatchlenImpl", "keysCommand"], "redis-keys"),
        (&["lua_pcall", "luaCallFunction", "evalGenericCommand"], "redis-script"),
        (&["dictClear", "emptyData", "flushallCommand"], "redis-flush"),
        (&["dictRelease", "delGenericCommand"], "redis-delete"),
        (&["sinterGenericCommand"], "redis-large-reply"),
        (&["someCommand"], "redis-command"),
    ];
    for (names, expected) in table {
        assert_eq!(id(redis, command(names)).as_deref(), Some(expected));
    }
    // The same names in another program mean nothing.
    let other = Watched { exe: "/srv/server", loop_kind: "epoll" };
    assert_eq!(id(other, command(&["keysCommand"])), None);
}

/// A stack that was cut off is taken for the whole one that begins like it, as for the culprit.
#[test]
fn cut_off_stacks() {
    let block = || native("sha512_block_data_order_avx2", NODE);
    let handler = javascript("handler", "/srv/app.js", 9);
    let hash = javascript("pbkdf2Sync", "node:internal/crypto/pbkdf2", 61);
    let mut cut = on_cpu(vec![block()], 60);
    cut.stack.truncated = Some("its unwind table".to_owned());
    let stacks = vec![cut, on_cpu(vec![block(), hash, handler, native("uv_run", NODE)], 30)];
    let node = Watched { exe: NODE, loop_kind: "libuv" };
    assert_eq!(id(node, stacks).as_deref(), Some("node-crypto"));
}

/// node's Sync calls, and what V8 does in its own code.
#[test]
fn node() {
    let node = Watched { exe: NODE, loop_kind: "libuv" };
    let stack = |mut inner: Vec<Frame>| {
        inner.push(javascript("handler", "/srv/app.js", 9));
        inner.push(javascript("emit", "node:events", 9));
        inner.push(native("uv_run", NODE));
        inner
    };
    let builtin = |function: &str, file: &str| vec![javascript(function, file, 1)];
    let computing = |inner| vec![on_cpu(stack(inner), 90)];
    let table = [
        (builtin("pbkdf2Sync", "node:internal/crypto/pbkdf2"), "node-crypto"),
        (builtin("readFileSync", "node:fs"), "node-file"),
        (builtin("execSync", "node:child_process"), "node-child"),
        (vec![native("v8::internal::Builtin_JsonParse(int)", NODE)], "node-json"),
        (vec![native("Builtins_RegExpPrototypeTest", NODE)], "node-regex"),
        (Vec::new(), "node-cpu"),
    ];
    for (inner, expected) in table {
        assert_eq!(id(node, computing(inner)).as_deref(), Some(expected));
    }
    // What a worker thread does holds up no event loop but its own, and is there already.
    let worker = Watched { exe: NODE, loop_kind: "worker_threads" };
    let regex = || vec![native("Builtins_RegExpPrototypeTest", NODE)];
    for (inner, expected) in [
        (regex(), "node-worker-regex"),
        (builtin("execSync", "node:child_process"), "node-worker"),
        (Vec::new(), "node-worker"),
    ] {
        let (id, text) = advice(worker, computing(inner)).unwrap();
        assert_eq!(id, expected);
        assert!(!text.contains("in a worker thread") && !text.contains("to a worker"), "{text}");
    }
    // The application's own function of such a name.
    assert_eq!(id(node, computing(builtin("execSync", "/srv/x.js"))).as_deref(), Some("node-cpu"));
}
