//! Times, addresses and shares as reports have them.

/// With two digits that count: `0.3`, `0.042`, `1.5`, and whole ones from ten on.
pub fn short_milliseconds(ns: u64) -> String {
    const DIGITS: [(u64, usize, u64); 4] =
        [(9_950_000, 0, 1_000_000), (995_000, 1, 100_000), (99_500, 2, 10_000), (0, 3, 1_000)];
    let (_, digits, unit_ns) =
        DIGITS.into_iter().find(|(from_ns, ..)| ns >= *from_ns).unwrap_or_default();
    let units = ns.saturating_add(unit_ns / 2) / unit_ns.max(1);
    let text = format!("{:.digits$}", units as f64 / 10_f64.powi(digits as i32));
    if digits == 0 {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Rounded to the nearest.
pub fn milliseconds(ns: u64) -> u64 {
    const NS_PER_MS: u64 = 1_000_000;
    ns / NS_PER_MS + u64::from(ns % NS_PER_MS >= NS_PER_MS / 2)
}

/// As reports write addresses and arguments.
pub fn hexadecimal(value: u64) -> String {
    format!("{value:#x}")
}

/// Whether a part has this much of a whole.
pub fn is_percent(part: u64, whole: u64, percent: u64) -> bool {
    u128::from(part) * 100 >= u128::from(whole) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::{milliseconds, short_milliseconds};

    /// Short times have two digits that count.
    #[test]
    fn short_times() {
        let table = [
            (0, "0"),
            (1_499, "0.001"),
            (41_600, "0.042"),
            (99_700, "0.1"),
            (299_000, "0.3"),
            (264_000, "0.26"),
            (996_000, "1"),
            (1_540_000, "1.5"),
            (9_960_000, "10"),
            (12_400_000, "12"),
        ];
        for (ns, expected) in table {
            assert_eq!(short_milliseconds(ns), expected, "{ns}");
        }
    }

    /// Half a millisecond counts as one, and the largest number is no exception.
    #[test]
    fn rounding() {
        assert_eq!(milliseconds(499_999), 0);
        assert_eq!(milliseconds(500_000), 1);
        assert_eq!(milliseconds(u64::MAX), 18_446_744_073_710);
    }
}
