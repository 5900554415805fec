//! Figures taken in turn, with and without, to their median ratio or difference and its spread.

use serde::Serialize;

/// The middle of some figures, and the quartiles around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

impl Spread {
    /// `None` of no figures.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&sorted, share);
        Some(Self { low: at(0.25)?, median: at(0.5)?, high: at(0.75)? })
    }
}

/// Between the two nearest figures, in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (sorted.get(place.floor() as usize)?, sorted.get(place.ceil() as usize)?);
    Some(below + (above - below) * place.fract())
}

/// Each figure of a round by its neighbour of the same round: what disturbs the machine for longer than a
/// round disturbs both, and falls out.
pub fn ratios(off: &[f64], on: &[f64]) -> Vec<f64> {
    off.iter().zip(on).map(|(off, on)| on / off).filter(|ratio| ratio.is_finite()).collect()
}

/// The same for what is added, not multiplied.
pub fn differences(off: &[f64], on: &[f64]) -> Vec<f64> {
    off.iter().zip(on).map(|(off, on)| on - off).collect()
}

/// The order of the arms in a round: every other one runs backwards, so that whatever grows during a run
/// favours no arm.
pub fn order(round: usize, arms: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..arms).collect() } else { (0..arms).rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::{Spread, differences, order, ratios};

    /// Quartiles lie between figures where no figure stands at their place.
    #[test]
    fn quartiles() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        let alone = Spread::of(&[7.0]).unwrap();
        assert_eq!((alone.low, alone.median, alone.high), (7.0, 7.0, 7.0));
        assert_eq!(Spread::of(&[]), None);
    }

    /// A machine that halves its speed from one round to the next leaves the paired ratio alone.
    #[test]
    fn slow_disturbances_fall_out() {
        let (off, on) = ([100.0, 50.0, 100.0], [98.0, 49.0, 98.0]);
        assert_eq!(Spread::of(&ratios(&off, &on)).unwrap().median, 0.98);
        assert_eq!(differences(&off, &on), [-2.0, -1.0, -2.0]);
    }

    /// A round in which nothing ran has no ratio.
    #[test]
    fn an_empty_round_has_no_ratio() {
        assert_eq!(ratios(&[0.0, 2.0], &[3.0, 3.0]), [1.5]);
    }

    /// Every arm once a round, first and last in turn.
    #[test]
    fn rounds_alternate() {
        assert_eq!(order(0, 3), [0, 1, 2]);
        assert_eq!(order(1, 3), [2, 1, 0]);
    }
}
