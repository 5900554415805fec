//! Record bytes to events; the only reader of the wire's layout.

use profiler_ebpf::limits::{KERNEL_FRAMES, PYTHON_FRAMES, STACK_BYTES};
use profiler_ebpf::record::{Capture, CaptureHead, Exited, Ready, RecordHead, TurnEnded, kind};
use std::mem::offset_of;
use zerocopy::FromBytes;

use super::{Captured, Event};

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
            let TurnEnded { head, end_ns, turn } = prefix(bytes)?;
            Ok(Event::TurnEnded { tid: head.tid, end_ns, turn })
        }
        kind::READY => {
            let Ready { head, turn_start_ns, returned } = prefix(bytes)?;
            Ok(Event::Ready { tid: head.tid, turn_start_ns, returned })
        }
        kind::EXITED => {
            let Exited { head, at_ns, in_turn, turn } = prefix(bytes)?;
            Ok(Event::Exited { tid: head.tid, at_ns, turn: (in_turn == 1).then_some(turn) })
        }
        kind::CAPTURE => capture(bytes).map(|captured| Event::Captured(Box::new(captured))),
        kind::OTHER => capture(bytes).map(|captured| Event::Other(Box::new(captured))),
        kind::WOKEN => prefix(bytes).map(Event::Woken),
        kind::RIVALS => prefix(bytes).map(|rivals| Event::Rivals(Box::new(rivals))),
        unknown => Err(Malformed::UnknownKind(unknown)),
    }
}

/// A capture, as a record or as it lies in its slot.
pub fn capture(bytes: &[u8]) -> Result<Captured, Malformed> {
    let head: CaptureHead = prefix(bytes)?;
    let kernel = list(bytes, offset_of!(Capture, kernel), head.kernel_frames, KERNEL_FRAMES);
    let python = list(bytes, offset_of!(Capture, python), head.python_frames, PYTHON_FRAMES);
    let start = offset_of!(Capture, stack);
    let end = start + (head.stack_bytes as usize).min(STACK_BYTES);
    let stack = bytes.get(start..end).unwrap_or_default().to_vec();
    Ok(Captured { head, kernel, python, stack })
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
    use crate::source::Event;
    use profiler_ebpf::limits::{KERNEL_FRAMES, PYTHON_FRAMES, STACK_BYTES};
    use profiler_ebpf::record::{Capture, CaptureHead, RecordHead, TurnEnded, kind};
    use profiler_ebpf::turn::Turn;
    use std::mem::offset_of;
    use zerocopy::IntoBytes;

    /// The end of a turn comes back as it was sent.
    #[test]
    fn turn_ended() {
        let turn = Turn { start_ns: 5, running_ns: 7, ..Turn::default() };
        let head = RecordHead { kind: kind::TURN_ENDED, tid: 42 };
        let sent = TurnEnded { head, end_ns: 12, turn };
        assert_eq!(record(sent.as_bytes()), Ok(Event::TurnEnded { tid: 42, end_ns: 12, turn }));
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
            assert!(captured.python.len() <= PYTHON_FRAMES);
            assert!(captured.stack.len() <= STACK_BYTES);
            assert!(captured.stack.len() <= captured.head.stack_bytes as usize);
        });
    }
}
