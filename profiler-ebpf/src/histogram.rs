//! A duration to one of 256 buckets, eight an octave: the rule by which the probes count, and how to read it back.
//!
//! A bucket stands for its midpoint, which is within 6.25 % of every value that it holds: buckets are
//! an eighth of their octave wide, and an octave's first value is the smallest.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first octave begins at 256 ns. What is shorter counts as that: no switch of tasks is.
const FIRST_OCTAVE: u32 = 8;

/// Octaves: the last ends at 2^40 ns, 18 minutes. What is longer counts as that.
const OCTAVES: usize = 32;

/// A power of two, as the mask below needs it.
const BUCKETS_PER_OCTAVE: usize = 8;

/// All buckets: a power of two, because the verifier follows masks.
pub const BUCKETS: usize = OCTAVES * BUCKETS_PER_OCTAVE;

/// Durations by bucket.
#[derive(Debug, Clone, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Histogram {
    /// Values counted, by bucket; never taken back.
    pub counts: [u64; BUCKETS],
    /// The greatest value of the present interval, exact, in the cell that the daemon has chosen; the
    /// other one is the daemon's, to read and to clear.
    pub greatest_ns: [u64; 2],
}

/// The bucket of a value. Without branches but for the two bounds.
#[inline(always)]
pub const fn bucket_of(value_ns: u64) -> usize {
    const LEAST: u64 = 1 << FIRST_OCTAVE;
    const GREATEST: u64 = (LEAST << OCTAVES) - 1;
    let value = if value_ns < LEAST { LEAST } else { value_ns };
    let value = if value > GREATEST { GREATEST } else { value };
    let octave = highest_bit(value);
    let within = (value >> (octave - BUCKETS_PER_OCTAVE.trailing_zeros())) as usize;
    (octave - FIRST_OCTAVE) as usize * BUCKETS_PER_OCTAVE + within % BUCKETS_PER_OCTAVE
}

/// The number of the highest bit that is set. BPF has no instruction for it: every bit below it is
/// set, too, and all of them are counted in parallel (H. Warren, Hacker's Delight, 5-1 and 5-3).
#[inline(always)]
const fn highest_bit(value: u64) -> u32 {
    let mut bits = value;
    bits |= bits >> 1;
    bits |= bits >> 2;
    bits |= bits >> 4;
    bits |= bits >> 8;
    bits |= bits >> 16;
    bits |= bits >> 32;
    bits -= (bits >> 1) & 0x5555_5555_5555_5555;
    bits = (bits & 0x3333_3333_3333_3333) + ((bits >> 2) & 0x3333_3333_3333_3333);
    bits = (bits + (bits >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bits.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32 - 1
}

/// The value that a bucket stands for, ns.
pub const fn midpoint_ns(bucket: usize) -> u64 {
    let octave = FIRST_OCTAVE + (bucket / BUCKETS_PER_OCTAVE) as u32;
    let width = 1 << (octave - BUCKETS_PER_OCTAVE.trailing_zeros());
    (BUCKETS_PER_OCTAVE + bucket % BUCKETS_PER_OCTAVE) as u64 * width + width / 2
}

impl Histogram {
    /// Counts a value; `cell` chooses where the greatest one is kept.
    #[inline(always)]
    pub fn add(&mut self, value_ns: u64, cell: u64) {
        // The verifier knows bounds by masks. The compiler keeps them: it cannot prove that a count of
        // bits is below 40.
        let bucket = bucket_of(value_ns) & (BUCKETS - 1);
        let cell = cell as usize & 1;
        self.counts[bucket] += 1;
        if value_ns > self.greatest_ns[cell] {
            self.greatest_ns[cell] = value_ns;
        }
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds what another one has counted.
    pub fn add_all(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        for (greatest, other) in self.greatest_ns.iter_mut().zip(other.greatest_ns) {
            *greatest = other.max(*greatest);
        }
    }

    /// What was counted since an earlier copy.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = self.clone();
        for (count, before) in later.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        later
    }

    /// The value that so many of a thousand do not exceed, ns, within half a bucket; of nothing there
    /// is none.
    pub fn quantile_ns(&self, per_thousand: u32) -> Option<u64> {
        let rank = (u128::from(self.count()) * u128::from(per_thousand)).div_ceil(1000);
        let mut seen = 0;
        let holds = |(bucket, count): (usize, &u64)| {
            seen += u128::from(*count);
            (*count > 0 && seen >= rank).then_some(bucket)
        };
        self.counts.iter().enumerate().find_map(holds).map(midpoint_ns)
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::{BUCKETS, Histogram, bucket_of, highest_bit, midpoint_ns};

    const MINUTE_NS: u64 = 60_000_000_000;

    /// Values from every part of the range: around each power of two, around each border of a bucket,
    /// and between, evenly in their logarithm.
    fn values() -> impl Iterator<Item = u64> {
        let environment = |value: u64| (value - 2..=value + 2).chain([value + value / 7]);
        let powers = (2..63).flat_map(move |power| environment(1 << power));
        let borders =
            (0..BUCKETS).flat_map(move |bucket| environment(midpoint_ns(bucket) / 17 * 16));
        let between = std::iter::successors(Some(3_u64), |value| {
            value.checked_add(value / 997 + 1).filter(|value| *value < 1 << 62)
        });
        powers.chain(borders).chain(between)
    }

    /// Within the range, what is read back is within 7 % of what was counted.
    #[test]
    fn error_is_bounded() {
        let mut seen = 0;
        for value in values().filter(|value| (256..=10 * MINUTE_NS).contains(value)) {
            let told = midpoint_ns(bucket_of(value));
            assert!(told.abs_diff(value) * 100 < value * 7, "{value} became {told}");
            seen += 1;
        }
        assert!(seen > 10_000, "{seen} values prove little");
    }

    /// A greater value is never in a lesser bucket, and every bucket is used.
    #[test]
    fn buckets_are_in_order() {
        let mut sorted: Vec<u64> = values().collect();
        sorted.sort_unstable();
        for pair in sorted.windows(2) {
            assert!(bucket_of(pair[0]) <= bucket_of(pair[1]), "{pair:?}");
        }
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(midpoint_ns(bucket)), bucket);
        }
    }

    /// What lies outside of the range is counted at its ends.
    #[test]
    fn beyond_the_range() {
        assert_eq!([0, 1, 255].map(bucket_of), [0; 3]);
        assert_eq!([1 << 40, u64::MAX].map(bucket_of), [BUCKETS - 1; 2]);
    }

    /// Counting bits in parallel finds what the host's own instruction finds.
    #[test]
    fn highest_bits() {
        for value in values().chain([1, 2, 3, u64::MAX]) {
            assert_eq!(highest_bit(value), value.ilog2());
        }
    }

    /// Percentiles are those of the values, within half a bucket; of nothing there are none.
    #[test]
    fn quantiles() {
        let mut histogram = Histogram::new_zeroed();
        assert_eq!(histogram.quantile_ns(500), None);
        for value in 1..=1000 {
            histogram.add(value * 1000, 0);
        }
        for (per_thousand, value) in [(1, 1000), (500, 500_000), (990, 990_000), (999, 999_000)] {
            let told = histogram.quantile_ns(per_thousand).unwrap();
            assert!(told.abs_diff(value) * 100 < value * 7, "{value} became {told}");
        }
        assert_eq!((histogram.count(), histogram.greatest_ns), (1000, [1_000_000, 0]));
    }

    /// Two loops' values together are as if one had counted them all.
    #[test]
    fn together() {
        let mut one = Histogram::new_zeroed();
        let mut other = Histogram::new_zeroed();
        one.add(1000, 0);
        other.add(1000, 0);
        other.add(9000, 0);
        one.add_all(&other);
        assert_eq!((one.count(), one.greatest_ns), (3, [9000, 0]));
        assert_eq!(one.quantile_ns(500).map(bucket_of), Some(bucket_of(1000)));
    }

    /// What came since is the difference, and the greatest value goes to the cell that is chosen.
    #[test]
    fn since_a_copy() {
        let mut histogram = Histogram::new_zeroed();
        histogram.add(5000, 0);
        let before = histogram.clone();
        histogram.add(700, 1);
        let since = histogram.since(&before);
        assert_eq!((since.count(), since.greatest_ns), (1, [5000, 700]));
        assert_eq!(since.quantile_ns(999).map(bucket_of), Some(bucket_of(700)));
    }
}
