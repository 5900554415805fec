//! Whether a state that somebody copied was whole: a count of its changes, and of those under way.
//!
//! Writers nest: a switch away from the CPU can come between the two ends of a change, and makes one of
//! its own. So both ends add to one word, in one instruction each, and never write back what they read.

/// What the beginning of a change adds. The low byte counts the changes under way.
pub const BEGIN: u64 = 1;

/// What its end adds: one change more, and one less under way.
pub const END: u64 = (1 << 8) - BEGIN;

/// Whether nobody was changing the state that has this version.
#[inline(always)]
pub const fn is_whole(version: u64) -> bool {
    version & 0xff == 0
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, is_whole};

    /// A reader that comes between any two steps of nested changes takes nothing half-done for whole, and
    /// never sees the same version before and after a change.
    #[test]
    fn writers_nest() {
        //  outer  ├──────────────────────────────┤
        //  inner        ├────────────┤
        //  inmost           ├────┤       ├────┤
        let steps = [BEGIN, BEGIN, BEGIN, END, END, BEGIN, END, END];
        let mut version = 0_u64;
        let mut seen = vec![version];
        for (index, step) in steps.into_iter().enumerate() {
            version += step;
            assert_eq!(is_whole(version), index == steps.len() - 1, "after step {index}");
            assert!(!seen.contains(&version));
            seen.push(version);
        }
        assert_eq!(version >> 8, 4);
    }
}
