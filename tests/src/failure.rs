//! What can be wrong with a session's reports, and the sentence for each.

use std::fmt;

use crate::clock::milliseconds;

/// One thing that a session's lines got wrong. `stall` is the id that they gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// A stall that the target recorded, at least twice the threshold, without a report.
    Missed {
        kind: String,
        start_ns: u64,
        visible_ns: u64,
    },
    /// A report of which the target's records explain too little.
    Invented {
        stall: String,
        duration_ns: u64,
        explained_ns: u64,
        culprit: String,
    },
    /// A report of a turn that is no stall.
    BelowThreshold {
        stall: String,
        duration_ns: u64,
        threshold_ns: u64,
    },
    /// Two reports of one thread claim the same time.
    Overlapping {
        stall: String,
        other: String,
    },
    WrongStart {
        stall: String,
        kind: String,
        reported_ns: u64,
        recorded_ns: u64,
    },
    WrongDuration {
        stall: String,
        kind: String,
        reported_ns: u64,
        recorded_ns: u64,
        bound_ns: u64,
    },
    WrongCulprit {
        stall: String,
        recorded: String,
        reported: String,
    },
    /// A long stall of which nothing was said while it lasted.
    NeverOpened {
        stall: String,
        kind: String,
    },
    OpenedLate {
        stall: String,
        kind: String,
        after_ns: u64,
        allowed_ns: u64,
    },
    /// A line whose states do not add up to its duration.
    SumDiffers {
        stall: String,
        sum_ns: u64,
        duration_ns: u64,
    },
    /// The lines of one stall contradict each other.
    Disordered {
        stall: String,
        what: &'static str,
    },
    /// The session's lines break the contract as a whole.
    Contract(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: &u64| milliseconds(*ns);
        match self {
            Self::Missed { kind, start_ns, visible_ns } => {
                write!(to, "{kind} stall of {} at {start_ns} ns was not reported", ms(visible_ns))
            }
            Self::Invented { stall, duration_ns, explained_ns, culprit } => write!(
                to,
                "stall {stall} of {} at {culprit}: the target explains only {} of it",
                ms(duration_ns),
                ms(explained_ns)
            ),
            Self::BelowThreshold { stall, duration_ns, threshold_ns } => write!(
                to,
                "stall {stall} lasted {}, less than the threshold of {}",
                ms(duration_ns),
                ms(threshold_ns)
            ),
            Self::Overlapping { stall, other } => {
                write!(to, "stalls {stall} and {other} of one thread overlap")
            }
            Self::WrongStart { stall, kind, reported_ns, recorded_ns } => write!(
                to,
                "stall {stall} ({kind}) starts at {reported_ns} ns, the target says {recorded_ns} ns: {} apart",
                milliseconds(reported_ns.abs_diff(*recorded_ns))
            ),
            Self::WrongDuration { stall, kind, reported_ns, recorded_ns, bound_ns } => write!(
                to,
                "stall {stall} ({kind}) lasts {}, the target says {}, allowed difference {}",
                ms(reported_ns),
                ms(recorded_ns),
                ms(bound_ns)
            ),
            Self::WrongCulprit { stall, recorded, reported } => {
                write!(to, "stall {stall} is blamed on {reported}, the target says {recorded}")
            }
            Self::NeverOpened { stall, kind } => {
                write!(to, "stall {stall} ({kind}) was not reported while it lasted")
            }
            Self::OpenedLate { stall, kind, after_ns, allowed_ns } => write!(
                to,
                "stall {stall} ({kind}) was first reported {} after its start, allowed {}",
                ms(after_ns),
                ms(allowed_ns)
            ),
            Self::SumDiffers { stall, sum_ns, duration_ns } => {
                write!(to, "stall {stall}: states sum to {sum_ns} ns, duration is {duration_ns} ns")
            }
            Self::Disordered { stall, what } => write!(to, "stall {stall}: {what}"),
            Self::Contract(sentence) => to.write_str(sentence),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Failure;

    /// A sentence says how much is wrong, in milliseconds.
    #[test]
    fn a_failure_says_how_much() {
        let failure = Failure::WrongDuration {
            stall: "7".to_owned(),
            kind: "sleep".to_owned(),
            reported_ns: 310_000_000,
            recorded_ns: 300_000_000,
            bound_ns: 5_000_000,
        };
        assert_eq!(
            failure.to_string(),
            "stall 7 (sleep) lasts 310.0 ms, the target says 300.0 ms, allowed difference 5.0 ms"
        );
    }
}
