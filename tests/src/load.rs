//! HTTP requests to a target, and how long each had to wait for its answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::clock::{MILLISECOND, monotonic_ns, patience};

/// An answer longer than this is none of our targets'.
const ANSWER_BYTES: usize = 64 * 1024;
/// How often [`Traffic`] looks for answers: its resolution.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// One request and its answer, in ns of `CLOCK_MONOTONIC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    pub sent_ns: u64,
    pub answered_ns: u64,
}

impl Exchange {
    pub fn waited_ns(&self) -> u64 {
        self.answered_ns.saturating_sub(self.sent_ns)
    }
}

/// A connection that sends one request after the other and waits for each answer.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
}

impl Client {
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience(60)))?;
        Ok(Self { stream })
    }

    pub fn get(&mut self, path: &str) -> Result<Exchange> {
        self.exchange(path).map(|(exchange, _)| exchange)
    }

    /// What is answered, without its head.
    pub fn body(&mut self, path: &str) -> Result<String> {
        let (_, answer) = self.exchange(path)?;
        let text = String::from_utf8(answer).context("the answer is not text")?;
        let (_, body) = text.split_once("\r\n\r\n").context("the answer has no head")?;
        Ok(body.to_owned())
    }

    fn exchange(&mut self, path: &str) -> Result<(Exchange, Vec<u8>)> {
        let sent_ns = monotonic_ns();
        self.stream.write_all(request(path).as_bytes())?;
        let mut received = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk).with_context(|| format!("no answer to {path}"))? {
                0 => bail!("the connection was closed before {path} was answered"),
                bytes => received.extend_from_slice(chunk.get(..bytes).unwrap_or_default()),
            }
            if let Some(status) = whole_answer(&received)? {
                if status != 200 {
                    bail!("{path} was answered with {status}");
                }
                return Ok((Exchange { sent_ns, answered_ns: monotonic_ns() }, received));
            }
        }
    }
}

fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
}

/// The status of an answer that has arrived whole; `None` while part of it is missing.
fn whole_answer(received: &[u8]) -> Result<Option<u16>> {
    if received.len() > ANSWER_BYTES {
        bail!("an answer of more than {ANSWER_BYTES} bytes");
    }
    let Some(head_bytes) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = received.get(..head_bytes).unwrap_or_default();
    let head = std::str::from_utf8(head).context("the answer's head is not text")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let body_bytes = lengths.next().context("the answer has no length")?;
    let is_whole = received.len() >= head_bytes + 4 + body_bytes;
    Ok(is_whole.then_some(status.context("the answer has no status")?))
}

/// Requests at a steady pace, whether or not the ones before were answered: what a stall holds up.
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Exchange>>>>,
}

impl Traffic {
    /// Sends `path` every `interval` to a local port, over at most so many connections.
    pub fn start(port: u16, path: &str, interval: Duration, connections: usize) -> Result<Self> {
        let mut lanes = Vec::new();
        for _ in 0..connections {
            let client = Client::connect(port)?;
            client.stream.set_nonblocking(true)?;
            lanes.push(Lane { stream: client.stream, received: Vec::new(), sent_ns: None });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stop_seen, request) = (Arc::clone(&stop), request(path));
        let thread = std::thread::spawn(move || drive(lanes, &request, interval, &stop_seen));
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stops sending, waits for the answers that are still due, and returns all of them.
    pub fn finish(mut self) -> Result<Vec<Exchange>> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(exchanges)) => exchanges,
            _ => bail!("the thread that sends requests panicked"),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Lane {
    stream: TcpStream,
    received: Vec<u8>,
    sent_ns: Option<u64>,
}

impl Lane {
    /// Reads what has come; the exchange, once its answer is whole.
    fn look(&mut self) -> Result<Option<Exchange>> {
        let Some(sent_ns) = self.sent_ns else { return Ok(None) };
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the target closed a connection"),
            Ok(bytes) => self.received.extend_from_slice(chunk.get(..bytes).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("a connection broke"),
        }
        let Some(status) = whole_answer(&self.received)? else { return Ok(None) };
        if status != 200 {
            bail!("a healthy request was answered with {status}");
        }
        self.received.clear();
        self.sent_ns = None;
        Ok(Some(Exchange { sent_ns, answered_ns: monotonic_ns() }))
    }
}

fn drive(
    mut lanes: Vec<Lane>,
    request: &str,
    interval: Duration,
    stop: &AtomicBool,
) -> Result<Vec<Exchange>> {
    let interval_ns = u64::try_from(interval.as_nanos())?;
    let mut exchanges = Vec::new();
    let mut next_ns = monotonic_ns();
    let mut give_up_ns = None;
    loop {
        for lane in &mut lanes {
            exchanges.extend(lane.look()?);
        }
        let now_ns = monotonic_ns();
        if stop.load(Ordering::Relaxed) {
            let limit_ns = *give_up_ns.get_or_insert(now_ns + 10_000 * MILLISECOND);
            if lanes.iter().all(|lane| lane.sent_ns.is_none()) {
                return Ok(exchanges);
            }
            if now_ns > limit_ns {
                bail!("requests were left without an answer");
            }
        } else if now_ns >= next_ns {
            // Where every connection waits, nothing is sent: as many as there are lanes are held up.
            if let Some(lane) = lanes.iter_mut().find(|lane| lane.sent_ns.is_none()) {
                lane.stream.write_all(request.as_bytes()).context("a connection broke")?;
                lane.sent_ns = Some(now_ns);
            }
            next_ns = (next_ns + interval_ns).max(now_ns);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::whole_answer;

    /// An answer is whole when its body is as long as its head says, and not before.
    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 404 Not Found\r\nconTent-length: 2\r\n\r\n{}";
        assert_eq!(whole_answer(answer).unwrap(), Some(404));
        for bytes in 0..answer.len() {
            assert_eq!(whole_answer(&answer[..bytes]).unwrap(), None, "{bytes} bytes");
        }
    }

    /// An answer that never says where it ends is an error, not an endless wait.
    #[test]
    fn an_answer_without_length_is_refused() {
        assert!(whole_answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(whole_answer(&[b'x'; super::ANSWER_BYTES + 1]).is_err());
    }
}
