//! In a catalogue, each row of the advice table with a stack that gets it, and with one that comes near and must not.

use std::collections::BTreeSet;

use profiler_ebpf::turn::Turn;

use super::table::TABLE;
use super::tests::{
    ASYNCIO, FLOCK, FUTEX, LIB, NODE, PYTHON, READ, RECV, REDIS, SITE, SLEEP, WAIT4, WRITE,
    Watched, advice_on, blocked, endless, of, running, stall_of,
};
use crate::environment::{Growth, Quota};
use crate::frame::Frame;
use crate::report::sample::{
    self, blocked_in, in_short_waits, javascript, kernel, native, on_cpu, python,
};
use crate::turn::futex::FutexWaits;
use crate::turn::{Awaited, Companion, Holder, Lock, Sampled, Stall, ThreadState, Waited, Waker};

const CONNECT: i64 = 42;
const VFORK: i64 = 58;
const FSYNC: i64 = 74;
const STAT: i64 = 4;
const CRYPTO: &str = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";
const LIBJVM: &str = "/usr/lib/jvm/lib/server/libjvm.so";
const LIBRUBY: &str = "/usr/lib/x86_64-linux-gnu/libruby-3.1.so.3.1.2";
const SHOP: &str = "/srv/shop";
const IMPORTLIB: &str = "<frozen importlib._bootstrap>";

const EPOLL: Watched = Watched { exe: REDIS, loop_kind: "epoll" };
const NGINX: Watched = Watched { exe: "/usr/sbin/nginx", loop_kind: "epoll" };
const OWN: Watched = Watched { exe: SHOP, loop_kind: "epoll" };
const LIBUV: Watched = Watched { exe: NODE, loop_kind: "libuv" };
const WORKER: Watched = Watched { exe: NODE, loop_kind: "worker_threads" };
const JVM: Watched = Watched { exe: "/usr/lib/jvm/bin/java", loop_kind: "epoll" };
const RUBY: Watched = Watched { exe: "/usr/bin/ruby3.1", loop_kind: "poll" };
const TOKIO: Watched = Watched { exe: SHOP, loop_kind: "tokio" };

/// A row, what gets it, and what must not.
type Row = (&'static str, (Watched, Stall), (Watched, Stall));

fn lib(function: &str, file: &str) -> Vec<Frame> {
    vec![python(function, &format!("{LIB}/{file}"), 3)]
}

fn site(function: &str, file: &str) -> Vec<Frame> {
    vec![python(function, &format!("{SITE}/{file}"), 3)]
}

fn of_libc(function: &str) -> Vec<Frame> {
    vec![native(function, LIBC)]
}

/// Blocked in a call on this descriptor of the samples: 5 a pipe, 7 a connection, 9 a file.
fn waits(syscall: i64, fd: u64, inner: Vec<Frame>) -> Stall {
    stall_of(blocked(syscall, fd, inner))
}

/// A wait on a futex whose time ran out.
fn ran_out(inner: Vec<Frame>) -> Stall {
    let mut stall = waits(FUTEX, 0, inner);
    stall.stacks[0].awaited = Awaited::Futex;
    stall.waited = vec![Waited { lock: Lock::Futex(0), time_ns: 90 }];
    stall.futexes = FutexWaits { ran_out_ns: 90, timeouts_ns: vec![90], ..FutexWaits::default() };
    stall
}

fn runs(inner: Vec<Frame>) -> Stall {
    stall_of(running(inner))
}

/// The same in hundreds of short waits.
fn often(syscall: i64, fd: u64, inner: Vec<Frame>) -> Stall {
    let mut stacks = blocked(syscall, fd, inner);
    let many = in_short_waits(syscall, [fd, 0, 0, 0, 0, 0], 300);
    (stacks[0].waits, stacks[0].time_ns) = (many.waits, many.time_ns);
    stall_of(stacks)
}

/// Blocked for a disk.
fn at_disk(syscall: i64, fd: u64, inner: Vec<Frame>) -> Stall {
    let mut stacks = blocked(syscall, fd, inner);
    stacks[0].stack.kernel = vec![kernel("io_schedule"), kernel("folio_wait_bit_common")];
    stall_of(stacks)
}

/// A file that another process checks before it is read.
fn checked(inner: Vec<Frame>) -> Stall {
    let mut stacks = blocked(READ, 9, inner);
    stacks[0].stack.kernel = vec![kernel("fanotify_handle_event"), kernel("vfs_read")];
    stall_of(stacks)
}

fn in_kernel(functions: &[&str], inner: Vec<Frame>) -> Stall {
    let mut stacks = running(inner);
    stacks[0].state = ThreadState::RunningKernel;
    stacks[0].stack.kernel = functions.iter().map(|name| kernel(name)).collect();
    Stall { turn: Turn { running_ns: 90, ..Turn::default() }, stacks, ..sample::stall() }
}

/// On the CPU inside of this system call.
fn busy_in(syscall: i64) -> Stall {
    let mut stall = in_kernel(&["vfs_statx", "do_syscall_64"], Vec::new());
    stall.stacks[0].registers.syscall = syscall;
    stall
}

fn collecting(mut stall: Stall) -> Stall {
    stall.ticks_collecting = 1;
    stall
}

fn without_cpu() -> Stall {
    let turn = Turn { runnable_ns: 90, ..Turn::default() };
    Stall { turn, stacks: Vec::new(), ..sample::stall() }
}

fn out_of_quota() -> Stall {
    let mut stall = without_cpu();
    let throttled = Growth { at_least_ns: 90, at_most_ns: 90, over_ns: 90 };
    let (cgroup, quota_us, period_us) = ("/shop".to_owned(), 20_000, 100_000);
    stall.environment.quota = Some(Quota { cgroup, quota_us, period_us, throttled });
    stall
}

fn stopped(function: &str) -> Stall {
    let state = ThreadState::Stopped;
    let mut seen = Sampled { state, ..blocked_in(-1, [0; 6], 90) };
    seen.stack.kernel = vec![kernel(function)];
    let turn = Turn { stopped_ns: 90, ..Turn::default() };
    Stall { turn, stacks: vec![seen], ..sample::stall() }
}

/// A loop that waits for the GIL, and who has it.
fn for_gil(holder: Sampled) -> Stall {
    let mut waiting = blocked(FUTEX, 0, Vec::new());
    waiting[0].awaited = Awaited::Gil;
    let holder = Holder { tid: 77, name: None, held: Lock::Gil, seen: holder, collecting: 0 };
    Stall { holders: vec![holder], ..stall_of(waiting) }
}

fn holder_runs(inner: Vec<Frame>) -> Stall {
    for_gil(on_cpu(inner, 90))
}

fn holder_waits(syscall: i64, inner: Vec<Frame>) -> Stall {
    let mut seen = blocked_in(syscall, [7, 0, 0, 0, 0, 0], 90);
    seen.stack.frames = inner;
    for_gil(seen)
}

fn of_redis(names: &[&str]) -> Stall {
    let frames = names.iter().chain(&["call", "processCommand", "aeMain"]);
    stall_of(vec![on_cpu(frames.map(|name| native(name, REDIS)).collect(), 90)])
}

/// In node's loop, called by the application.
fn in_node(mut inner: Vec<Frame>) -> Vec<Frame> {
    inner.push(javascript("handler", "/srv/app.js", 9));
    inner.push(javascript("emit", "node:events", 9));
    inner.push(native("uv_run", NODE));
    inner
}

fn node_runs(inner: Vec<Frame>) -> Stall {
    stall_of(vec![on_cpu(in_node(inner), 90)])
}

fn node_waits(syscall: i64, inner: Vec<Frame>) -> Stall {
    let mut seen = blocked_in(syscall, [7, 0, 0, 0, 0, 0], 90);
    seen.stack.frames = in_node(inner);
    stall_of(vec![seen])
}

fn script(function: &str, file: &str) -> Vec<Frame> {
    vec![javascript(function, file, 3)]
}

/// Six callbacks, each for a while.
fn saturated(root: impl Fn(String) -> Frame, outer: &Frame) -> Stall {
    let stack = |number| on_cpu(vec![root(format!("callback{number}")), outer.clone()], 15);
    stall_of((0..6).map(stack).collect())
}

fn in_task(inner: &str) -> Vec<Frame> {
    vec![
        native(inner, SHOP),
        native("shop::pay::{{closure}}", SHOP),
        native("tokio::runtime::task::raw::poll", SHOP),
    ]
}

fn task_waits(syscall: i64) -> Stall {
    let mut seen = blocked_in(syscall, [7, 0, 0, 0, 0, 0], 90);
    seen.stack.frames = in_task("std::thread::sleep");
    stall_of(vec![seen])
}

/// A call at which an open connection waits for ever.
fn forever(syscall: i64, inner: Vec<Frame>) -> Stall {
    let mut stacks = endless(syscall, 7);
    let own = stacks[0].stack.frames.split_off(0);
    stacks[0].stack.frames = [inner, own].concat();
    stall_of(stacks)
}

fn from_outside() -> Vec<Row> {
    let memory = |function: &str| in_kernel(&[function], Vec::new());
    let lock = in_kernel(
        &["rwsem_down_write_slowpath", "down_write_killable", "vm_mmap_pgoff"],
        Vec::new(),
    );
    vec![
        ("cpu-quota", (ASYNCIO, out_of_quota()), (ASYNCIO, without_cpu())),
        ("run-queue", (ASYNCIO, without_cpu()), (ASYNCIO, out_of_quota())),
        (
            "stopped-debugger",
            (ASYNCIO, stopped("ptrace_stop")),
            (ASYNCIO, stopped("do_signal_stop")),
        ),
        (
            "stopped-freezer",
            (ASYNCIO, stopped("__refrigerator")),
            (ASYNCIO, stopped("ptrace_stop")),
        ),
        ("stopped", (ASYNCIO, stopped("do_signal_stop")), (ASYNCIO, stopped("__refrigerator"))),
        ("memory-swap", (ASYNCIO, memory("do_swap_page")), (ASYNCIO, memory("shrink_node"))),
        (
            "memory-migration",
            (ASYNCIO, memory("migration_entry_wait")),
            (ASYNCIO, memory("do_swap_page")),
        ),
        ("memory-compaction", (ASYNCIO, memory("compact_zone")), (ASYNCIO, memory("shrink_node"))),
        ("memory-mmap-lock", (ASYNCIO, lock), (ASYNCIO, memory("compact_zone"))),
        ("memory", (ASYNCIO, memory("shrink_node")), (ASYNCIO, memory("compact_zone"))),
    ]
}

fn of_servers() -> Vec<Row> {
    let redis = |names: &[&str]| (EPOLL, of_redis(names));
    // The same names in another program mean nothing.
    let other = |names: &[&str]| (OWN, of_redis(names));
    let file = |program: Watched| {
        let mut seen = blocked_in(READ, [9, 0, 0, 0, 0, 0], 90);
        seen.stack.frames = vec![native("ngx_read_file", "/usr/sbin/nginx")];
        (program, stall_of(vec![seen]))
    };
    vec![
        ("redis-keys", redis(&["stringmatchlen", "keysCommand"]), other(&["keysCommand"])),
        ("redis-script", redis(&["luaV_execute", "luaCallFunction"]), redis(&["keysCommand"])),
        ("redis-flush", redis(&["dictClear", "flushallCommand"]), redis(&["dictClear"])),
        ("redis-delete", redis(&["dictRelease", "delGenericCommand"]), redis(&["dictRelease"])),
        ("redis-sort", redis(&["sortCommandGeneric"]), other(&["sortCommandGeneric"])),
        ("redis-large-reply", redis(&["lrangeCommand"]), redis(&["sortCommandGeneric"])),
        ("redis-fork", redis(&["redisFork", "rdbSaveBackground"]), redis(&["rdbSave"])),
        ("redis-append-only-file", redis(&["flushAppendOnlyFile"]), redis(&["lrangeCommand"])),
        ("redis-command", redis(&["someCommand"]), other(&["someCommand"])),
        ("nginx-disk", file(NGINX), file(OWN)),
    ]
}

fn of_anybody() -> Vec<Row> {
    let import = || lib("<module>", "decimal.py");
    let imports = || [import(), vec![python("_find_and_load", IMPORTLIB, 1176)]].concat();
    let import_lock = vec![python("_ModuleLock.acquire", IMPORTLIB, 90)];
    let fork = || [of_libc("__vfork"), lib("Popen._execute_child", "subprocess.py")].concat();
    let asyncio = lib("create_subprocess_exec", "asyncio/subprocess.py");
    vec![
        ("python-import", (ASYNCIO, runs(imports())), (ASYNCIO, runs(import()))),
        (
            "python-import-lock",
            (ASYNCIO, waits(FUTEX, 0, import_lock)),
            (ASYNCIO, waits(FUTEX, 0, lib("Lock.acquire", "threading.py"))),
        ),
        (
            "program-start",
            (ASYNCIO, waits(VFORK, 0, [fork(), asyncio].concat())),
            (ASYNCIO, waits(WAIT4, 77, lib("Popen._wait", "subprocess.py"))),
        ),
        (
            "python-access-check",
            (ASYNCIO, checked(Vec::new())),
            (ASYNCIO, waits(READ, 9, Vec::new())),
        ),
        ("access-check", (LIBUV, checked(Vec::new())), (LIBUV, waits(READ, 9, Vec::new()))),
        (
            "python-logging",
            (ASYNCIO, waits(WRITE, 5, lib("StreamHandler.emit", "logging/__init__.py"))),
            (ASYNCIO, runs(lib("StreamHandler.emit", "logging/__init__.py"))),
        ),
        (
            "pipe-full",
            (ASYNCIO, waits(WRITE, 5, Vec::new())),
            (ASYNCIO, waits(READ, 5, Vec::new())),
        ),
    ]
}

fn of_workers() -> Vec<Row> {
    let pool = of("thread-pool");
    let regex = || lib("match", "re/__init__.py");
    let child = || lib("Popen._wait", "subprocess.py");
    vec![
        (
            "worker-file-lock",
            (pool, waits(FLOCK, 9, Vec::new())),
            (ASYNCIO, waits(FLOCK, 9, Vec::new())),
        ),
        (
            "worker-subprocess",
            (pool, waits(WAIT4, 77, child())),
            (ASYNCIO, waits(WAIT4, 77, child())),
        ),
        (
            "worker-no-timeout",
            (pool, forever(RECV, Vec::new())),
            (pool, waits(RECV, 7, Vec::new())),
        ),
        (
            "worker-blocked",
            (pool, waits(SLEEP, 0, Vec::new())),
            (ASYNCIO, waits(SLEEP, 0, Vec::new())),
        ),
        ("worker-regex", (pool, runs(regex())), (ASYNCIO, runs(regex()))),
        ("worker-cpu", (pool, runs(Vec::new())), (pool, runs(regex()))),
    ]
}

fn of_the_gil() -> Vec<Row> {
    let app = || vec![python("report", "/srv/app.py", 9)];
    let regex = [lib("sub", "re/__init__.py"), app()].concat();
    let collector = [vec![native("gc_collect_main", PYTHON)], app()].concat();
    let fork = [of_libc("__vfork"), lib("Popen._execute_child", "subprocess.py"), app()].concat();
    let device = || [of_libc("recv"), vec![native("poll_device", "/v/driver.so")], app()].concat();
    let nobody = Stall { holders: Vec::new(), ..holder_runs(app()) };
    vec![
        ("python-gil-regex", (ASYNCIO, holder_runs(regex)), (ASYNCIO, holder_runs(app()))),
        (
            "python-gil-program-start",
            (ASYNCIO, holder_waits(VFORK, fork)),
            (ASYNCIO, holder_waits(RECV, device())),
        ),
        ("python-gil-collecting", (ASYNCIO, holder_runs(collector)), (ASYNCIO, holder_runs(app()))),
        (
            "python-gil-blocked",
            (ASYNCIO, holder_waits(RECV, device())),
            (ASYNCIO, holder_runs(device())),
        ),
        ("python-gil", (ASYNCIO, holder_runs(app())), (ASYNCIO, holder_waits(RECV, device()))),
        ("python-gil-unseen", (ASYNCIO, nobody), (ASYNCIO, holder_runs(app()))),
    ]
}

/// The same of Ruby's.
fn for_gvl(mut stall: Stall) -> Stall {
    stall.stacks[0].awaited = Awaited::Gvl;
    for holder in &mut stall.holders {
        holder.held = Lock::Gvl;
    }
    stall
}

/// A loop of a JVM's that waits for a safepoint, and what the thread that asked for it was in.
fn at_safepoint(inner: &str) -> Stall {
    let waits = |names: &[&str]| {
        let mut seen = blocked_in(FUTEX, [7, 128, 0, 0, 0, 0], 90);
        seen.awaited = Awaited::Futex;
        seen.stack.frames = names.iter().map(|name| native(name, LIBJVM)).collect();
        seen
    };
    let mut stall = stall_of(vec![waits(&["SafepointSynchronize::block"])]);
    let seen = waits(&["VMThread::execute", inner]);
    let asks = Companion { tid: 77, name: None, seen, is_parked: false, waits_for: None };
    stall.company.threads.push(asks);
    stall
}

/// A loop of a CPython without its lock that waits until all threads may go on, and where the thread was that let them.
fn stopped_by(frames: Vec<Frame>) -> Stall {
    let mut stall = at_safepoint("");
    let names = ["_PyParkingLot_Park", "_PyThreadState_Attach"];
    stall.stacks[0].stack.frames = names.iter().map(|name| native(name, PYTHON)).collect();
    stall.company.threads.clear();
    let mut seen = on_cpu(Vec::new(), 90);
    seen.stack.frames = frames;
    let waker = Waker { tid: 77, awaited: Awaited::Futex, seen: Some(seen), ..Waker::default() };
    stall.wakers = vec![waker];
    stall
}

fn of_pauses() -> Vec<Row> {
    let collector = || vec![native("gc_collect_main", PYTHON)];
    let forks = || vec![native("os_fork", PYTHON)];
    let sort = || vec![native("rb_ary_sort", LIBRUBY), native("rb_vm_exec", LIBRUBY)];
    let query = || vec![native("query", "/var/gems/db.so"), native("rb_vm_exec", LIBRUBY)];
    let computes = || for_gvl(holder_runs(sort()));
    let collects = || at_safepoint("GenCollectedHeap::collect");
    vec![
        ("jvm-collecting", (JVM, collects()), (JVM, at_safepoint("HeapDumper::dump"))),
        ("jvm-safepoint", (JVM, at_safepoint("HeapDumper::dump")), (JVM, collects())),
        (
            "python-stopped-collecting",
            (ASYNCIO, stopped_by(collector())),
            (ASYNCIO, stopped_by(forks())),
        ),
        ("python-stopped", (ASYNCIO, stopped_by(forks())), (ASYNCIO, stopped_by(collector()))),
        ("ruby-gvl-blocked", (RUBY, for_gvl(holder_waits(RECV, query()))), (RUBY, computes())),
        ("ruby-gvl", (RUBY, computes()), (ASYNCIO, holder_runs(sort()))),
    ]
}

fn of_clients() -> Vec<Row> {
    let recv = |inner| (ASYNCIO, waits(RECV, 7, inner));
    let many = |inner| (ASYNCIO, often(RECV, 7, inner));
    let sqlite = || vec![native("sqlite3_step", "/usr/lib/libsqlite3.so.0")];
    let (psycopg, mysql) =
        (|| site("wait", "psycopg/waiting.py"), || site("read", "pymysql/connections.py"));
    let (oracle, mongo) =
        (|| site("execute", "oracledb/cursor.py"), || site("recv", "pymongo/network.py"));
    let (redis, requests) =
        (|| site("read", "redis/connection.py"), || site("send", "requests/sessions.py"));
    let (aws, kafka) =
        (|| site("send", "botocore/httpsession.py"), || site("poll", "kafka/client_async.py"));
    let mail = || lib("SMTP.getreply", "smtplib.py");
    let grpc = || site("_UnaryUnaryMultiCallable._blocking", "grpc/_channel.py");
    vec![
        ("python-resolve", recv(of_libc("getaddrinfo")), recv(Vec::new())),
        (
            "python-sqlite-commits",
            (ASYNCIO, {
                let mut stall = often(FSYNC, 9, sqlite());
                stall.stacks[0].stack.kernel = vec![kernel("io_schedule")];
                stall
            }),
            (ASYNCIO, at_disk(FSYNC, 9, sqlite())),
        ),
        (
            "python-sqlite",
            (ASYNCIO, at_disk(FSYNC, 9, sqlite())),
            (ASYNCIO, at_disk(FSYNC, 9, Vec::new())),
        ),
        ("python-queries", many(psycopg()), recv(psycopg())),
        ("python-postgres", recv(psycopg()), many(psycopg())),
        ("python-mysql", recv(mysql()), recv(psycopg())),
        ("python-database", recv(oracle()), recv(mysql())),
        ("python-mongo", recv(mongo()), recv(oracle())),
        ("python-redis-commands", many(redis()), recv(redis())),
        ("python-redis", recv(redis()), (ASYNCIO, runs(redis()))),
        ("python-aws", recv(aws()), (ASYNCIO, runs(aws()))),
        ("python-kafka", recv(kafka()), (ASYNCIO, runs(kafka()))),
        ("python-http-requests", many(requests()), recv(requests())),
        ("python-http-no-timeout", (ASYNCIO, forever(RECV, requests())), recv(requests())),
        ("python-http", recv(requests()), (ASYNCIO, runs(requests()))),
        ("python-grpc", recv(grpc()), (ASYNCIO, runs(grpc()))),
        ("python-grpc-thread", (of("trio"), waits(RECV, 7, grpc())), recv(grpc())),
        ("python-mail", recv(mail()), (ASYNCIO, runs(mail()))),
        ("round-trips", many(Vec::new()), recv(Vec::new())),
        (
            "python-connect-no-timeout",
            (ASYNCIO, forever(CONNECT, Vec::new())),
            (ASYNCIO, waits(CONNECT, 7, Vec::new())),
        ),
        ("python-socket-no-timeout", (ASYNCIO, forever(RECV, Vec::new())), recv(Vec::new())),
        ("python-blocking", recv(Vec::new()), (of("thread-pool"), waits(RECV, 7, Vec::new()))),
    ]
}

fn of_blocking_calls() -> Vec<Row> {
    let lock = |inner| (ASYNCIO, waits(FUTEX, 0, inner));
    let child = || lib("Popen._wait", "subprocess.py");
    let transport = || lib("_UnixSubprocessTransport._start", "asyncio/base_subprocess.py");
    let watcher = lib("_do_waitpid", "asyncio/unix_events.py");
    let event = || lib("Event.wait", "threading.py");
    let start = [event(), lib("Thread.start", "threading.py")].concat();
    let unnamed = |syscall| (ASYNCIO, waits(syscall, 0, Vec::new()));
    let disk_read = || {
        let mut stall = at_disk(17, 70, Vec::new());
        stall.stacks[0].registers.syscall = 17;
        stall
    };
    vec![
        (
            "python-subprocess",
            (ASYNCIO, waits(WAIT4, 77, child())),
            (ASYNCIO, waits(WAIT4, 77, [child(), transport()].concat())),
        ),
        (
            "python-wait-child",
            (ASYNCIO, waits(WAIT4, 77, Vec::new())),
            (ASYNCIO, waits(WAIT4, 77, watcher)),
        ),
        (
            "python-timed-wait",
            (ASYNCIO, ran_out(Vec::new())),
            (ASYNCIO, waits(SLEEP, 0, Vec::new())),
        ),
        (
            "python-sleep",
            (ASYNCIO, waits(SLEEP, 0, Vec::new())),
            (of("thread-pool"), waits(SLEEP, 0, Vec::new())),
        ),
        (
            "python-future-result",
            lock(lib("Future.result", "concurrent/futures/_base.py")),
            lock(lib("Future.result", "asyncio/futures.py")),
        ),
        (
            "python-queue",
            lock(lib("Queue.get", "queue.py")),
            lock(lib("Queue.get", "asyncio/queues.py")),
        ),
        ("python-join", lock(lib("Thread.join", "threading.py")), lock(event())),
        ("python-thread-start", lock(start), lock(event())),
        ("python-event", lock(event()), lock(lib("Thread.join", "threading.py"))),
        (
            "python-object",
            lock(vec![native("_PyCriticalSection_BeginSlow", PYTHON)]),
            lock(Vec::new()),
        ),
        ("python-lock", lock(Vec::new()), lock(event())),
        (
            "python-file-lock",
            (ASYNCIO, waits(FLOCK, 9, Vec::new())),
            (of("uwsgi"), waits(FLOCK, 9, Vec::new())),
        ),
        (
            "python-file-syncs",
            (ASYNCIO, often(FSYNC, 9, Vec::new())),
            (ASYNCIO, waits(FSYNC, 9, Vec::new())),
        ),
        (
            "python-file",
            (ASYNCIO, waits(READ, 9, Vec::new())),
            (ASYNCIO, waits(READ, 7, Vec::new())),
        ),
        ("python-file-call", unnamed(STAT), unnamed(RECV)),
        ("python-disk", (ASYNCIO, disk_read()), (ASYNCIO, waits(17, 70, Vec::new()))),
    ]
}

fn of_computing() -> Vec<Row> {
    let cpu = |inner| (ASYNCIO, runs(inner));
    let hash = || vec![native("PKCS5_PBKDF2_HMAC", CRYPTO)];
    let run = python("Handle._run", &format!("{LIB}/asyncio/events.py"), 80);
    let many = saturated(|name| python(&name, "/srv/app.py", 3), &run);
    let faults = in_kernel(&["clear_huge_page", "asm_exc_page_fault"], Vec::new());
    let own = || vec![python("dumps", "/srv/json_tools/own.py", 3)];
    vec![
        ("python-garbage-collection", (ASYNCIO, collecting(runs(Vec::new()))), cpu(Vec::new())),
        ("python-saturated", (ASYNCIO, many), cpu(Vec::new())),
        (
            "python-regex",
            cpu(lib("match", "re/__init__.py")),
            cpu(vec![python("match", "/srv/re_tools.py", 1)]),
        ),
        ("python-password-hash", cpu(hash()), (of("trio"), runs(hash()))),
        ("python-password-hash-thread", (of("trio"), runs(hash())), cpu(hash())),
        (
            "python-compression",
            cpu(vec![native("deflate_slow", "/usr/lib/libz.so.1")]),
            cpu(hash()),
        ),
        ("python-serialisation", cpu(lib("dumps", "json/__init__.py")), cpu(own())),
        ("python-page-faults", (ASYNCIO, faults), cpu(Vec::new())),
        ("python-numeric", cpu(site("dot", "numpy/core/multiarray.py")), cpu(own())),
        ("python-template", cpu(site("render", "jinja2/environment.py")), cpu(own())),
        ("python-file-busy", (ASYNCIO, busy_in(STAT)), cpu(Vec::new())),
        ("python-cpu", cpu(Vec::new()), (OWN, runs_native())),
    ]
}

fn runs_native() -> Stall {
    stall_of(vec![on_cpu(vec![native("parse", SHOP)], 90)])
}

fn of_node() -> Vec<Row> {
    let cpu = |inner| (LIBUV, node_runs(inner));
    let own = |function: &str| (LIBUV, node_runs(script(function, "/srv/tools.js")));
    let regex = || vec![native("Builtins_RegExpPrototypeTest", NODE)];
    let wait = || vec![native("v8::internal::Builtin_AtomicsWait(int)", NODE)];
    let loop_frame = native("uv_run", NODE);
    let many = saturated(|name| javascript(&name, "/srv/app.js", 3), &loop_frame);
    vec![
        (
            "node-child",
            (LIBUV, node_waits(281, script("execSync", "node:child_process"))),
            own("execSync"),
        ),
        (
            "node-crypto",
            cpu(script("pbkdf2Sync", "node:internal/crypto/pbkdf2")),
            own("pbkdf2Sync"),
        ),
        ("node-zlib", cpu(script("gzipSync", "node:zlib")), own("gzipSync")),
        ("node-file", cpu(script("readFileSync", "node:fs")), own("readFileSync")),
        (
            "node-require",
            cpu(script("Module._load", "node:internal/modules/cjs/loader")),
            own("Module._load"),
        ),
        (
            "node-garbage-collection",
            (LIBUV, collecting(node_runs(Vec::new()))),
            (WORKER, collecting(node_runs(Vec::new()))),
        ),
        ("node-regex", cpu(regex()), (WORKER, node_runs(regex()))),
        (
            "node-json",
            cpu(vec![native("v8::internal::Builtin_JsonParse(int)", NODE)]),
            cpu(regex()),
        ),
        (
            "node-atomics",
            (LIBUV, node_waits(FUTEX, wait())),
            (LIBUV, node_waits(FUTEX, Vec::new())),
        ),
        ("node-saturated", (LIBUV, many), cpu(Vec::new())),
        ("node-cpu", cpu(Vec::new()), (WORKER, node_runs(Vec::new()))),
        ("node-worker-regex", (WORKER, node_runs(regex())), cpu(regex())),
        (
            "node-worker-garbage-collection",
            (WORKER, collecting(node_runs(Vec::new()))),
            (LIBUV, collecting(node_runs(Vec::new()))),
        ),
        ("node-worker", (WORKER, node_runs(Vec::new())), cpu(Vec::new())),
    ]
}

fn of_tokio() -> Vec<Row> {
    let cpu = || stall_of(vec![on_cpu(in_task("shop::rank"), 90)]);
    vec![
        ("tokio-sleep", (TOKIO, task_waits(SLEEP)), (TOKIO, task_waits(RECV))),
        ("tokio-lock", (TOKIO, task_waits(FUTEX)), (TOKIO, task_waits(SLEEP))),
        ("tokio-blocking", (TOKIO, task_waits(RECV)), (TOKIO, task_waits(FUTEX))),
        ("tokio-cpu", (TOKIO, cpu()), (OWN, cpu())),
    ]
}

/// No row without both, and each of them right.
#[test]
fn each_row_has_two_stacks() {
    let groups = [
        from_outside,
        of_servers,
        of_anybody,
        of_workers,
        of_pauses,
        of_the_gil,
        of_clients,
        of_blocking_calls,
        of_computing,
        of_node,
        of_tokio,
    ];
    let rows: Vec<Row> = groups.iter().flat_map(|group| group()).collect();
    for (row, (watched, stall), (other, near)) in &rows {
        let id = |watched: Watched, stall| advice_on(watched, stall).map(|(id, _)| id);
        assert_eq!(id(*watched, stall).as_deref(), Some(*row), "must get it");
        assert_ne!(id(*other, near).as_deref(), Some(*row), "must not get it");
    }
    let tried: BTreeSet<&str> = rows.iter().map(|(row, ..)| *row).collect();
    let untried: Vec<&str> =
        TABLE.rules.iter().map(|rule| rule.id.as_str()).filter(|id| !tried.contains(id)).collect();
    assert!(untried.is_empty(), "{untried:?}");
}
