//! The smallest event loop there is: a process that waits by epoll for a byte and sends it back.

use std::fs::File;
use std::io::{Read as _, Write as _, stdin, stdout};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// The argument by which this program runs as the echo.
pub const COMMAND: &str = "echo";

/// Sends back what comes in, until there is no more.
pub fn run() -> Result<()> {
    let input = stdin().as_fd().try_clone_to_owned()?;
    let mut output = File::from(stdout().as_fd().try_clone_to_owned()?);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&input, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    let mut input = File::from(input);
    let mut events = [EpollEvent::empty()];
    let mut byte = [0];
    loop {
        epoll.wait(&mut events, EpollTimeout::NONE)?;
        if input.read(&mut byte)? == 0 {
            return Ok(());
        }
        output.write_all(&byte)?;
    }
}

/// The echo in a process of its own. Ends with its owner.
#[derive(Debug)]
pub struct Echo {
    child: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Echo {
    pub fn start() -> Result<Self> {
        let program = std::env::current_exe().context("this program has no path")?;
        let mut command = Command::new(program);
        command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("the echo does not start")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (to, from) = pipes.context("the echo has no pipes")?;
        let mut echo = Self { child, to, from };
        // It has its epoll instance once it answers.
        echo.turn()?;
        Ok(echo)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// One turn of its loop: it is woken, answers, and waits again.
    fn turn(&mut self) -> Result<()> {
        let mut byte = [0];
        self.to.write_all(&byte)?;
        self.from.read_exact(&mut byte).context("the echo does not answer")
    }

    /// Turn after turn for that long; returns how many.
    pub fn keep_busy(&mut self, time: Duration) -> Result<u64> {
        // So many turns between two looks at the clock take well under a millisecond.
        const BATCH: u64 = 64;
        let until = Instant::now() + time;
        let mut turns = 0;
        while Instant::now() < until {
            for _ in 0..BATCH {
                self.turn()?;
            }
            turns += BATCH;
        }
        Ok(turns)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing left to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
