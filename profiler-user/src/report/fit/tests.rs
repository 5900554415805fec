//! Lines of stalls, from usual ones to those of a target that does what it can to make them long.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Fitter, LEAST_LINE_LIMIT_BYTES, Limits};
use crate::hostile::{self, Random};
use crate::report::schema::call::{
    DescriptorKind, ReportedCall, ReportedDescriptor, ReportedPeer, ReportedWaker,
};
use crate::report::schema::session::{ReportedHook, StackCounts, TopCulprit};
use crate::report::schema::stall::{
    Callback, CauseKind, Link, Preemptor, ReportedAway, ReportedComponent, ReportedFrame,
    ReportedHolder, ReportedLanguage, ReportedStack, ReportedState, Role, StallLine, Thread,
    WaitingConnections,
};
use crate::report::schema::stats::Accepts;
use crate::report::schema::tests::{is_valid, schema};
use crate::report::{Report, sample};
use crate::turn::Moment;

const APP: &str = "/srv/shop/app.py";
const STARLETTE: &str = "/v/lib/python3.11/site-packages/starlette/routing.py";

fn line_of(report: &mut Report) -> &mut StallLine {
    match report {
        Report::StallOpen(line) | Report::StallUpdate(line) | Report::StallEnd(line) => line,
        other => unreachable!("{other:?}"),
    }
}

fn frame(function: &str, file: &str, line: u32, in_app: bool) -> ReportedFrame {
    ReportedFrame {
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        module: None,
        language: ReportedLanguage::Python,
        inlined: false,
        in_app,
        address: None,
        module_offset: None,
        left_out: 0,
    }
}

fn native(function: &str, module: &str) -> ReportedFrame {
    ReportedFrame {
        function: Some(function.to_owned()),
        file: None,
        line: None,
        module: Some(module.to_owned()),
        language: ReportedLanguage::Native,
        address: Some("0x7f00".to_owned()),
        module_offset: Some("0x1234".to_owned()),
        ..frame("", "", 0, false)
    }
}

/// As a service under a framework has them: each Python frame with the interpreter's around it, and many frames of
/// the framework between the loop and the handler.
fn service_stack(time_ns: u64, handlers: u32) -> ReportedStack {
    let mut frames = vec![native("__libc_recv", "/usr/lib/libc.so.6")];
    let mut python = |frame: ReportedFrame| {
        frames.extend([
            native("sock_call", "/usr/bin/python3.11"),
            native("_PyEval", "/usr/bin/python3.11"),
        ]);
        frames.push(frame);
    };
    python(frame("SocketIO.readinto", "/usr/lib/python3.11/socket.py", 706, false));
    python(frame("charge_payment", APP, 31, true));
    (0..handlers).for_each(|n| python(frame(&format!("handler_{n}"), APP, 40 + n, true)));
    (0..40).for_each(|n| python(frame(&format!("Middleware{n}.__call__"), STARLETTE, n, false)));
    python(frame("Handle._run", "/usr/lib/python3.11/asyncio/events.py", 80, false));
    frames.push(native("_start", "/usr/bin/python3.11"));
    ReportedStack {
        thread: Thread { tid: 4242, name: Some("uvicorn".to_owned()) },
        role: Role::Loop,
        state: ReportedState::Blocked,
        samples: 1,
        time_ns,
        kernel: (0..9).map(|n| native(&format!("tcp_{n}"), "[kernel]")).collect(),
        frames,
        truncated: None,
        left_out: 0,
    }
}

/// A stall of such a service, with these numbers of the application's frames above the culprit's on its stacks.
fn service(moment: Moment, stacks: &[u32]) -> Report {
    let stall = if moment == Moment::End { sample::stall() } else { sample::open_stall() };
    let mut report = sample::report(moment, &stall);
    let line = line_of(&mut report);
    line.culprit.as_mut().unwrap().file = Some(APP.to_owned());
    line.stacks = stacks.iter().map(|handlers| service_stack(1000, *handlers)).collect();
    report
}

fn json(line: &str) -> Value {
    let (text, rest) = line.split_once('\n').unwrap();
    assert_eq!(rest, "");
    serde_json::from_str(text).unwrap()
}

fn made(limits: Limits, report: &Report) -> (usize, Value) {
    let line = Fitter::new(limits).line(report).unwrap();
    (line.len(), json(&line))
}

fn limited(line_bytes: usize) -> Limits {
    Limits { line_bytes: Some(line_bytes), ..Limits::default() }
}

fn functions(stack: &Value) -> Vec<&str> {
    let frames = stack["frames"].as_array().unwrap().iter();
    frames.filter_map(|frame| frame["function"].as_str()).collect()
}

/// All frames of a stack are there, or counted where they are missing.
fn must_add_up(stack: &Value, whole: &ReportedStack) {
    let frames = stack["frames"].as_array().unwrap();
    let left_out = stack["left_out"].as_u64().unwrap_or(0) as usize;
    assert_eq!(frames.len() + left_out, whole.frames.len());
}

/// Of the culprit's stack the application's frames, what they called and the framework's are there, native callers are
/// counted; another stack is one frame. There are neither empty fields nor addresses.
#[test]
fn what_matters() {
    let mut report = service(Moment::End, &[2, 1]);
    line_of(&mut report).stacks.push(ReportedStack { role: Role::Other, ..service_stack(0, 0) });
    let (bytes, line) = made(Limits { line_bytes: None, ..Limits::default() }, &report);
    let stacks = &line_of(&mut report).stacks;
    let shown = &line["stacks"][0];
    let names = functions(shown);
    assert_eq!(
        names[..5],
        ["__libc_recv", "sock_call", "_PyEval", "SocketIO.readinto", "charge_payment"]
    );
    assert_eq!(names[5..8], ["handler_0", "handler_1", "Middleware0.__call__"]);
    assert_eq!(names.last(), Some(&"Handle._run"));
    assert_eq!(shown["frames"][4]["left_out"], 2);
    assert_eq!(shown["kernel"].as_array().unwrap().len(), 9);
    let text = shown.to_string();
    assert!(!text.contains("null") && !text.contains("false") && !text.contains("0x"), "{text}");
    for (number, place) in [(1, "charge_payment"), (2, "charge_payment")] {
        assert_eq!(functions(&line["stacks"][number]), [place]);
        must_add_up(&line["stacks"][number], &stacks[number]);
    }
    must_add_up(shown, &stacks[0]);
    let all: usize = stacks.iter().map(|stack| stack.kernel.len() + stack.frames.len()).sum();
    let told = line["stacks"].as_array().unwrap().iter().map(|stack| {
        stack["frames"].as_array().unwrap().len() + stack["kernel"].as_array().map_or(0, Vec::len)
    });
    assert_eq!(line["omitted"]["frames"], all - told.sum::<usize>());
    assert_eq!(line["omitted"].get("stacks"), None);
    assert!(bytes < serde_json::to_string(&report).unwrap().len() / 3);
}

/// Of many frames of the application the innermost and outermost eight are listed; without a name, code is told by its
/// place in the file.
#[test]
fn innermost_and_outermost() {
    let mut report = service(Moment::End, &[40]);
    let unnamed = ReportedFrame { function: None, ..native("", "/srv/ext.so") };
    line_of(&mut report).stacks[0].frames.insert(0, unnamed);
    let (_, line) = made(Limits { line_bytes: None, ..Limits::default() }, &report);
    let names = functions(&line["stacks"][0]);
    let own: Vec<&&str> = names.iter().filter(|name| name.starts_with("handler_")).collect();
    let expected: Vec<String> = (0..7).chain(32..40).map(|n| format!("handler_{n}")).collect();
    assert_eq!(own, expected.iter().collect::<Vec<_>>());
    let unnamed = &line["stacks"][0]["frames"][0];
    assert_eq!((&unnamed["module_offset"], unnamed.get("address")), (&"0x1234".into(), None));
}

/// Of what the culprit called, the nearest to it stays longest, and the interpreter's own code goes before all else.
#[test]
fn nearest_calls_stay() {
    let mut report = service(Moment::End, &[0]);
    let frames = &mut line_of(&mut report).stacks[0].frames;
    frames.truncate(7);
    let culprit = frames.pop().unwrap();
    let requests = "/v/lib/python3.11/site-packages/requests/sessions.py";
    frames.extend((0..60).map(|n| frame(&format!("call_{n}"), requests, n, false)));
    frames.push(culprit);
    let c = || native("sock_recv_guts", "/usr/lib/python3.11/lib-dynload/_socket.so");
    frames.splice(1..1, (0..5).map(|_| c()));
    let (_, line) = made(limited(6000), &report);
    let names = functions(&line["stacks"][0]);
    let of_c = names.iter().filter(|name| **name == "sock_recv_guts").count();
    assert_eq!((of_c, names.last()), (3, Some(&"charge_payment")), "{names:?}");
    let calls: Vec<&&str> = names.iter().filter(|name| name.starts_with("call_")).collect();
    let expected: Vec<String> = (60 - calls.len()..60).map(|n| format!("call_{n}")).collect();
    assert!((5..50).contains(&calls.len()), "{names:?}");
    assert_eq!(calls, expected.iter().collect::<Vec<_>>());
}

/// With less and less room what leads to the culprit goes first, then other stacks, then what it called; the
/// application's frames, the innermost ones, cause and culprit stay.
#[test]
fn what_goes_first() {
    let report = service(Moment::End, &[3; 12]);
    let mut fewer = (usize::MAX, usize::MAX, usize::MAX);
    for limit in (4500..16_000).rev().step_by(250) {
        let (bytes, line) = made(limited(limit), &report);
        assert!(bytes <= limit, "{bytes} of {limit}");
        let names = functions(&line["stacks"][0]);
        let of_framework = names.iter().filter(|name| name.starts_with("Middleware")).count();
        let (kernel, stacks) = (&line["stacks"][0]["kernel"], line["stacks"].as_array().unwrap());
        let kernel = kernel.as_array().unwrap().len();
        assert!(names.contains(&"__libc_recv") && names.contains(&"charge_payment"), "{names:?}");
        assert!(names.contains(&"handler_0") && names.contains(&"handler_2"), "{names:?}");
        assert_eq!(line["cause"]["detail"]["syscall"], "recvfrom");
        assert_eq!(line["culprit"]["function"], "charge_payment");
        assert!(stacks.len() >= 9 || of_framework == 0, "{limit}: {stacks:?}");
        assert!(kernel == 9 || stacks.len() == 1, "{limit}: {kernel} with {} stacks", stacks.len());
        let now = (of_framework, stacks.len(), kernel);
        assert!(
            now.0 <= fewer.0 && now.1 <= fewer.1 && now.2 <= fewer.2,
            "{limit}: {now:?}, {fewer:?}"
        );
        let missing = line["omitted"]["stacks"].as_u64().unwrap_or(0) as usize;
        assert_eq!(stacks.len() + missing, 12);
        fewer = now;
    }
    assert_eq!((fewer.0, fewer.1), (0, 1), "there was room for all to the end");
}

/// A stack that a line of the stall had is not told again while it lasts, but its end stands alone. A stack that was
/// told by one frame is told whole once it has the culprit. Other stalls do not count.
#[test]
fn told_once() {
    let mut fitter = Fitter::new(Limits::default());
    let mut stacks = |report: &Report| {
        let line = json(&fitter.line(report).unwrap());
        let told = line["omitted"]["stacks_told"].as_u64().unwrap_or(0);
        (line["stacks"].as_array().unwrap().len(), told)
    };
    let open = service(Moment::Open, &[2, 3]);
    assert_eq!(stacks(&open), (2, 0));
    let mut update = service(Moment::Update, &[2, 3, 4]);
    line_of(&mut update).stacks[0].time_ns += 1_000_000;
    assert_eq!(stacks(&update), (1, 2));
    assert_eq!(stacks(&update), (0, 3));
    assert_eq!(stacks(&service(Moment::Update, &[3, 2])), (1, 1));
    let mut other = service(Moment::Open, &[2, 3]);
    line_of(&mut other).stall.id.push('9');
    assert_eq!(stacks(&other), (2, 0));
    assert_eq!(stacks(&service(Moment::End, &[2, 3])), (2, 0));
    assert_eq!(stacks(&open), (2, 0), "the end is forgotten");
}

/// What a line had no room for is still to be told.
#[test]
fn told_later() {
    let mut fitter = Fitter::new(limited(4500));
    let open = service(Moment::Open, &[3, 4, 5, 6]);
    let line = json(&fitter.line(&open).unwrap());
    let first = line["stacks"].as_array().unwrap().len();
    assert!(first < 4 && line["omitted"].get("stacks_told").is_none(), "{line}");
    let line = json(&fitter.line(&open).unwrap());
    assert_eq!(line["omitted"]["stacks_told"], first);
    assert!(!line["stacks"].as_array().unwrap().is_empty());
}

/// All there is on each line where there is no limit, as much as by default where there is; or nothing.
#[test]
fn full_and_none() {
    let mut report = service(Moment::Open, &[2, 3]);
    let full = Limits { line_bytes: None, stacks: StackCounts::Full };
    let mut fitter = Fitter::new(full);
    for _ in 0..2 {
        let line = json(&fitter.line(&report).unwrap());
        assert_eq!(line, serde_json::to_value(&report).unwrap());
        assert_eq!(line["stacks"][0]["frames"][0]["address"], "0x7f00");
    }
    let (bytes, line) = made(Limits { stacks: StackCounts::Full, ..Limits::default() }, &report);
    assert!(bytes <= 8000 && line["omitted"]["frames"].as_u64() > Some(0), "{line}");
    let (_, line) = made(Limits { stacks: StackCounts::None, ..Limits::default() }, &report);
    assert_eq!(
        (&line["stacks"], &line["omitted"]["stacks"]),
        (&Value::Array(Vec::new()), &2.into())
    );
    line_of(&mut report).stacks.clear();
    let (_, line) = made(Limits::default(), &report);
    assert_eq!(line.get("omitted"), None);
}

/// A text with whatever characters, sometimes as long as a path may be.
fn text(random: &mut Random) -> String {
    const PIECES: [&str; 8] = ["a", "\"", "\\", "\u{1}", "\n", "ä", "\u{202e}", "𝒳"];
    let most = *random.pick(&[0, 8, 40, 400, 4096]);
    let length = if most == 0 { 0 } else { random.below(most) };
    let same = random.once_in(2).then(|| *random.pick(&PIECES));
    (0..length).map(|_| same.unwrap_or_else(|| *random.pick(&PIECES))).collect()
}

fn maybe(random: &mut Random) -> Option<String> {
    (!random.once_in(4)).then(|| text(random))
}

fn several<T>(random: &mut Random, most: usize, one: impl Fn(&mut Random) -> T) -> Vec<T> {
    let most = *random.pick(&[0, 2, most]);
    let count = random.below(most + 1);
    (0..count).map(|_| one(random)).collect()
}

fn any_frame(random: &mut Random) -> ReportedFrame {
    const LANGUAGES: [ReportedLanguage; 4] = [
        ReportedLanguage::Python,
        ReportedLanguage::Native,
        ReportedLanguage::JavaScript,
        ReportedLanguage::Kernel,
    ];
    ReportedFrame {
        function: maybe(random),
        file: maybe(random),
        line: random.once_in(2).then(|| random.next() as u32),
        module: maybe(random),
        language: *random.pick(&LANGUAGES),
        inlined: random.once_in(3),
        in_app: random.once_in(2),
        address: maybe(random),
        module_offset: maybe(random),
        left_out: 0,
    }
}

fn thread(random: &mut Random) -> Thread {
    Thread { tid: random.next() as u32, name: maybe(random) }
}

fn any_stack(random: &mut Random) -> ReportedStack {
    ReportedStack {
        thread: thread(random),
        role: *random.pick(&[Role::Loop, Role::Holder, Role::Waker, Role::Other]),
        state: *random.pick(&[ReportedState::Running, ReportedState::Blocked]),
        samples: random.next(),
        time_ns: random.next(),
        kernel: several(random, 40, any_frame),
        frames: several(random, 120, any_frame),
        truncated: maybe(random),
        left_out: random.next() as u32,
    }
}

fn peer(random: &mut Random) -> ReportedPeer {
    ReportedPeer { pid: random.next() as u32, name: maybe(random), command: maybe(random) }
}

fn waker(random: &mut Random) -> ReportedWaker {
    ReportedWaker { pid: 1, tid: 2, name: text(random), command: maybe(random) }
}

fn descriptor(random: &mut Random) -> ReportedDescriptor {
    ReportedDescriptor {
        number: random.next() as u32,
        kind: DescriptorKind::Socket,
        local: maybe(random),
        peer: maybe(random),
        state: maybe(random),
        is_inbound: false,
        path: maybe(random),
        file_system: maybe(random),
        process: Some(peer(random)),
    }
}

fn any_kind(random: &mut Random) -> CauseKind {
    let holder = |random: &mut Random| ReportedHolder {
        tid: 1,
        name: maybe(random),
        time_ns: random.next(),
    };
    match random.below(5) {
        0 => CauseKind::Syscall {
            syscall: text(random),
            args: several(random, 6, text),
            target: maybe(random),
            call: Box::new(ReportedCall {
                descriptor: Some(descriptor(random)),
                polled: several(random, 40, descriptor),
                connection: Some(descriptor(random)),
                path: maybe(random),
                held_by: several(random, 100, peer),
                child: Some(peer(random)),
                woken_by: Some(waker(random)),
                ..ReportedCall::default()
            }),
        },
        1 => CauseKind::Lock {
            address: text(random),
            owner_thread: Some(thread(random)),
            holders: several(random, 200, holder),
            woken_by: Some(waker(random)),
            awaited: None,
            stop_the_world: None,
        },
        2 => CauseKind::RunQueue {
            preempted_ns: random.next(),
            woken_ns: random.next(),
            idle_ns: random.next(),
            preempted_by: Some(several(random, 200, |random| Preemptor {
                pid: 1,
                tid: None,
                name: maybe(random),
                command: maybe(random),
                container_id: maybe(random),
                time_ns: random.next(),
                is_target: false,
            })),
            allowed_cpus: None,
            confined_to: maybe(random),
        },
        3 => CauseKind::Saturated {
            callbacks: several(random, 50, |random| Callback {
                function: maybe(random),
                file: maybe(random),
                line: None,
                samples: random.next(),
            }),
            callbacks_seen: random.next(),
            calls_seen: None,
        },
        _ => CauseKind::Sleep {
            syscall: text(random),
            asked_ns: None,
            purpose: None,
            path: maybe(random),
            held_by: several(random, 50, peer),
            ran_out_ns: several(random, 1000, Random::next),
        },
    }
}

fn wild(random: &mut Random, report: &mut Report) {
    let common = match report {
        Report::SessionStart(line) => &mut line.common,
        Report::StallOpen(line) | Report::StallUpdate(line) | Report::StallEnd(line) => {
            &mut line.common
        }
        Report::Stats(line) => &mut line.common,
        Report::SessionEnd(line) => &mut line.common,
    };
    common.message = text(random);
    common.host = text(random);
    let process = &mut common.process;
    (process.name, process.exe, process.command) = (text(random), maybe(random), maybe(random));
    (process.cgroup, process.container_id) = (maybe(random), maybe(random));
    process.service = maybe(random);
    process.labels =
        several(random, 32, |random| (format!("k{:062}", random.next()), text(random)))
            .into_iter()
            .collect();
}

fn wild_stall(random: &mut Random) -> Report {
    let moment = *random.pick(&[Moment::Open, Moment::Update, Moment::End]);
    let stall = if moment == Moment::End { sample::stall() } else { sample::open_stall() };
    let mut report = sample::report(moment, &stall);
    wild(random, &mut report);
    let line = line_of(&mut report);
    let culprit = line.culprit.clone();
    line.cause.kind = any_kind(random);
    line.cause.summary = text(random);
    line.cause.because = several(random, 20, |random| Link {
        thread: thread(random),
        doing: text(random),
        target: maybe(random),
        function: maybe(random),
        file: maybe(random),
        line: None,
        time_ns: random.next(),
    });
    line.cause.also = several(random, 8, |random| ReportedComponent {
        kind: any_kind(random),
        summary: text(random),
        time_ns: random.next(),
        times: None,
        waits: None,
        culprit: culprit.clone(),
    });
    line.stall.away = several(random, 100, |random| ReportedAway {
        thread: thread(random),
        state: ReportedState::Blocked,
        time_ns: random.next(),
        culprit: culprit.clone(),
    });
    line.stall.waiting_connections = several(random, 100, |random| WaitingConnections {
        address: text(random),
        waiting: random.next(),
    });
    if let Some(culprit) = &mut line.culprit {
        (culprit.function, culprit.file, culprit.module) =
            (maybe(random), maybe(random), maybe(random));
    }
    (line.thread.loop_kind, line.thread.name, line.thread.python_name) =
        (text(random), maybe(random), maybe(random));
    (line.advice, line.gaps) = (maybe(random), several(random, 1000, text));
    line.lost =
        several(random, 60, |random| (format!("reason_{:x}", random.next()), random.next()))
            .into_iter()
            .collect();
    line.stacks = several(random, 40, any_stack);
    report
}

fn wild_other(random: &mut Random) -> Report {
    let mut report = match random.below(3) {
        0 => sample::session_start(),
        1 => sample::stats_of(&vec![sample::idle_loop(); random.below(100)]),
        _ => sample::session_end(),
    };
    wild(random, &mut report);
    match &mut report {
        Report::SessionStart(line) => {
            line.gaps = several(random, 1000, text);
            line.probes = several(random, 100, |random| ReportedHook {
                name: text(random),
                hook: text(random),
                attached: false,
                reason: maybe(random),
            });
        }
        Report::Stats(line) => {
            line.gaps = several(random, 1000, text);
            line.accepts = several(random, 1000, |random| Accepts {
                pid: 1,
                name: text(random),
                accepted: random.next(),
                would_block: random.next(),
                failed: random.next(),
            });
        }
        Report::SessionEnd(line) => {
            line.gaps = several(random, 1000, text);
            line.top_culprits = several(random, 10, |random| TopCulprit {
                function: maybe(random),
                file: maybe(random),
                line: None,
                stalls: random.next(),
                stalled_ns: random.next(),
            });
        }
        other => unreachable!("{other:?}"),
    }
    report
}

/// However long names are and however many there is of everything, no line is longer than it may be; it is of the
/// schema, and has cause and culprit.
#[test]
fn hostile_reports() {
    let schema = schema();
    hostile::rounds(60, |random| {
        let report = if random.once_in(4) { wild_other(random) } else { wild_stall(random) };
        let limit = *random.pick(&[LEAST_LINE_LIMIT_BYTES, 5000, 8000, 16_384]);
        let stacks = *random.pick(&[
            StackCounts::Full,
            StackCounts::App,
            StackCounts::App,
            StackCounts::None,
        ]);
        let (bytes, line) = made(Limits { line_bytes: Some(limit), stacks }, &report);
        assert!(bytes <= limit, "{bytes} of {limit}: {line}");
        assert!(is_valid(&line, &schema, &schema), "{line:#}");
        let whole = serde_json::to_value(&report).unwrap();
        for identity in ["event", "schema", "session", "timestamp", "severity"] {
            assert_eq!(line[identity], whole[identity]);
        }
        assert_eq!(line["cause"].get("kind"), whole["cause"].get("kind"));
        assert_eq!(line["culprit"].is_object(), whole["culprit"].is_object());
        assert_eq!(line["stall"].get("id"), whole["stall"].get("id"));
        let is_cut = serde_json::to_string(&report).unwrap().len() >= limit;
        assert!(!is_cut || line.get("omitted").is_some() || no_counts(&whole), "{line}");
    });
}

/// Whether a line was only longer by counters that are 0, or by fields of frames.
fn no_counts(line: &Value) -> bool {
    line["lost"].as_object().is_some_and(|lost| lost.values().any(|count| count == 0))
        || !line["stacks"].as_array().is_none_or(Vec::is_empty)
}

/// What goes is what is missed least: gaps before the parts of the cause, texts of others before the culprit's.
#[test]
fn order_of_lists() {
    let mut report = service(Moment::End, &[2]);
    let line = line_of(&mut report);
    line.gaps = (0..1000).map(|n| format!("reason {n}: nobody knows")).collect();
    line.advice = Some("a".repeat(2000));
    line.lost = BTreeMap::from([("captures".to_owned(), 3), ("switches".to_owned(), 0)]);
    let (bytes, line) = made(Limits::default(), &report);
    assert!(bytes <= 8000);
    assert_eq!(line["gaps"].as_array().unwrap().len(), 32);
    assert_eq!(line["omitted"]["gaps"], 968);
    assert_eq!(line["lost"], serde_json::json!({ "captures": 3 }));
    assert_eq!(line["advice"].as_str().unwrap().len(), 2000);
    assert_eq!(functions(&line["stacks"][0])[4], "charge_payment");

    line_of(&mut report).advice = Some("a".repeat(20_000));
    let (bytes, line) = made(Limits::default(), &report);
    assert!(bytes <= 8000);
    let advice = line["advice"].as_str().unwrap();
    assert!(advice.ends_with('…') && advice.len() == 1024, "{} {advice}", advice.len());
    assert_eq!(
        (&line["omitted"]["texts"], &line["gaps"][31]),
        (&1.into(), &"reason 31: nobody knows".into())
    );
    assert_eq!(line["message"], serde_json::to_value(&report).unwrap()["message"]);
}
