//! The demo: a sample service that stalls in known ways, stalltrace attached to it, and one sentence on
//! what was seen.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use profiler_tests::clock::{MILLISECOND, monotonic_ns};
use profiler_tests::load::{Client, Exchange, Traffic};
use profiler_tests::report::{self, ReportExt as _, basename};
use profiler_tests::scenario::require_root;
use profiler_tests::target::{Target, send};
use profiler_tests::tracer::binary;
use profiler_tests::truth::Truth;

/// One request of each kind, in the order in which they are sent.
const STALLING: [&str; 4] = ["/regex?ms=800", "/upstream?ms=1500", "/file?ms=600", "/lock?ms=1000"];
const PAUSE: Duration = Duration::from_millis(2000);
const HEALTHY_INTERVAL: Duration = Duration::from_millis(25);
/// Enough for every request that falls due in the longest stall.
const HEALTHY_CONNECTIONS: usize = 80;
/// A healthy request that waited longer than this was held up.
const HELD_UP_NS: u64 = 100 * MILLISECOND;
const ATTACHES_WITHIN: Duration = Duration::from_secs(5);
const ENDS_WITHIN: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let format = match std::env::args().nth(1).as_deref() {
        None => "text",
        Some("--json") => "json",
        Some(other) => {
            eprintln!("demo: {other} is not an option; --json is the only one");
            return ExitCode::from(2);
        }
    };
    match show(format) {
        Ok(Seen { sentence, is_complete: true }) => {
            println!("\n{sentence}");
            ExitCode::SUCCESS
        }
        Ok(Seen { sentence, is_complete: false }) => {
            println!("\n{sentence}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the demo came to.
struct Seen {
    sentence: String,
    is_complete: bool,
}

fn show(format: &str) -> Result<Seen> {
    require_root()?;
    let target = Target::service()?;
    println!("sample service: process {}, 127.0.0.1:{}", target.pid(), target.port());
    println!("$ stalltrace attach {} --format {format}\n", target.pid());
    let mut watch = Watch::start(target.pid(), format)?;
    watch.attached()?;

    let begin = Instant::now();
    let traffic = Traffic::start(target.port(), "/", HEALTHY_INTERVAL, HEALTHY_CONNECTIONS)?;
    let mut client = Client::connect(target.port())?;
    for path in STALLING {
        std::thread::sleep(PAUSE);
        client.get(path)?;
    }
    std::thread::sleep(PAUSE);
    let healthy = traffic.finish()?;
    let elapsed = begin.elapsed();

    watch.finish()?;
    let truths = target.truths()?;
    let stalls: Vec<&Truth> = truths.iter().filter(|truth| !truth.is_lag()).collect();
    ensure!(stalls.len() == STALLING.len(), "the service stalled {} times", stalls.len());
    Ok(conclude(&stalls, &watch.said(), &healthy, elapsed))
}

/// A line of stalltrace's output and when it came.
#[derive(Debug, Clone)]
struct Said {
    at_ns: u64,
    text: String,
}

/// stalltrace at work, its words shown as they come.
struct Watch {
    child: Child,
    said: Arc<Mutex<Vec<Said>>>,
    reader: Option<JoinHandle<()>>,
}

impl Watch {
    fn start(pid: u32, format: &str) -> Result<Self> {
        let binary = binary()?;
        let mut child = Command::new(&binary)
            .args(["attach", &pid.to_string(), "--format", format])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        let said: Arc<Mutex<Vec<Said>>> = Arc::default();
        let reader = child.stdout.take().map(|pipe| {
            let said = Arc::clone(&said);
            std::thread::spawn(move || {
                for text in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let at_ns = monotonic_ns();
                    // A reader that went away, as `head` does, is no reason to stop the demo.
                    let _ = writeln!(std::io::stdout(), "{text}");
                    said.lock().unwrap_or_else(PoisonError::into_inner).push(Said { at_ns, text });
                }
            })
        });
        Ok(Self { child, said, reader })
    }

    fn said(&self) -> Vec<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns with the first word: the probes are in place then.
    fn attached(&mut self) -> Result<()> {
        let deadline = Instant::now() + ATTACHES_WITHIN;
        while self.said().is_empty() {
            if let Some(status) = self.child.try_wait()? {
                bail!("stalltrace could not attach: {status}");
            }
            ensure!(Instant::now() < deadline, "stalltrace says nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ctrl-C, and its last words.
    fn finish(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            send(self.child.id(), Signal::SIGINT)?;
        }
        let deadline = Instant::now() + ENDS_WITHIN;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "stalltrace does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.reader.take().map(JoinHandle::join);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // It may end between the two calls; then there is nothing left to do.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Function, file and line, as a person would write them.
fn place(truth: &Truth, line: u32) -> (String, String) {
    let file = truth.file.as_deref().map_or("?", basename);
    (truth.function.clone().unwrap_or_default(), format!("{file}:{line}"))
}

/// When stalltrace first named the place of a stall, if it did.
fn named_at(truth: &Truth, said: &[Said]) -> Option<u64> {
    let since = said.iter().filter(|said| said.at_ns >= truth.start_ns);
    let mut text = String::new();
    for Said { at_ns, text: line } in since {
        if let Ok(line) = report::parse(line) {
            let culprit = line.stall().and_then(|stall| stall.culprit.as_ref());
            if culprit.is_some_and(|culprit| {
                culprit.function == truth.function && truth.blocks_at(culprit.line)
            }) {
                return Some(*at_ns);
            }
            continue;
        }
        text.push_str(line);
        text.push('\n');
        let mut lines =
            truth.line.into_iter().flat_map(|first| first..=truth.last_line.unwrap_or(first));
        if lines.any(|line| {
            let (function, place) = place(truth, line);
            text.contains(&function) && text.contains(&place)
        }) {
            return Some(*at_ns);
        }
    }
    None
}

/// One sentence, and whether every stall was named.
fn conclude(stalls: &[&Truth], said: &[Said], healthy: &[Exchange], elapsed: Duration) -> Seen {
    let mut named = Vec::new();
    let mut unnamed = Vec::new();
    let mut while_frozen = 0;
    for truth in stalls {
        let (function, place) = place(truth, truth.line.unwrap_or_default());
        let place = format!("{function} ({place})");
        match named_at(truth, said) {
            Some(at_ns) => {
                named.push(place);
                while_frozen += usize::from(at_ns < truth.end_ns);
            }
            None => unnamed.push(place),
        }
    }
    let held_up = |truth: &&&Truth| {
        let waited = healthy.iter().filter(|exchange| exchange.waited_ns() > HELD_UP_NS);
        waited.filter(|e| truth.overlap_ns(e.sent_ns, e.answered_ns) > 0).count()
    };
    let worst = stalls.iter().max_by_key(held_up);
    let worst = worst.map_or_else(String::new, |truth| {
        let seconds = truth.duration_ns() as f64 / 1e9;
        format!("the worst held up {} other requests for up to {seconds:.1} s", held_up(&truth))
    });
    let stalled = if stalls.len() == 1 { "stall" } else { "stalls" };
    let so_many = format!("{} {stalled} in {:.0} s", stalls.len(), elapsed.as_secs_f64());
    let sentence = if unnamed.is_empty() {
        let when = match while_frozen {
            all if all == named.len() => "all named while the loop was still frozen".to_owned(),
            some => format!("all named, {some} of them while the loop was still frozen"),
        };
        format!("{so_many}, {when}: {}; {worst}.", named.join(", "))
    } else {
        format!("{so_many}, of which these were NOT named: {}; {worst}.", unnamed.join(", "))
    };
    Seen { sentence, is_complete: unnamed.is_empty() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Exchange, Said, Truth, conclude, named_at};

    const MS: u64 = 1_000_000;

    fn truth() -> Truth {
        Truth {
            kind: "upstream".to_owned(),
            function: Some("charge_payment".to_owned()),
            file: Some("/srv/service.py".to_owned()),
            line: Some(49),
            last_line: Some(49),
            thread: None,
            start_ns: 1000 * MS,
            end_ns: 2500 * MS,
        }
    }

    fn said(at_ms: u64, text: &str) -> Said {
        Said { at_ns: at_ms * MS, text: text.to_owned() }
    }

    /// Function and place may stand on different lines; both must come after the stall began.
    #[test]
    fn a_stall_is_named_by_function_and_place() {
        let lines = [
            said(900, "charge_payment (service.py:49)"),
            said(1200, "stalled, at charge_payment"),
            said(1201, "  service.py:49"),
        ];
        assert_eq!(named_at(&truth(), &lines), Some(1201 * MS));
        assert_eq!(named_at(&truth(), &lines[..2]), None);
        assert_eq!(
            named_at(&Truth { line: Some(48), last_line: Some(48), ..truth() }, &lines),
            None
        );
    }

    /// The sentence counts the requests that waited through the stall, and says when it was named.
    #[test]
    fn one_sentence_says_what_was_seen() {
        let waited =
            |sent: u64, answered: u64| Exchange { sent_ns: sent * MS, answered_ns: answered * MS };
        let healthy =
            [waited(900, 905), waited(1100, 2510), waited(2000, 2510), waited(2490, 2511)];
        let stall = truth();
        let lines = [said(1150, "charge_payment (service.py:49)")];
        let seen = conclude(&[&stall], &lines, &healthy, Duration::from_secs(15));
        assert!(seen.is_complete);
        assert_eq!(
            seen.sentence,
            "1 stall in 15 s, all named while the loop was still frozen: charge_payment (service.py:49); \
             the worst held up 2 other requests for up to 1.5 s."
        );
        let silent = conclude(&[&stall], &[], &healthy, Duration::from_secs(15));
        assert!(!silent.is_complete && silent.sentence.contains("NOT named: charge_payment"));
    }
}
