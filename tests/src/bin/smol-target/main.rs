//! An HTTP service on smol whose threads share one reactor, and write down when a handler blocks them.
//!
//! `smol-target THREADS --truth FILE`. It prints `ready PORT`. `/sleep?ms=N` blocks the thread that serves
//! it, `/all?ms=N` blocks all threads at once: each 150 ms longer than the one before it, so that the
//! first comes back after N ms.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use nix::unistd::gettid;
use profiler_tests::clock::monotonic_ns;
use smol::io::{AsyncReadExt as _, AsyncWriteExt as _};
use smol::net::{TcpListener, TcpStream};
use smol::{Executor, future};

/// Bytes of a request's head taken at most.
const HEAD_BYTES: usize = 4096;

#[derive(Debug, Parser)]
struct Options {
    threads: usize,
    #[arg(long)]
    truth: PathBuf,
}

/// What every connection needs.
#[derive(Debug)]
struct Service {
    executor: Executor<'static>,
    threads: usize,
    truth: File,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let truth = File::create(&options.truth)?;
    let service: &'static Service =
        Box::leak(Box::new(Service { executor: Executor::new(), threads: options.threads, truth }));
    for _ in 1..options.threads {
        std::thread::Builder::new()
            .name("smol-worker".to_owned())
            .spawn(|| smol::block_on(service.executor.run(future::pending::<()>())))?;
    }
    smol::block_on(service.executor.run(serve(service)))
}

async fn serve(service: &'static Service) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("ready {}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        service.executor.spawn(connection(stream, service)).detach();
    }
}

/// Answers one request after the other until the client goes away.
async fn connection(mut stream: TcpStream, service: &'static Service) -> Result<()> {
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
        let target = std::str::from_utf8(&head)?.split(' ').nth(1).context("no target")?;
        let (path, milliseconds) = target.split_once("?ms=").unwrap_or((target, "0"));
        let milliseconds = milliseconds.parse()?;
        match path {
            "/sleep" => render_thumbnail(milliseconds, "one", service),
            "/all" => hold_all(milliseconds, service),
            _ => {}
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

fn hold_all(milliseconds: u64, service: &'static Service) {
    let gate = Arc::new((Barrier::new(service.threads), AtomicU64::new(0)));
    let hold = move |gate: &(Barrier, AtomicU64)| {
        let rank = gate.1.fetch_add(1, Ordering::Relaxed);
        gate.0.wait();
        render_thumbnail(milliseconds + 150 * rank, "all", service);
    };
    for _ in 1..service.threads {
        let gate = Arc::clone(&gate);
        service.executor.spawn(async move { hold(&gate) }).detach();
    }
    hold(&gate);
}

#[inline(never)]
fn render_thumbnail(milliseconds: u64, kind: &str, service: &Service) {
    let start_ns = monotonic_ns();
    let line = line!() + 1;
    std::thread::sleep(Duration::from_millis(milliseconds));
    let record = serde_json::json!({
        "kind": kind, "function": "smol_target::render_thumbnail",
        "file": file!(), "line": line, "last_line": line, "thread": gettid().as_raw(),
        "start_ns": start_ns, "end_ns": monotonic_ns(),
    });
    // In one piece: the reader may come at any time. What cannot be written, the test will miss.
    let _ = (&service.truth).write_all(format!("{record}\n").as_bytes());
}
