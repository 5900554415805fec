//! A cause that is a blocked system call, or a sleep, to its words.

use super::futex;
use crate::call::is_remote;
use crate::report::schema::call::{
    self as schema, DescriptorKind, Purpose, ReportedCall, ReportedPeer,
};
use crate::report::schema::stall::CauseKind;
use crate::report::units::milliseconds;

/// A blocked call or a sleep in words.
pub fn phrase(kind: &CauseKind) -> String {
    match kind {
        CauseKind::Syscall { syscall, target, call, .. } => {
            blocked(syscall, target.as_deref(), call)
        }
        CauseKind::Sleep { purpose: Some(Purpose::SqliteBusy), path, held_by, .. } => {
            sqlite(path.as_deref(), held_by)
        }
        CauseKind::Sleep { purpose: Some(Purpose::TimedWait), ran_out_ns, asked_ns, .. } => {
            futex::ran_out(ran_out_ns, *asked_ns)
        }
        CauseKind::Sleep { syscall, asked_ns: Some(asked_ns), .. } => {
            format!("asleep in {syscall} ({} ms asked for)", milliseconds(*asked_ns))
        }
        CauseKind::Sleep { syscall, .. } => format!("asleep in {syscall}"),
        _ => String::new(),
    }
}

fn blocked(syscall: &str, target: Option<&str>, call: &ReportedCall) -> String {
    let on = target.map(|target| format!(" on {target}")).unwrap_or_default();
    match call.purpose {
        Some(Purpose::NameResolution) => {
            let at = target.map(|target| format!(" at {target}")).unwrap_or_default();
            format!("looking up a host name{at}{}", limit(call))
        }
        Some(Purpose::SqliteBusy) => sqlite(call.path.as_deref(), &call.held_by),
        Some(Purpose::FileLock) => format!("waiting for a file lock{on}{}", held(&call.held_by)),
        Some(Purpose::ProgramStart) => starting(call),
        Some(Purpose::AccessCheck) => {
            let on =
                target.map_or_else(|| " on a file".to_owned(), |target| format!(" on {target}"));
            format!("blocked in {syscall}{on}{}, {}", elsewhere(call), checked(&call.held_by))
        }
        Some(Purpose::CompletionQueue) => {
            let peer = target.map(|target| format!(", peer {target}")).unwrap_or_default();
            format!("waiting for gRPC's completion queue{peer}")
        }
        Some(Purpose::ChildProcess) => {
            format!("waiting for {}", target.unwrap_or("a child process"))
        }
        Some(Purpose::TimedWait) | None if is_inbound(call) => {
            let missing = if syscall.starts_with("send") || syscall.starts_with("write") {
                "a client takes no more of its response"
            } else {
                "a client's request does not come"
            };
            format!("blocked in {syscall}{on}: {missing}{}", limit(call))
        }
        Some(Purpose::TimedWait) | None => {
            let (elsewhere, connecting) = (elsewhere(call), connecting(call));
            let partner = partner(syscall, call);
            format!("blocked in {syscall}{on}{elsewhere}{partner}{connecting}{}", limit(call))
        }
    }
}

/// Whether all that it waits for are clients, which connected to the process.
fn is_inbound(call: &ReportedCall) -> bool {
    let mut seen = call.descriptor.iter().chain(&call.polled).peekable();
    seen.peek().is_some() && call.polled_more == 0 && seen.all(|it| it.is_inbound)
}

/// `starting ./tool, whose exec takes long`; where no child was seen in its exec, it may be the fork that does.
fn starting(call: &ReportedCall) -> String {
    let why = match call.held_by.as_slice() {
        [] => "whose exec takes long".to_owned(),
        held_by => checked(held_by),
    };
    match (&call.path, &call.child) {
        (Some(path), _) => format!("starting {path}, {why}"),
        (None, Some(child)) => format!("starting {}, {why}", words_of(child)),
        (None, None) => "starting a program".to_owned(),
    }
}

/// `which process 4711 (scanner) checks on access`
fn checked(held_by: &[ReportedPeer]) -> String {
    let who = held_by.first().map_or_else(|| "another process".to_owned(), words_of);
    format!("which {who} checks on access")
}

/// `, without a timeout`, or ` (timeout 800 ms)`, where one can be set.
fn limit(call: &ReportedCall) -> String {
    let is_socket = |seen: &schema::ReportedDescriptor| seen.kind == DescriptorKind::Socket;
    let can_be_set = !call.polled.is_empty() || call.descriptor.as_ref().is_some_and(is_socket);
    match call.timeout.as_ref().filter(|_| can_be_set) {
        Some(schema::ReportedTimeout::None) => ", without a timeout".to_owned(),
        Some(schema::ReportedTimeout::Ns(ns)) if milliseconds(*ns) > 0 => {
            format!(" (timeout {} ms)", milliseconds(*ns))
        }
        _ => String::new(),
    }
}

/// ` to process 4711 (log-collector)`: a pipe has no other name.
fn partner(syscall: &str, call: &ReportedCall) -> String {
    let pipe = call.descriptor.as_ref().filter(|seen| seen.kind == DescriptorKind::Pipe);
    let Some(peer) = pipe.and_then(|seen| seen.process.as_ref()) else { return String::new() };
    let towards = if syscall.starts_with("write") { "to" } else { "from" };
    format!(" {towards} {}", words_of(peer))
}

/// `process 4711 (backup)`
fn words_of(peer: &ReportedPeer) -> String {
    let name = peer.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    format!("process {}{name}", peer.pid)
}

/// `, still connecting`: a `poll` does not say that it is not yet for an answer.
fn connecting(call: &ReportedCall) -> &'static str {
    let is_connecting =
        |seen: &schema::ReportedDescriptor| seen.state.as_deref() == Some("syn_sent");
    if call.polled.iter().any(is_connecting) { ", still connecting" } else { "" }
}

/// ` (nfs4)`, of a file that is not on a disk of this machine.
fn elsewhere(call: &ReportedCall) -> String {
    let of_descriptor = call.descriptor.as_ref().and_then(|seen| seen.file_system.as_deref());
    let file_system = call.file_system.as_deref().or(of_descriptor).filter(|name| is_remote(name));
    file_system.map(|name| format!(" ({name})")).unwrap_or_default()
}

fn sqlite(path: Option<&str>, held_by: &[ReportedPeer]) -> String {
    let which = path.map(|path| format!(" ({path})")).unwrap_or_default();
    format!("waiting for a locked SQLite database{which}{}", held(held_by))
}

/// `, held by process 4711 (backup)`
fn held(held_by: &[ReportedPeer]) -> String {
    let Some((first, others)) = held_by.split_first() else { return String::new() };
    let others = match others.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    format!(", held by {}{others}", words_of(first))
}
