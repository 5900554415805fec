//! An HTTP service on tokio whose handlers block their worker in known ways, and write down when.
//!
//! `tokio-target --flavour current_thread|multi_thread --truth FILE`. It prints `ready PORT`. What is
//! asked for with `/offload` blocks where it may, on a thread of the blocking pool; with `/handover`,
//! which only the multi-threaded flavour allows, after others have taken the worker's place. `/all` blocks
//! all workers at once; `/turns` is how often the first worker has parked.

mod block;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};

use block::Recorder;

/// Bytes of a request's head taken at most.
const HEAD_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Flavour {
    CurrentThread,
    MultiThread,
}

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, value_enum, default_value_t = Flavour::CurrentThread)]
    flavour: Flavour,
    /// Workers of the multi-threaded flavour.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    #[arg(long)]
    truth: PathBuf,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let recorder = Recorder::create(&options.truth)?;
    runtime(&options)?.block_on(serve(options.workers, recorder))
}

fn runtime(options: &Options) -> Result<Runtime> {
    let mut builder = match options.flavour {
        Flavour::CurrentThread => Builder::new_current_thread(),
        Flavour::MultiThread => Builder::new_multi_thread(),
    };
    builder.worker_threads(options.workers).enable_all().build().context("no runtime")
}

async fn serve(workers: usize, recorder: Recorder) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("ready {}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, workers, recorder.clone()));
    }
}

/// Answers one request after the other until the client goes away.
async fn connection(mut stream: TcpStream, workers: usize, recorder: Recorder) -> Result<()> {
    let mut received = Vec::new();
    loop {
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
            let mut chunk = [0; 1024];
            let length = stream.read(&mut chunk).await?;
            if length == 0 || received.len() > HEAD_BYTES {
                return Ok(());
            }
            received.extend_from_slice(chunk.get(..length).unwrap_or_default());
            continue;
        };
        let head: Vec<u8> = received.drain(..end + 4).collect();
        let mut body = "ok".to_owned();
        let status = match std::str::from_utf8(&head).ok().and_then(request) {
            Some(("/all", milliseconds)) => {
                block::hold_all(milliseconds, workers, &recorder).await;
                "200 OK"
            }
            Some(("/turns", _)) => {
                body = Handle::current().metrics().worker_park_count(0).to_string();
                "200 OK"
            }
            Some((path, milliseconds)) => answer(path, milliseconds, &recorder).await,
            None => "400 Bad Request",
        };
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(text.as_bytes()).await?;
    }
}

/// The path, and the `ms` of its query.
fn request(head: &str) -> Option<(&str, Duration)> {
    let target = head.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let milliseconds = query.strip_prefix("ms=").and_then(|number| number.parse().ok());
    Some((path, Duration::from_millis(milliseconds.unwrap_or(0))))
}

async fn answer(path: &str, duration: Duration, recorder: &Recorder) -> &'static str {
    match path {
        "/" => {}
        "/sleep" => block::sleep_on_worker(duration, recorder).await,
        "/spin" => block::spin(duration, recorder).await,
        "/lock" => block::wait_for_lock(duration, recorder).await,
        "/read" => block::read_pipe(duration, recorder).await,
        "/wait" => tokio::time::sleep(duration).await,
        "/offload" => {
            let blocking = tokio::task::spawn_blocking(move || std::thread::sleep(duration));
            if blocking.await.is_err() {
                return "500 Internal Server Error";
            }
        }
        "/handover" => tokio::task::block_in_place(|| std::thread::sleep(duration)),
        _ => return "404 Not Found",
    }
    "200 OK"
}
