//! Whatever may end the watching: signals, the end of the time to watch, the target's exit.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Sleep;

use crate::process::target::Target;
use crate::report::schema::session::EndReason;
use crate::sink::outbox::Outbox;

/// Becomes readable when the process exits.
pub fn exit_of(target: &Target) -> io::Result<AsyncFd<OwnedFd>> {
    readable(target.exit()?)
}

/// A descriptor that is waited for to become readable.
#[expect(
    deprecated,
    reason = "what takes its place is unsafe, and asks for a descriptor that stays the same, as an owned one does"
)]
pub fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}

/// Everything that may ask us to stop.
#[derive(Debug)]
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    /// Where lines go to a file, a hang-up asks for a new one, as after a rotation of logs.
    pub reopens: Option<Outbox>,
    limit: Option<Duration>,
    duration: Option<Pin<Box<Sleep>>>,
}

impl Stop {
    pub fn new(limit: Option<Duration>) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            reopens: None,
            limit,
            duration: None,
        })
    }

    /// The duration begins so long from now.
    pub fn count_from(&mut self, later: Duration) {
        let sleep = |limit: Duration| Box::pin(tokio::time::sleep(limit.saturating_add(later)));
        self.duration = self.limit.map(sleep);
    }

    /// How long it may last is no matter any more.
    pub fn forget_duration(&mut self) {
        self.duration = None;
    }

    pub async fn asked(&mut self) -> EndReason {
        loop {
            let over = async {
                match &mut self.duration {
                    Some(sleep) => sleep.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return EndReason::Signal,
                _ = self.terminate.recv() => return EndReason::Signal,
                _ = self.hang_up.recv() => match &self.reopens {
                    Some(outbox) => outbox.reopen(),
                    None => return EndReason::Signal,
                },
                () = over => return EndReason::DurationOver,
            }
        }
    }
}
