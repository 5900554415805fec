//! The numbered list of what the kernel side loses or cannot do; the daemon reads and names it.

/// One kind of loss. The number is the index in the counters' map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The ring buffer had no room for the end of a stall.
    EndLost,
    /// The ring buffer had no room for a capture.
    CaptureLost,
    /// The ring buffer had no room for another small record.
    RecordLost,
    /// A thread waits like an event loop, but every slot is taken.
    NoSlot,
    /// Part of a user stack could not be read.
    StackUnreadable,
    /// A wait was entered twice without having been left: its return was missed.
    WaitReturnMissed,
    /// A thread came onto a CPU, or was seen on one, without the scheduler having said so.
    SwitchMissed,
    /// A wait on another instance than the loop's own, whose file could not be read.
    InstanceUnreadable,
    /// A thread was seen to hold or to give back what a loop waits for, but there was no room to take
    /// its stack.
    OtherUntaken,
    /// A thread was inside its own wait, whose entry had been missed: its turn was ended there.
    WaitEntryHealed,
    /// A thread was outside its own wait, whose return had been missed: a turn was begun there.
    WaitReturnHealed,
}

impl Counter {
    /// Every counter, in the order of its number.
    pub const ALL: [Self; 11] = [
        Self::EndLost,
        Self::CaptureLost,
        Self::RecordLost,
        Self::NoSlot,
        Self::StackUnreadable,
        Self::WaitReturnMissed,
        Self::SwitchMissed,
        Self::InstanceUnreadable,
        Self::OtherUntaken,
        Self::WaitEntryHealed,
        Self::WaitReturnHealed,
    ];

    /// The name under which a report's `lost` shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EndLost => "stall_ends",
            Self::CaptureLost => "captures",
            Self::RecordLost => "records",
            Self::NoSlot => "loops_without_slot",
            Self::StackUnreadable => "stacks_unreadable",
            Self::WaitReturnMissed => "wait_returns",
            Self::SwitchMissed => "switches",
            Self::InstanceUnreadable => "epoll_instances_unreadable",
            Self::OtherUntaken => "other_threads",
            Self::WaitEntryHealed => "wait_entries_healed",
            Self::WaitReturnHealed => "wait_returns_healed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Counter;

    /// The list stands in the order of the numbers: the daemon indexes by position.
    #[test]
    fn numbered_by_position() {
        for (position, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, position);
        }
    }
}
