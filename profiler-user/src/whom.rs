//! What was typed for a process, to its number: or to the processes of that name, or its workers, to choose from.

mod master;

use std::collections::BTreeSet;

use crate::cli::{AttachArguments, CheckArguments};
use crate::error::{Exit, Failure};
use crate::process::peers::peer;
use crate::process::target::{field, text};
use master::{Worker, workers};

/// Processes listed at most.
const MAX_LISTED: usize = 20;

/// Words at the beginning of a command line that may say what program it is: `python3 -m uvicorn`.
const TELLING_WORDS: usize = 4;

/// Characters of a command line that are shown.
const MAX_COMMAND: usize = 50;

/// Processes from one to the first: a chain of parents that is longer is none.
const MAX_ANCESTORS: usize = 64;

/// The process to attach to.
pub fn to_attach_to(attach: &AttachArguments) -> anyhow::Result<u32> {
    let typed = attach.target.as_ref().or(attach.pid.as_ref()).map_or("", |typed| typed);
    let pid = number(typed, "attach")?;
    if !attach.master {
        let workers = workers(pid);
        if !workers.is_empty() {
            return Err(Failure::unsupported(is_master(pid, &workers)).into());
        }
    }
    Ok(pid)
}

/// The process to check, if one was named.
pub fn to_check(check: &CheckArguments) -> anyhow::Result<Option<u32>> {
    let typed = check.target.as_ref().or(check.pid.as_ref());
    typed.map(|typed| number(typed, "check")).transpose().map_err(Into::into)
}

/// The number itself; for a name, a sentence on who has it.
fn number(typed: &str, command: &str) -> Result<u32, Failure> {
    if typed.is_empty() || typed.bytes().any(|byte| !byte.is_ascii_digit()) {
        return Err(name(typed, command));
    }
    typed.parse().map_err(|_| Failure::no_process(format!("there is no process {typed}")))
}

/// Who is called so, and how to attach to one of them.
fn name(typed: &str, command: &str) -> Failure {
    let known = called(typed);
    let Some(first) = known.iter().find(|one| !one.is_master).or(known.first()) else {
        let message = format!(
            "there is no process called {}: {command} takes a process's number, as `pgrep -a` lists them",
            printable(typed)
        );
        return Failure::no_process(message);
    };
    let rows = known.iter().map(|one| (one.pid, one.name.as_str(), one.told()));
    let message = format!(
        "{command} takes a process's number. Called {} are:\n{}\nTry: stalltrace {command} {}",
        printable(typed),
        table(rows),
        first.pid
    );
    Failure { exit: Exit::Usage, message }
}

fn is_master(pid: u32, workers: &[Worker]) -> String {
    let who = peer(pid).name.unwrap_or_default();
    let rows = workers.iter().map(|worker| {
        let told = format!("serves by {}: {}", worker.by, short(&worker.command));
        (worker.pid, worker.name.as_str(), told)
    });
    let first = workers.first().map_or(0, |worker| worker.pid);
    format!(
        "process {pid} ({who}) serves nobody itself, it waits for its workers:\n{}\n\
         Try: stalltrace attach {first}\n\
         (--master attaches to process {pid} all the same)",
        table(rows)
    )
}

/// A command line without the folder of its program.
fn short(command: &str) -> &str {
    let program = command.split(' ').next().unwrap_or_default();
    let folder = program.rfind('/').map_or(0, |at| at + 1);
    command.get(folder..).unwrap_or(command)
}

/// A row for each process, aligned.
fn table<'a>(rows: impl Iterator<Item = (u32, &'a str, String)>) -> String {
    let all: Vec<_> = rows.collect();
    let shown = all.iter().take(MAX_LISTED).map(|(pid, name, told)| {
        let cut = match told.char_indices().nth(MAX_COMMAND) {
            Some((end, _)) => format!("{}…", told.get(..end).unwrap_or_default()),
            None => told.clone(),
        };
        format!("{pid:>9}  {name:<16}  {cut}")
    });
    let mut text = shown.collect::<Vec<_>>().join("\n");
    if all.len() > MAX_LISTED {
        text += &format!("\n           and {} more", all.len() - MAX_LISTED);
    }
    text
}

/// A process of the name that was asked for.
#[derive(Debug)]
struct Called {
    pid: u32,
    name: String,
    command: String,
    is_master: bool,
}

impl Called {
    fn told(&self) -> String {
        let what = if self.is_master { "waits for its workers: " } else { "" };
        format!("{what}{}", short(&self.command))
    }
}

/// The processes whose own name it is, or whose command line says that they run it; in order of their numbers.
/// Not among them is who asks: `sudo stalltrace attach uvicorn` is no uvicorn.
fn called(name: &str) -> Vec<Called> {
    let asking = ancestors(std::process::id());
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let mut found = Vec::new();
    for pid in pids.into_iter().filter(|pid| !asking.contains(pid)) {
        let peer = peer(pid);
        let (own, command) = (peer.name.unwrap_or_default(), peer.command.unwrap_or_default());
        if is_called(name, &own, &command) {
            found.push(Called { pid, name: own, command, is_master: false });
        }
    }
    // To look for workers costs more: only what is listed is looked at, the others are counted.
    let others = found.split_off(found.len().min(MAX_LISTED));
    let mut all = others;
    for mut one in found {
        let workers = workers(one.pid);
        one.is_master = !workers.is_empty();
        all.push(one);
        // They may be called otherwise: `python3` is what uvicorn starts.
        all.extend(workers.into_iter().map(|Worker { pid, name, command, .. }| Called {
            pid,
            name,
            command,
            is_master: false,
        }));
    }
    all.sort_by_key(|one| one.pid);
    all.dedup_by_key(|one| one.pid);
    all
}

/// By the process's own name, or by one of the first words of its command line: a program, a script, or the
/// module that an interpreter runs; without the colon of `gunicorn: master`.
fn is_called(name: &str, own: &str, command: &str) -> bool {
    let words = command.split(' ').take(TELLING_WORDS);
    own == name
        || words.map(|word| word.trim_end_matches(':')).any(|word| {
            let file = word.rsplit('/').next().unwrap_or(word);
            file == name || file.strip_suffix(".py") == Some(name)
        })
}

/// The process and its parents.
fn ancestors(pid: u32) -> BTreeSet<u32> {
    let mut known = BTreeSet::new();
    let mut next = Some(pid);
    while let Some(pid) = next.filter(|pid| *pid > 1 && known.len() < MAX_ANCESTORS) {
        known.insert(pid);
        let status = text(format!("/proc/{pid}/status"));
        next = status.and_then(|status| field(&status, "PPid:")?.parse().ok());
    }
    known
}

fn printable(typed: &str) -> String {
    crate::process::arguments::printable(typed.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::{Worker, ancestors, is_called, is_master, number, peer, short, table};
    use crate::error::Exit;

    /// A number is one, a name is answered with who has it, and nothing of that is a process that is not there.
    #[test]
    fn numbers_and_names() {
        assert_eq!(number("4242", "attach").map_err(|it| it.exit), Ok(4242));
        let failed = |typed: &str| number(typed, "attach").unwrap_err();
        assert_eq!(failed("99999999999").exit, Exit::NoProcess);
        let nobody = failed("no-such-program");
        assert_eq!(nobody.exit, Exit::NoProcess);
        assert!(nobody.message.contains("no process called no-such-program"), "{nobody}");
        let mut sleeper = std::process::Command::new("sleep").arg("9").spawn().unwrap();
        // It may be in the middle of its `execve`, and called as we are.
        while peer(sleeper.id()).name.as_deref() != Some("sleep") {
            std::thread::yield_now();
        }
        let known = failed("sleep");
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert_eq!(known.exit, Exit::Usage);
        assert!(known.message.contains(&format!("{}  sleep", sleeper.id())), "{known}");
        assert!(known.message.contains("Try: stalltrace attach "), "{known}");
        assert!(!failed("a\x1b[2J").message.contains('\x1b'));
    }

    /// A program is known by its name, its script, its module or its title, and not by a word further on.
    #[test]
    fn names() {
        assert!(is_called("nginx", "nginx", "nginx: worker process"));
        assert!(is_called("nginx", "", "nginx: worker process"));
        assert!(is_called("uvicorn", "python3", "/usr/bin/python3 -m uvicorn app:app"));
        assert!(is_called("uvicorn", "uvicorn", "/venv/bin/python /venv/bin/uvicorn app:app"));
        assert!(is_called("app", "python3", "python3 app.py"));
        assert!(!is_called("app", "python3", "python3 -m uvicorn --host 0.0.0.0 app"));
        assert!(!is_called("uvicorn", "uvicorn-exporter", "uvicorn-exporter"));
    }

    /// A master is answered with its workers, each with what it is.
    #[test]
    fn masters() {
        let worker = |pid| Worker {
            pid,
            name: "gunicorn".to_owned(),
            command: "gunicorn: worker [app]".to_owned(),
            by: "epoll",
        };
        let told = is_master(1, &[worker(4243), worker(4244)]);
        let row = "     4243  gunicorn          serves by epoll: gunicorn: worker [app]\n";
        assert!(told.contains(row), "{told}");
        assert!(told.contains("Try: stalltrace attach 4243\n"), "{told}");
        assert_eq!(short("/venv/bin/python /venv/bin/uvicorn"), "python /venv/bin/uvicorn");
        assert_eq!(short("nginx: worker process"), "nginx: worker process");
        let many: Vec<Worker> = (1..40).map(worker).collect();
        assert!(is_master(1, &many).contains("and 19 more"));
        let long = table([(1, "x", "ä".repeat(200))].into_iter());
        assert!(long.ends_with('…') && long.chars().count() < 90, "{long}");
    }

    /// Who asks knows itself, and whose child it is.
    #[test]
    fn own_chain() {
        let own = ancestors(std::process::id());
        assert!(
            own.contains(&std::process::id()) && own.contains(&std::os::unix::process::parent_id())
        );
    }
}
