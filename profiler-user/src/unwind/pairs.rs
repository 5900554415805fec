//! Which call of the interpreter's main loop ran which Python frames, as far as that can be proved.
//!
//! Since 3.12 every call links a frame of its own into Python's chain, which lies in the call's stack
//! frame: its address is the proof. Before, there is the order alone, and these things can upset it:
//!
//! - A call that is being entered or left has no frames in Python's chain.
//! - A native stack that was cut off hides how many calls there are.
//! - `throw()` resumes the innermost of generators that wait for each other; the others stand in Python's
//!   chain (3.10, 3.11) without being run by a call. 3.9 besides loses the callers of such a chain.

use std::ops::Range;

/// A native frame of the interpreter's main loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalCall {
    /// Its place among the native frames.
    pub frame: usize,
    /// Its part of the thread's stack; empty where its end is not known.
    pub stack: Range<u64>,
}

/// What is known of the Python frames that one call ran.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvalRun {
    /// Where the call's own frame lies on the thread's stack, since 3.12.
    pub anchor: Option<u64>,
    /// Maybe no call ran it: a generator or coroutine which waits for the one that is further in.
    pub may_wait: bool,
}

/// Frames in the middle of Python's chain that are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole {
    /// How many spans lie further in.
    pub at: usize,
    /// The last of these is not known to have ended: the first span further out may be of the same call.
    pub may_go_on: bool,
    pub left_out: u32,
}

/// Both sides of a stack, innermost first.
#[derive(Debug)]
pub struct Sides<'a> {
    pub calls: &'a [EvalCall],
    /// Where the native stack was cut off, if it was: the stack pointer in its last frame.
    pub native_cut_at: Option<u64>,
    pub spans: &'a [EvalRun],
    /// Whether the walk ended before the outermost frame. The last span may then lack frames.
    pub python_is_cut: bool,
    pub hole: Option<Hole>,
}

/// For each span the number of its call. Where there are fewer calls than spans, the remaining ones ran
/// further out. None: that is not proved.
pub fn pair(sides: &Sides<'_>) -> Option<Vec<usize>> {
    if sides.spans.is_empty() {
        return (sides.calls.is_empty() || sides.python_is_cut).then(Vec::new);
    }
    if sides.spans.iter().any(|span| span.anchor.is_some()) {
        by_address(sides)
    } else if let Some(hole) = sides.hole {
        around_hole(sides, hole)
    } else if !sides.python_is_cut
        && (sides.native_cut_at.is_none() || sides.calls.len() == sides.spans.len())
    {
        // Where both have as many, the cut hid none: it lies in the code of whoever embeds Python.
        by_count(sides.calls.len(), sides.spans)
    } else {
        from_inside(sides)
    }
}

fn by_address(sides: &Sides<'_>) -> Option<Vec<usize>> {
    let mut pairs: Vec<usize> = Vec::new();
    for (place, span) in sides.spans.iter().enumerate() {
        let goes_on = sides.hole.is_some_and(|hole| hole.at == place && hole.may_go_on);
        let from = pairs.last().map_or(0, |last| last + usize::from(!goes_on));
        let found = match span.anchor {
            Some(anchor) => (from..sides.calls.len())
                .find(|&call| sides.calls.get(call).is_some_and(|c| c.stack.contains(&anchor))),
            // The walk was cut off within what this call ran.
            None => (from < sides.calls.len()).then_some(from),
        };
        match found {
            Some(call) => pairs.push(call),
            None => {
                let lies_beyond = |end| span.anchor.is_none_or(|anchor| anchor >= end);
                return sides.native_cut_at.is_some_and(lies_beyond).then_some(pairs);
            }
        }
    }
    Some(pairs)
}

/// Both sides have all that ran.
fn by_count(calls: usize, spans: &[EvalRun]) -> Option<Vec<usize>> {
    // The outermost frame of a thread waits for nobody, unless its callers were lost.
    if spans.last().is_some_and(|span| span.may_wait) {
        return None;
    }
    let waiting = spans.len().checked_sub(calls)?;
    if waiting == 0 {
        return Some((0..calls).collect());
    }
    // Of generators that wait for each other, those further out were passed over by `throw()`. Which
    // ones they are is clear where only one such row is to be seen.
    let begin = spans.iter().position(|span| span.may_wait)?;
    let end = spans.iter().rposition(|span| span.may_wait)? + 1;
    if waiting > end - begin || !spans.get(begin..end)?.iter().all(|span| span.may_wait) {
        return None;
    }
    let passed_over = end - waiting..end;
    let mut call = 0;
    let pairs = (0..spans.len()).map(|span| {
        let of_this = call;
        // They are shown with the frames of the call that is next further out.
        call += usize::from(!passed_over.contains(&span));
        of_this
    });
    Some(pairs.collect())
}

/// From both ends towards the hole: who ran what is left out is not known, but by how many calls.
fn around_hole(sides: &Sides<'_>, hole: Hole) -> Option<Vec<usize>> {
    let inner = sides.spans.get(..hole.at)?;
    if sides.native_cut_at.is_some() || sides.spans.iter().any(|span| span.may_wait) {
        return from_inside(&Sides { spans: inner, python_is_cut: true, ..*sides });
    }
    let (calls, outer) = (sides.calls.len(), sides.spans.len() - hole.at);
    let least = (inner.len() + outer).saturating_sub(usize::from(hole.may_go_on));
    let is_settled = sides.calls.first().is_none_or(|call| call.frame > 0);
    // More calls than that: of what is left out, or an innermost one that has no frames yet.
    if calls < least || (calls > least && !is_settled) {
        return None;
    }
    Some((0..inner.len()).chain(calls.checked_sub(outer)?..calls).collect())
}

/// One side was cut off, so that the number of calls proves nothing: as far as nothing upsets the order.
fn from_inside(sides: &Sides<'_>) -> Option<Vec<usize>> {
    let calls = sides.calls.len();
    let is_settled = sides.calls.first().is_none_or(|call| call.frame > 0);
    let must_be = calls == 1 && sides.native_cut_at.is_none();
    let too_many = !sides.python_is_cut && calls > sides.spans.len();
    if too_many || !(is_settled || must_be) {
        return None;
    }
    let certain = sides.spans.iter().take_while(|span| !span.may_wait).count();
    Some((0..calls.min(certain)).collect())
}

#[cfg(test)]
mod tests {
    use super::{EvalCall, EvalRun, Hole, Sides, pair};

    /// Calls by their places among the native frames; each has 100 bytes of stack.
    fn calls(places: &[usize]) -> Vec<EvalCall> {
        let call = |&frame: &usize| {
            let start = frame as u64 * 100;
            EvalCall { frame, stack: start..start + 100 }
        };
        places.iter().map(call).collect()
    }

    /// `.` is a span that a call ran for certain, `w` one that may wait.
    fn spans(text: &str) -> Vec<EvalRun> {
        text.chars().map(|c| EvalRun { anchor: None, may_wait: c == 'w' }).collect()
    }

    /// Around a hole, both ends are proved where both sides are whole: with as many calls as spans, or more,
    /// what is left out lies between; with one fewer the hole is inside of what one call ran.
    #[test]
    fn around_a_hole() {
        let paired = |places: &[usize], text: &str, native_cut_at, may_go_on| {
            let (calls, spans) = (calls(places), spans(text));
            let hole = Some(Hole { at: 2, may_go_on, left_out: 9 });
            let sides =
                Sides { calls: &calls, native_cut_at, spans: &spans, python_is_cut: false, hole };
            pair(&sides)
        };
        assert_eq!(paired(&[1, 3, 5], "....", None, true), Some(vec![0, 1, 1, 2]));
        assert_eq!(paired(&[1, 3, 5, 7], "....", None, true), Some(vec![0, 1, 2, 3]));
        assert_eq!(paired(&[1, 3, 5, 7, 8, 9], "....", None, true), Some(vec![0, 1, 4, 5]));
        assert_eq!(paired(&[1, 3, 5, 7, 8], "....", None, false), Some(vec![0, 1, 3, 4]));
        assert_eq!(paired(&[1, 3, 5], "....", None, false), None, "a call is missing");
        assert_eq!(paired(&[0, 3, 5, 7], "....", None, true), None, "is the first being entered?");
        assert_eq!(paired(&[0, 3, 5], "....", None, true), Some(vec![0, 1, 1, 2]));
        assert_eq!(paired(&[1, 3, 5], "....", Some(900), true), Some(vec![0, 1]));
        assert_eq!(paired(&[1, 3, 5], ".w..", None, true), Some(vec![0]));
    }

    /// By addresses the spans on both sides of a hole may be of one call.
    #[test]
    fn addresses_around_a_hole() {
        let calls = calls(&[1, 3, 5]);
        let spans = |outer: &[u64]| [vec![EvalRun::default()], anchored(outer)].concat();
        let paired = |outer: &[u64], may_go_on| {
            let spans = spans(outer);
            let hole = Some(Hole { at: 1, may_go_on, left_out: 9 });
            pair(&Sides {
                calls: &calls,
                native_cut_at: None,
                spans: &spans,
                python_is_cut: false,
                hole,
            })
        };
        assert_eq!(paired(&[150, 350], true), Some(vec![0, 0, 1]));
        assert_eq!(paired(&[350, 550], true), Some(vec![0, 1, 2]));
        assert_eq!(paired(&[550], true), Some(vec![0, 2]));
        assert_eq!(paired(&[150], false), None);
    }

    fn anchored(anchors: &[u64]) -> Vec<EvalRun> {
        anchors.iter().map(|&anchor| EvalRun { anchor: Some(anchor), may_wait: true }).collect()
    }

    fn whole(calls: &[EvalCall], spans: &[EvalRun]) -> Option<Vec<usize>> {
        pair(&Sides { calls, native_cut_at: None, spans, python_is_cut: false, hole: None })
    }

    fn native_cut(calls: &[EvalCall], at: u64, spans: &[EvalRun]) -> Option<Vec<usize>> {
        pair(&Sides { calls, native_cut_at: Some(at), spans, python_is_cut: false, hole: None })
    }

    fn python_cut(calls: &[EvalCall], spans: &[EvalRun]) -> Option<Vec<usize>> {
        pair(&Sides { calls, native_cut_at: None, spans, python_is_cut: true, hole: None })
    }

    /// Addresses pair spans with calls, also where the innermost call is being entered.
    #[test]
    fn addresses_prove() {
        let spans = anchored(&[350, 701]);
        assert_eq!(whole(&calls(&[3, 7]), &spans), Some(vec![0, 1]));
        assert_eq!(whole(&calls(&[0, 3, 7]), &spans), Some(vec![1, 2]));
        // The frames between belong to somebody else, such as another interpreter.
        assert_eq!(whole(&calls(&[3, 5, 7, 9]), &spans), Some(vec![0, 2]));
    }

    /// An address that is in no call's stack is a contradiction; beyond a cut, it is to be expected.
    #[test]
    fn addresses_disprove() {
        assert_eq!(whole(&calls(&[3, 7]), &anchored(&[350, 650])), None);
        assert_eq!(whole(&calls(&[3, 7]), &anchored(&[750, 350])), None);
        assert_eq!(native_cut(&calls(&[3]), 500, &anchored(&[350, 750])), Some(vec![0]));
        assert_eq!(native_cut(&calls(&[3]), 500, &anchored(&[350, 450])), None);
        assert_eq!(native_cut(&[], 500, &anchored(&[750])), Some(vec![]));
    }

    /// A walk that was cut off within a call's frames: they belong to the next call.
    #[test]
    fn cut_within_a_call() {
        let mut spans = anchored(&[350]);
        spans.push(EvalRun::default());
        assert_eq!(python_cut(&calls(&[3, 7, 9]), &spans), Some(vec![0, 1]));
        assert_eq!(python_cut(&calls(&[3, 7]), &[EvalRun::default()]), Some(vec![0]));
        // Which of the two it is, is not clear while the first may be entering.
        assert_eq!(python_cut(&calls(&[0, 7]), &[EvalRun::default()]), None);
        assert_eq!(python_cut(&calls(&[0]), &[EvalRun::default()]), Some(vec![0]));
    }

    /// Without addresses, equal numbers prove, and unequal ones do not.
    #[test]
    fn numbers() {
        assert_eq!(whole(&calls(&[3, 7]), &spans("..")), Some(vec![0, 1]));
        assert_eq!(whole(&calls(&[3, 7]), &spans(".")), None);
        assert_eq!(whole(&calls(&[3]), &spans("..")), None);
        assert_eq!(whole(&[], &[]), Some(vec![]));
        assert_eq!(whole(&calls(&[3]), &[]), None);
    }

    /// Generators that `throw()` passed over are those furthest out in their row.
    #[test]
    fn passed_over() {
        assert_eq!(whole(&calls(&[3, 7]), &spans(".w.")), Some(vec![0, 1, 1]));
        assert_eq!(whole(&calls(&[2, 4, 6]), &spans("..ww.")), Some(vec![0, 1, 2, 2, 2]));
        assert_eq!(whole(&calls(&[1, 2, 4, 6]), &spans("..ww.")), Some(vec![0, 1, 2, 3, 3]));
        // Two rows: it may be either.
        assert_eq!(whole(&calls(&[1, 2, 4, 6]), &spans(".w.w.")), None);
        // More than there are.
        assert_eq!(whole(&calls(&[3]), &spans("..w.")), None);
        // Its callers were lost: equal numbers are a coincidence.
        assert_eq!(whole(&calls(&[3, 7]), &spans(".w")), None);
    }

    /// Of a native stack that was cut off, the inner part is paired as far as it is certain.
    #[test]
    fn cut_off_native_stack() {
        assert_eq!(native_cut(&calls(&[3, 7]), 800, &spans("....")), Some(vec![0, 1]));
        assert_eq!(native_cut(&calls(&[3, 7]), 800, &spans(".w..")), Some(vec![0]));
        assert_eq!(native_cut(&calls(&[0, 7]), 800, &spans("....")), None, "it may be entering");
        assert_eq!(native_cut(&calls(&[0, 7]), 800, &spans("..")), Some(vec![0, 1]));
        assert_eq!(native_cut(&calls(&[3, 7]), 800, &spans(".")), None, "more than there are");
    }
}
