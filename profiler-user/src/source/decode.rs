//! Record bytes to events; the only reader of the wire's layout.

use profiler_ebpf::limits::{KERNEL_FRAMES, PYTHON_FRAMES, STACK_BYTES};
use profiler_ebpf::record::{
    Capture, CaptureHead, Exited, Ready, RecordHead, TurnEnded, WAITING, ended, kind,
};
use std::mem::offset_of;
use zerocopy::FromBytes;

use super::{Captured, Ended, EndedBy, Event, ExitedBy, OtherWaiters};

/// Why bytes are no record: our own probes wrote them, so this is a bug or a mismatch, and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    TooShort,
    UnknownKind(u32),
}

/// One record.
pub fn record(bytes: &[u8]) -> Result<Event, Malformed> {
    let head: RecordHead = prefix(bytes)?;
    match head.kind {
        kind::TURN_ENDED => {
            let record: TurnEnded = prefix(bytes)?;
            let TurnEnded { head, end_ns, turn, .. } = record;
            Ok(Event::TurnEnded { tid: head.tid, end_ns, turn, ended: ended_of(&record) })
        }
        kind::READY => {
            let Ready { head, turn_start_ns, returned } = prefix(bytes)?;
            Ok(Event::Ready { tid: head.tid, turn_start_ns, returned })
        }
        kind::EXITED => {
            let Exited { head, at_ns, in_turn, executed, turn } = prefix(bytes)?;
            let by = if executed == 1 { ExitedBy::Exec } else { ExitedBy::Exit };
            Ok(Event::Exited { tid: head.tid, at_ns, turn: (in_turn == 1).then_some(turn), by })
        }
        kind::CAPTURE => capture(bytes).map(|captured| Event::Captured(Box::new(captured))),
        kind::OTHER => capture(bytes).map(|captured| Event::Other(Box::new(captured))),
        kind::WOKEN => prefix(bytes).map(Event::Woken),
        kind::ASLEEP => Ok(Event::Asleep),
        kind::CONTENDERS => prefix(bytes).map(|contenders| Event::Rivals(Box::new(contenders))),
        unknown => Err(Malformed::UnknownKind(unknown)),
    }
}

fn ended_of(record: &TurnEnded) -> Ended {
    let by = match record.by {
        ended::PARK => EndedBy::Park,
        ended::CLOSED => EndedBy::Close,
        _ => EndedBy::Wait,
    };
    let others = match record.others_left_ns {
        WAITING => OtherWaiters::Waiting,
        left_ns => OtherWaiters::LeftAt(left_ns),
    };
    Ended { by, left_ns: record.left_ns, others }
}

/// A capture, as a record or as it lies in its slot.
pub fn capture(bytes: &[u8]) -> Result<Captured, Malformed> {
    let head: CaptureHead = prefix(bytes)?;
    let kernel = list(bytes, offset_of!(Capture, kernel), head.kernel_frames, KERNEL_FRAMES);
    let interpreted = list(bytes, offset_of!(Capture, python), head.python_frames, PYTHON_FRAMES);
    let start = offset_of!(Capture, stack);
    let end = start + (head.stack_bytes as usize).min(STACK_BYTES);
    let stack = bytes.get(start..end).unwrap_or_default().to_vec();
    Ok(Captured { head, kernel, interpreted, stack })
}

fn prefix<T: FromBytes>(bytes: &[u8]) -> Result<T, Malformed> {
    T::read_from_prefix(bytes).map(|(value, _)| value).map_err(|_| Malformed::TooShort)
}

fn list<T: FromBytes>(bytes: &[u8], offset: usize, count: u32, most: usize) -> Vec<T> {
    let bytes = bytes.get(offset..).unwrap_or_default();
    bytes
        .chunks_exact(size_of::<T>())
        .take((count as usize).min(most))
        .filter_map(|chunk| T::read_from_bytes(chunk).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Malformed, record};
    use crate::hostile::{damage, rounds};
    use crate::source::{Ended, EndedBy, Event, OtherWaiters};
    use profiler_ebpf::limits::{KERNEL_FRAMES, PYTHON_FRAMES, STACK_BYTES};
    use profiler_ebpf::record::{
        Capture, CaptureHead, RecordHead, TurnEnded, WAITING, ended, kind,
    };
    use profiler_ebpf::turn::Turn;
    use std::mem::offset_of;
    use zerocopy::IntoBytes;

    /// The end of a turn comes back as it was sent.
    #[test]
    fn turn_ended() {
        let turn = Turn { start_ns: 5, running_ns: 7, ..Turn::default() };
        let head = RecordHead { kind: kind::TURN_ENDED, tid: 42 };
        let told = |by, others_left_ns| {
            let (end_ns, left_ns, reserved) = (12, 5, 0);
            let sent = TurnEnded { head, end_ns, turn, left_ns, others_left_ns, by, reserved };
            record(sent.as_bytes())
        };
        let ended = |by, others| Ended { by, left_ns: 5, others };
        for (by, others_left_ns, expected) in [
            (ended::WAIT, WAITING, ended(EndedBy::Wait, OtherWaiters::Waiting)),
            (ended::PARK, 3, ended(EndedBy::Park, OtherWaiters::LeftAt(3))),
            (ended::CLOSED, 0, ended(EndedBy::Close, OtherWaiters::LeftAt(0))),
        ] {
            let event = Event::TurnEnded { tid: 42, end_ns: 12, turn, ended: expected };
            assert_eq!(told(by, others_left_ns), Ok(event));
        }
    }

    /// A capture carries as much stack as its head says, and a head alone carries none.
    #[test]
    fn captures_of_true_length() {
        let mut head = CaptureHead {
            head: RecordHead { kind: kind::CAPTURE, tid: 1 },
            kernel_frames: 1,
            stack_bytes: 3,
            ..CaptureHead::default()
        };
        let mut bytes = vec![0u8; offset_of!(Capture, stack) + 3];
        bytes[..size_of::<CaptureHead>()].copy_from_slice(head.as_bytes());
        bytes[offset_of!(Capture, kernel)] = 9;
        bytes[offset_of!(Capture, stack)..].copy_from_slice(b"abc");
        let Ok(Event::Captured(captured)) = record(&bytes) else { panic!("no capture") };
        assert_eq!(
            (captured.kernel.as_slice(), captured.stack.as_slice()),
            (&[9][..], &b"abc"[..])
        );

        head.stack_bytes = 0;
        let Ok(Event::Captured(captured)) = record(head.as_bytes()) else { panic!("no capture") };
        assert!(captured.stack.is_empty() && captured.kernel.is_empty());
    }

    /// Bytes that are no record are told apart from records, at any length.
    #[test]
    fn malformed() {
        assert_eq!(record(&[1, 0]), Err(Malformed::TooShort));
        let head = RecordHead { kind: kind::TURN_ENDED, tid: 1 };
        assert_eq!(record(head.as_bytes()), Err(Malformed::TooShort));
        let head = RecordHead { kind: 77, tid: 1 };
        assert_eq!(record(head.as_bytes()), Err(Malformed::UnknownKind(77)));
    }

    /// Records that a mismatch of versions or torn memory made: no list is longer than there is room
    /// for, and nothing is made up that was not there.
    #[test]
    fn damaged() {
        rounds(2000, |random| {
            let length = match random.below(3) {
                0 => random.below(size_of::<Capture>() + 100),
                1 => random.below(size_of::<CaptureHead>() + 100),
                _ => random.below(100),
            };
            let mut bytes = random.bytes(64);
            bytes.resize(length, 0x5a);
            let kinds = [kind::TURN_ENDED, kind::READY, kind::EXITED, kind::CAPTURE];
            if random.once_in(2) && length >= size_of::<RecordHead>() {
                bytes[..4].copy_from_slice(&random.pick(&kinds).to_le_bytes());
            }
            damage(random, &mut bytes);
            let Ok(Event::Captured(captured)) = record(&bytes) else { return };
            assert!(captured.kernel.len() <= KERNEL_FRAMES);
            assert!(captured.interpreted.len() <= PYTHON_FRAMES);
            assert!(captured.stack.len() <= STACK_BYTES);
            assert!(captured.stack.len() <= captured.head.stack_bytes as usize);
        });
    }
}
