//! The one direction of the daemon's imports: a stage of an event's way knows those before it, and none after.

use super::code::Code;
use super::violation::Violation;

/// What lies below all stages.
const BELOW: [&str; 12] = [
    "activity",
    "call",
    "clock",
    "environment",
    "error",
    "frame",
    "gap",
    "interval",
    "process",
    "syscall",
    "task",
    "urgency",
];

/// An event's way, each stage with the modules that it is made of.
const STAGES: [&[&str]; 9] = [
    &["source"],
    &["turn"],
    &["session", "holders", "sleeping_threads", "job"],
    &["unwind"],
    &["runtime"],
    &["symbolize"],
    &["report"],
    &["sink"],
    &["analyst", "stall_builder", "known"],
];

/// What drives the stages, and is known to none of them.
const DRIVERS: [&str; 15] = [
    "alarm",
    "attached",
    "check",
    "cli",
    "config",
    "detected",
    "lib",
    "lookout",
    "main",
    "queue",
    "start",
    "stop",
    "succession",
    "watch",
    "whom",
];

/// What runs against it, and why.
const AGAINST: [(&str, &str, &str); 3] = [
    ("session", "runtime", "an interpreter's memory is read at once: the target may free it"),
    ("job", "report", "the first and the last line of a session are made of what the drivers know"),
    ("analyst", "config", "it is one of an attachment's own"),
];

/// Files of tests only.
const OF_TESTS: [&str; 5] = ["fuzz.rs", "hostile.rs", "rows.rs", "sample.rs", "tests.rs"];

pub fn is_of_tests(path: &str) -> bool {
    OF_TESTS.iter().any(|name| path.ends_with(name))
}

/// Where a module stands: 0 is below all stages.
fn rank(module: &str) -> Option<usize> {
    if BELOW.contains(&module) {
        return Some(0);
    }
    let stage = STAGES.iter().position(|stage| stage.contains(&module));
    let driver = DRIVERS.contains(&module).then_some(STAGES.len());
    stage.or(driver).map(|position| position + 1)
}

fn is_excused(from: &str, to: &str) -> bool {
    let stage = STAGES.iter().find(|stage| stage.contains(&from));
    AGAINST.iter().any(|(of, into, _)| {
        *into == to && (*of == from || stage.is_some_and(|stage| stage[0] == *of))
    })
}

/// The imports of one file of the daemon that run against the direction.
pub fn against(path: &str, text: &str) -> Vec<Violation> {
    let Some(inside) = path.strip_prefix("profiler-user/src/") else { return Vec::new() };
    if is_of_tests(inside) {
        return Vec::new();
    }
    let first = inside.split('/').next().unwrap_or(inside);
    let own = first.trim_end_matches(".rs");
    let Some(stands) = rank(own) else {
        let rule = format!("`{own}` has no place in an event's way: give it one in {}", file!());
        return vec![Violation { line: 1, rule }];
    };
    let code = Code::of(text);
    let mut found = Vec::new();
    for (line, words) in code.words() {
        if words == ["mod", "tests"] {
            break;
        }
        for pair in words.windows(2).filter(|pair| pair[0] == "crate") {
            let is_later = rank(pair[1]).is_some_and(|other| other > stands);
            if is_later && !is_excused(own, pair[1]) {
                let rule = format!("`{own}` imports `{}`, which comes after it", pair[1]);
                found.push(Violation { line, rule });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::against;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        against(path, text).iter().map(|violation| violation.line).collect()
    }

    /// What comes later may be known to drivers and to tests alone.
    #[test]
    fn one_direction() {
        let text = "//! It.\nuse crate::gap::Gap;\nuse crate::report::facts::Facts;\n";
        assert_eq!(lines("profiler-user/src/turn/mod.rs", text), [3]);
        assert_eq!(lines("profiler-user/src/process/queues.rs", text), [3]);
        for later in ["sink/text.rs", "analyst.rs", "watch.rs", "job.rs", "turn/fuzz.rs"] {
            assert!(lines(&format!("profiler-user/src/{later}"), text).is_empty(), "{later}");
        }
        let tests = "//! It.\n#[cfg(test)]\nmod tests {\n    use crate::report::sample;\n}\n";
        assert!(lines("profiler-user/src/turn/mod.rs", tests).is_empty());
        let driven = "//! It.\npub(crate) fn f() { crate::watch::attach() }\n";
        assert_eq!(lines("profiler-user/src/report/mod.rs", driven), [2]);
        assert!(lines("xtask/src/vm.rs", driven).is_empty());
    }

    /// An exception is one of a stage and a later one, not of the modules beside it.
    #[test]
    fn exceptions() {
        let text = "//! It.\nuse crate::runtime::cpython::Python;\n";
        assert!(lines("profiler-user/src/session/items.rs", text).is_empty());
        assert!(lines("profiler-user/src/holders.rs", text).is_empty(), "of the same stage");
        assert_eq!(lines("profiler-user/src/unwind/merge.rs", text), [2]);
        let of_job = "//! It.\nuse crate::report::Start;\n";
        assert!(lines("profiler-user/src/job.rs", of_job).is_empty());
        assert_eq!(lines("profiler-user/src/session/items.rs", of_job), [2]);
    }

    /// Whoever adds a module says where it stands.
    #[test]
    fn a_new_module() {
        assert_eq!(lines("profiler-user/src/anything.rs", "//! It.\n"), [1]);
    }
}
