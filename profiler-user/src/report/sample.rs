//! Made-up stalls, frames and sessions that the tests of reports and sinks start from.

use std::collections::BTreeMap;

use profiler_ebpf::histogram::Histogram;
use profiler_ebpf::loop_counters::Accepts;
use profiler_ebpf::record::Registers;
use profiler_ebpf::turn::{Turn, wait};
use zerocopy::FromZeros;

use super::advice::Peers;
use super::facts::{Context, Libc, ProcessFacts, RuntimeFacts, SessionFacts, ThreadFacts};
use super::group::Tally;
use super::schema::session::{
    Configuration, EndReason, ReportedHook, ReportedWaitHooks, StackCounts,
};
use super::stats::{Measured, StatsContext};
use super::{Finish, Report, Start};
use crate::call::{Call, Descriptor, Kind, Peer, Timeout};
use crate::clock::WallAnchor;
use crate::environment::{Cpus, Environment, Growth};
use crate::frame::{Counts, Frame, Language, Stack};
use crate::gap::Gap;
use crate::interval::{Acceptor, LoopInterval, TimeInTurns};
use crate::turn::contention::Contention;
use crate::turn::futex::FutexWaits;
use crate::turn::{Awaited, Calls, Company, End, Moment, Sampled, Stall, StandsFor, ThreadState};

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

pub fn native(function: &str, module: &str) -> Frame {
    Frame {
        function: Some(function.into()),
        file: None,
        line: None,
        module: Some(module.into()),
        language: Language::Native,
        inlined: false,
        address: Some(0x7f00_0000_1234),
        module_offset: Some(0x1234),
    }
}

pub fn kernel(function: &str) -> Frame {
    Frame { language: Language::Kernel, module_offset: None, ..native(function, "[kernel]") }
}

pub fn python(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.into()),
        file: Some(file.into()),
        line: Some(line),
        module: None,
        language: Language::Python,
        inlined: false,
        address: None,
        module_offset: None,
    }
}

pub fn javascript(function: &str, file: &str, line: u32) -> Frame {
    Frame { language: Language::JavaScript, ..python(function, file, line) }
}

/// A stack that ticks found running in user code.
pub fn on_cpu(frames: Vec<Frame>, time_ns: u64) -> Sampled {
    Sampled {
        stack: Stack { frames, ..Stack::default() },
        state: ThreadState::RunningUser,
        samples: 1,
        time_ns,
        waits: StandsFor::default(),
        registers: Registers { syscall: -1, ..Registers::default() },
        awaited: Awaited::Syscall,
        call: None,
        task_state: 0,
        shares: Vec::new(),
    }
}

/// A stack that was taken when the thread blocked in a system call.
pub fn blocked_in(syscall: i64, args: [u64; 6], time_ns: u64) -> Sampled {
    Sampled {
        state: ThreadState::Blocked,
        waits: StandsFor::ITSELF,
        registers: Registers { syscall, args, ..Registers::default() },
        ..on_cpu(Vec::new(), time_ns)
    }
}

/// The same, taken in one of many waits of 0.3 ms that it stands for.
pub fn in_short_waits(syscall: i64, args: [u64; 6], waits: u64) -> Sampled {
    let (time_ns, longest_ns) = (waits * 300_000, 300_000);
    let (others_ns, thousandths) = (time_ns - longest_ns, waits * 1000);
    let stands_for = StandsFor { others_ns, longest_ns, counted: waits, thousandths };
    Sampled { waits: stands_for, ..blocked_in(syscall, args, time_ns) }
}

/// A payment service that waits five seconds for a slow peer.
pub fn stall() -> Stall {
    let lib = "/usr/lib/python3.11";
    let receiving = Sampled {
        stack: Stack {
            frames: vec![
                native("__libc_recv", LIBC),
                python("SocketIO.readinto", &format!("{lib}/socket.py"), 706),
                python("charge_payment", "/srv/pay/app.py", 31),
                python("Handle._run", &format!("{lib}/asyncio/events.py"), 80),
            ],
            kernel: vec![kernel("__schedule"), kernel("tcp_recvmsg")],
            ..Stack::default()
        },
        ..blocked_in(45, [7, 0x7ffe_0000_1000, 8192, 0, 0, 0], 5_000_000_000)
    };
    let parsing = Sampled {
        stack: Stack {
            frames: vec![python("parse", "/srv/pay/app.py", 17)],
            truncated: Some("the copy of the stack ends here".to_owned()),
            gaps: vec![Gap::new("native frames", "libfoo.so has no unwind table")],
            ..Stack::default()
        },
        ..on_cpu(Vec::new(), 12_000_000)
    };
    Stall {
        tid: 4242,
        turn: Turn {
            start_ns: 6_000_123_456,
            running_ns: 12_000_001,
            blocked_ns: 5_000_000_000,
            runnable_ns: 345,
            stopped_ns: 0,
            voluntary: 2,
            preempted: 1,
            flags: 0,
            nested_waits: 0,
            preempted_ns: 300,
            minor_faults: 0,
            major_faults: 0,
        },
        end: End::Seen,
        now: None,
        ticks_user: 2,
        ticks_kernel: 1,
        ticks_collecting: 0,
        calls: Calls::default(),
        stacks: vec![receiving, parsing],
        holders: Vec::new(),
        waited: Vec::new(),
        owner: None,
        futexes: FutexWaits::default(),
        company: Company::default(),
        wakers: Vec::new(),
        contention: Contention::default(),
        others: Vec::new(),
        away: Vec::new(),
        environment: environment(),
        ready_events: Some(17),
        queues: Vec::new(),
        gaps: Vec::new(),
    }
}

/// A machine of two CPUs, without a hypervisor or a quota.
fn environment() -> Environment {
    let cpus = Some(Cpus { list: "0-1".to_owned(), allowed: 2, online: 2 });
    Environment { cpus, stolen: Some(Growth::default()), ..Environment::default() }
}

/// The same stall, whose call was looked at while it lasted.
pub fn looked_at() -> Stall {
    let mut stall = stall();
    let process = Peer { pid: 77, name: Some("bank".to_owned()), command: None };
    let descriptor = Descriptor {
        local: Some("127.0.0.1:50000".to_owned()),
        peer: Some("127.0.0.1:8081".to_owned()),
        state: Some("established"),
        process: Some(process),
        ..Descriptor::new(7, Kind::Socket, "tcp 127.0.0.1:8081")
    };
    let (descriptor, timeout) = (Some(descriptor), Some(Timeout::Ns(5_000_000_000)));
    let call = Call { is_seen: true, descriptor, timeout, ..Call::default() };
    if let Some(receiving) = stall.stacks.first_mut() {
        receiving.call = Some(Box::new(call));
    }
    stall
}

/// The same stall 103 ms after its beginning.
pub fn open_stall() -> Stall {
    let mut stall = stall();
    stall.turn.blocked_ns = 91_000_000;
    stall.end = End::NotYet;
    stall.now = Some(ThreadState::Blocked);
    stall.ready_events = None;
    if let Some(receiving) = stall.stacks.first_mut() {
        receiving.time_ns = 91_000_000;
    }
    stall
}

pub fn session() -> SessionFacts {
    SessionFacts {
        id: "s1".to_owned(),
        host: "web-3".to_owned(),
        process: ProcessFacts {
            pid: 4242,
            pid_in_container: Some(7),
            name: "uvicorn".to_owned(),
            libc: Libc::Shared,
            exe: Some("/usr/bin/python3.11".to_owned()),
            command: Some("python3 -m uvicorn app:app".to_owned()),
            start_time_wall_ns: Some(1_795_238_000_000_000_000),
            container_id: None,
            cgroup: Some("/system.slice/pay.service".to_owned()),
            service: Some("pay".to_owned()),
            labels: BTreeMap::from([("team".to_owned(), "billing".to_owned())]),
            unread: None,
        },
        runtime: Some(RuntimeFacts {
            name: "cpython".to_owned(),
            version: Some("3.11.2".to_owned()),
        }),
        anchor: WallAnchor {
            monotonic_ns: 5_000_000_000,
            wall_ns_since_epoch: 1_795_238_400_000_000_000,
        },
        gaps: Vec::new(),
    }
}

pub fn thread() -> ThreadFacts {
    ThreadFacts {
        is_worker: false,
        tid: 4242,
        tid_in_container: Some(7),
        name: Some("uvicorn".to_owned()),
        python_name: Some("MainThread".to_owned()),
        is_main: true,
        loop_kind: "asyncio".to_owned(),
    }
}

/// The line of a stall, made right after its account's last booking.
pub fn report(moment: Moment, stall: &Stall) -> Report {
    report_of(&session(), moment, stall)
}

/// The same of another process.
pub fn report_of(session: &SessionFacts, moment: Moment, stall: &Stall) -> Report {
    let descriptors = BTreeMap::from([(7, "tcp 127.0.0.1:8081".to_owned())]);
    let context = Context {
        session,
        now_ns: stall.turn.start_ns + stall.turn.booked_ns(),
        thread: &thread(),
        threshold_ns: 100_000_000,
        error_threshold_ns: 1_000_000_000,
        descriptors: &descriptors,
        losses: &[("captures", 3), ("switches", 0)],
        peers: &Peers::default(),
        gaps: &[],
    };
    Report::stall(moment, stall, &context)
}

/// The first line of a session, with a probe of each fate.
pub fn session_start() -> Report {
    let probe = |name: &str, hook: &str, attached, reason: Option<&str>| ReportedHook {
        name: name.to_owned(),
        hook: hook.to_owned(),
        attached,
        reason: reason.map(str::to_owned),
    };
    let refused = "fentry is refused: not permitted";
    let absent = "the kernel has no such system call";
    let start = Start {
        gaps: Vec::new(),
        version: "0.1.0".to_owned(),
        kernel: "6.1.0-49-amd64".to_owned(),
        wait_hooks: ReportedWaitHooks::Mixed,
        probes: vec![
            probe("epoll_wait", "fentry", true, None),
            probe("poll", "tracepoint", true, Some(refused)),
            probe("io_uring_enter", "fentry", false, Some(absent)),
        ],
        configuration: Configuration {
            threshold_ns: 100_000_000,
            error_threshold_ns: 1_000_000_000,
            duration_limit_ns: None,
            stats_interval_ns: None,
            sample_frequency_hz: 99,
            line_limit_bytes: Some(8000),
            stacks: StackCounts::App,
        },
    };
    Report::session_start(&session(), 5_000_000_000, start)
}

/// A loop that has done nothing in an interval.
pub fn idle_loop() -> LoopInterval {
    LoopInterval {
        tid: 4242,
        home_kind: wait::EPOLL,
        time: TimeInTurns::default(),
        waits: 0,
        ready_events: 0,
        most_ready: 0,
        empty_wakeups: 0,
        turns: Histogram::new_zeroed(),
        delays: Histogram::new_zeroed(),
    }
}

/// A loop with a thousand turns of 1.5 ms, but for one of 9 ms.
pub fn busy_loop() -> LoopInterval {
    let mut busy = idle_loop();
    (0..999).for_each(|_| busy.turns.add(1_500_000, 0));
    busy.turns.add(9_000_000, 0);
    busy.delays.add(50_000, 0);
    busy.delays.add(200_000, 1);
    let time = TimeInTurns {
        running_ns: 1_200_000_000,
        blocked_ns: 200_000_000,
        runnable_ns: 100_000_000,
        stopped_ns: 0,
    };
    LoopInterval {
        time,
        waits: 1000,
        ready_events: 1250,
        most_ready: 12,
        empty_wakeups: 40,
        ..busy
    }
}

/// The statistics of ten seconds in which these loops have stalled once each, and two workers have
/// accepted connections.
pub fn stats_of(loops: &[LoopInterval]) -> Report {
    let acceptor = |pid, accepted, would_block| Acceptor {
        pid,
        name: "uvicorn".to_owned(),
        accepts: Accepts { accepted, would_block, failed: 0 },
    };
    let measured: Vec<Measured<'_>> =
        loops.iter().map(|interval| Measured { thread: thread(), interval, stalls: 1 }).collect();
    let context = StatsContext {
        session: &session(),
        now_ns: 15_000_000_000,
        duration_ns: 10_000_000_000,
        accepts: &[acceptor(4242, 19, 2), acceptor(4243, 1, 7)],
        losses: &[("captures", 3), ("switches", 0)],
        gaps: &[],
    };
    Report::stats(&measured, &context)
}

/// The same of a loop that is busy.
pub fn stats() -> Report {
    stats_of(&[busy_loop()])
}

/// The last line of a session that saw the one stall.
pub fn session_end() -> Report {
    let mut tally = Tally::default();
    tally.observe(&report(Moment::End, &stall()));
    let finish = Finish {
        reason: EndReason::TargetExited,
        watched_ns: 30_000_000_000,
        turns: 1200,
        tally: &tally,
        frames: &Counts {
            stacks: 2,
            stacks_truncated: 1,
            registers: 2,
            unwind_table: 30,
            frame_pointer: 4,
            python: 20,
            nameless: 1,
            ..Counts::default()
        },
        losses: &[("captures", 3), ("switches", 0)],
    };
    Report::session_end(&session(), 35_000_000_000, &finish)
}
