//! What the probes tell about one loop, and looks at its state, to the lines of its stalls.
//!
//! Time comes in with every call; this file never asks for the clock. A look at the loop's state is
//! taken *before* the records that it is judged with are read, so whatever the state already shows
//! has its record among them, unless the record was lost.

use profiler_ebpf::turn::{Loop, Turn, phase, state};

use super::contention::Contention;
use super::{End, Moment, ThreadState};
use crate::environment::Environment;
use crate::gap::Gap;
use crate::source::ExitedBy;

/// How long after a stall the loop may sit in its next wait before we say that nothing was ready.
const READY_PATIENCE_NS: u64 = 20_000_000;

/// The first update after `stall_open`; each further interval is twice the one before.
const FIRST_UPDATE_NS: u64 = 1_000_000_000;
const LONGEST_UPDATE_NS: u64 = 60_000_000_000;

/// Why the end of a stall is not known exactly whose loop was closed.
pub const CLOSED: &str = "its event loop was closed since it was last seen open";

/// Why it is not known whose program gave way to another.
pub const EXECUTED: &str = "the process executed another program";

/// A line that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub moment: Moment,
    /// The account up to `at_ns`.
    pub turn: Turn,
    pub at_ns: u64,
    pub end: End,
    pub now: Option<ThreadState>,
    pub ready_events: Option<u64>,
    /// For those who pass it on: what went on around the thread.
    pub environment: Environment,
    /// For those who pass it on: who ran while the thread had no CPU.
    pub contention: Contention,
    /// For those who pass it on: who else was away from the loop's instance.
    pub away: Vec<AwayThread>,
    /// For those who pass it on: another thread serves the instance, so that it is this one's work alone that
    /// takes long.
    pub is_work: bool,
    /// For those who pass it on: what else could not be had.
    pub gaps: Vec<Gap>,
}

/// Another thread of the instance that is in a turn, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AwayThread {
    pub tid: u32,
    /// Its turn's account.
    pub turn: Turn,
    pub state: ThreadState,
}

impl Due {
    /// The same of a turn that was over at `at_ns` already, which was found out too late. What the thread
    /// did since was to wait for work, most of it asleep.
    pub fn cut_back(mut self, at_ns: u64) -> Self {
        cut_back(&mut self.turn, at_ns);
        Self { at_ns, ..self }
    }
}

/// Takes from an account what lies past that time, sleep first.
fn cut_back(turn: &mut Turn, at_ns: u64) {
    let mut rest_ns = turn.booked_ns().saturating_sub(at_ns.saturating_sub(turn.start_ns));
    let parts =
        [&mut turn.blocked_ns, &mut turn.running_ns, &mut turn.runnable_ns, &mut turn.stopped_ns];
    for part in parts {
        let taken_ns = rest_ns.min(*part);
        *part -= taken_ns;
        rest_ns -= taken_ns;
    }
    turn.preempted_ns = turn.preempted_ns.min(turn.runnable_ns);
}

/// Follows one loop.
#[derive(Debug)]
pub struct Tracker {
    threshold_ns: u64,
    open: Option<Open>,
    over: Option<Over>,
    /// The last turn whose end was told: a state seen earlier may still show it.
    last_told_ns: Option<u64>,
}

/// A stall that has been announced and is going on.
#[derive(Debug)]
struct Open {
    start_ns: u64,
    next_update_ns: u64,
    interval_ns: u64,
    /// The account when it was last seen, in case its end is lost.
    last: Turn,
}

/// A stall that is over, and waits for what the next wait returns.
#[derive(Debug)]
struct Over {
    turn: Turn,
    end_ns: u64,
    end: End,
    ready: Option<u64>,
}

impl Tracker {
    pub fn new(threshold_ns: u64) -> Self {
        Self { threshold_ns, open: None, over: None, last_told_ns: None }
    }

    /// A turn past the threshold is over, says the kernel.
    pub fn ended(&mut self, turn: Turn, end_ns: u64, due: &mut Vec<Due>) {
        self.settle_now(due);
        self.lose_other(Some(turn.start_ns), due);
        self.open = None;
        self.over = Some(Over { turn, end_ns, end: End::Seen, ready: None });
    }

    /// The same where no wait follows that would return anything.
    pub fn ended_without_wait(&mut self, turn: Turn, end_ns: u64, due: &mut Vec<Due>) {
        self.ended(turn, end_ns, due);
        self.settle_now(due);
    }

    /// The thread serves again at that time, or another does in its place, in the middle of the turn that is
    /// accounted up to some time after.
    pub fn served(&mut self, mut turn: Turn, at_ns: u64, due: &mut Vec<Due>) {
        cut_back(&mut turn, at_ns);
        self.ended_without_wait(turn, at_ns, due);
    }

    /// The loop is closed, and was open at least up to the end of this account.
    pub fn closed(&mut self, turn: Turn, end_ns: u64, why: &str, due: &mut Vec<Due>) {
        self.settle_now(due);
        self.lose_other(Some(turn.start_ns), due);
        self.open = None;
        self.over = Some(Over { turn, end_ns, end: End::Unseen(why.to_owned()), ready: None });
        self.settle_now(due);
    }

    /// The turn that began then was over before the threshold: it is no stall, and nothing has been told of it.
    pub fn take_back(&mut self, turn_start_ns: u64) {
        self.open.take_if(|open| open.start_ns == turn_start_ns);
    }

    /// Whether the end of the turn that began then has been told.
    pub fn has_told(&self, turn_start_ns: u64) -> bool {
        self.last_told_ns == Some(turn_start_ns)
    }

    /// What the wait after that turn returned. Errors mean that it found nothing.
    pub fn ready(&mut self, turn_start_ns: u64, returned: i64, due: &mut Vec<Due>) {
        if let Some(over) = self.over.as_mut().filter(|over| over.turn.start_ns == turn_start_ns) {
            over.ready = Some(u64::try_from(returned).unwrap_or(0));
            self.settle_now(due);
        }
    }

    /// The thread has exited, or executed another program.
    pub fn exited(&mut self, turn: Option<Turn>, at_ns: u64, by: ExitedBy, due: &mut Vec<Due>) {
        self.settle_now(due);
        self.lose_other(turn.map(|turn| turn.start_ns), due);
        let long = |turn: &Turn| self.open.is_some() || turn.booked_ns() >= self.threshold_ns;
        if let Some(turn) = turn.filter(long) {
            let why = match by {
                ExitedBy::Exit => "the thread exited inside the turn",
                ExitedBy::Exec => EXECUTED,
            };
            let end = End::Unseen(why.to_owned());
            self.over = Some(Over { turn, end_ns: at_ns, end, ready: None });
            self.settle_now(due);
        }
        self.open = None;
    }

    /// How the loop stood at `now_ns`, after the records up to then.
    pub fn look(&mut self, seen: &Loop, now_ns: u64, due: &mut Vec<Due>) {
        self.settle(seen, now_ns, due);
        let in_turn = seen.phase == phase::TURN;
        let start_ns = seen.turn.start_ns;
        if seen.phase == phase::LOOPLESS {
            self.lose_unless(|open| open.start_ns != start_ns, CLOSED, due);
        }
        self.lose_other(in_turn.then_some(start_ns), due);
        // Whatever is over by the records may still stand in a state that was read before them.
        let told = self.last_told_ns == Some(start_ns)
            || self.over.as_ref().is_some_and(|over| over.turn.start_ns == start_ns);
        if in_turn && !told && now_ns.saturating_sub(start_ns) >= self.threshold_ns {
            self.going_on(seen, now_ns, due);
        }
    }

    /// The thread is in that turn now, or in none: a stall of another that is open ends where it was seen last.
    fn lose_other(&mut self, start_ns: Option<u64>, due: &mut Vec<Due>) {
        let goes_on = |open: &Open| Some(open.start_ns) == start_ns;
        self.lose_unless(goes_on, "the record of its end was lost", due);
    }

    fn lose_unless(&mut self, keeps: impl Fn(&Open) -> bool, why: &str, due: &mut Vec<Due>) {
        if let Some(open) = self.open.take_if(|open| !keeps(open)) {
            let end = End::Unseen(why.to_owned());
            let end_ns = open.last.start_ns + open.last.booked_ns();
            self.over = Some(Over { turn: open.last, end_ns, end, ready: None });
            self.settle_now(due);
        }
    }

    /// We look no more: whatever is open is closed without its end.
    pub fn close(&mut self, seen: Option<&Loop>, why: &str, now_ns: u64, due: &mut Vec<Due>) {
        self.settle_now(due);
        if let Some(open) = self.open.take() {
            let still = seen
                .filter(|seen| seen.phase == phase::TURN && seen.turn.start_ns == open.start_ns);
            let turn = still.map_or(open.last, |seen| seen.account(now_ns));
            let end_ns = turn.start_ns + turn.booked_ns();
            self.over = Some(Over { turn, end_ns, end: End::Unseen(why.to_owned()), ready: None });
            self.settle_now(due);
        }
    }

    /// Whether a stall has been announced and not yet ended.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Since when that has been going on.
    pub fn open_since(&self) -> Option<u64> {
        self.open.as_ref().map(|open| open.start_ns)
    }

    /// When a line is due about the turn that began then, if it goes on: past the threshold, and now and then after.
    pub fn next_line_ns(&self, turn_start_ns: u64) -> u64 {
        match &self.open {
            Some(open) if open.start_ns == turn_start_ns => open.next_update_ns,
            _ => turn_start_ns.saturating_add(self.threshold_ns),
        }
    }

    fn going_on(&mut self, seen: &Loop, now_ns: u64, due: &mut Vec<Due>) {
        let turn = seen.account(now_ns);
        let moment = match &mut self.open {
            None => {
                self.open = Some(Open {
                    start_ns: turn.start_ns,
                    next_update_ns: now_ns + FIRST_UPDATE_NS,
                    interval_ns: FIRST_UPDATE_NS,
                    last: turn,
                });
                Moment::Open
            }
            Some(open) => {
                open.last = turn;
                if now_ns < open.next_update_ns {
                    return;
                }
                open.interval_ns = (open.interval_ns * 2).min(LONGEST_UPDATE_NS);
                open.next_update_ns = now_ns + open.interval_ns;
                Moment::Update
            }
        };
        due.push(Due {
            moment,
            turn,
            at_ns: turn.start_ns + turn.booked_ns(),
            end: End::NotYet,
            now: Some(doing(seen.state)),
            ready_events: None,
            environment: Environment::default(),
            contention: Contention::default(),
            away: Vec::new(),
            is_work: false,
            gaps: Vec::new(),
        });
    }

    /// Tells the end once the next wait's return is known, or is known not to have come.
    fn settle(&mut self, seen: &Loop, now_ns: u64, due: &mut Vec<Due>) {
        let Some(over) = &mut self.over else { return };
        let same = seen.turn.start_ns == over.turn.start_ns;
        if same && seen.phase == phase::PARKED {
            // No wait returns events to such a thread.
            self.settle_now(due);
            return;
        }
        let waits = same && seen.phase == phase::WAITING;
        if waits && now_ns.saturating_sub(over.end_ns) >= READY_PATIENCE_NS {
            over.ready = Some(0);
            self.settle_now(due);
        } else if !same && now_ns.saturating_sub(over.end_ns) >= READY_PATIENCE_NS {
            self.settle_now(due);
        }
    }

    fn settle_now(&mut self, due: &mut Vec<Due>) {
        let Some(over) = self.over.take() else { return };
        self.last_told_ns = Some(over.turn.start_ns);
        due.push(Due {
            moment: Moment::End,
            turn: over.turn,
            at_ns: over.end_ns,
            end: over.end,
            now: None,
            ready_events: over.ready,
            environment: Environment::default(),
            contention: Contention::default(),
            away: Vec::new(),
            is_work: false,
            gaps: Vec::new(),
        });
    }
}

/// The scheduler's state as a report names it. Whether a running thread is in user or kernel code is
/// for the ticks to say.
pub fn doing(scheduler_state: u32) -> ThreadState {
    match scheduler_state {
        state::RUNNING => ThreadState::RunningUser,
        state::BLOCKED => ThreadState::Blocked,
        state::RUNNABLE | state::PREEMPTED => ThreadState::Runnable,
        _ => ThreadState::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::ExitedBy;
    use super::{Due, FIRST_UPDATE_NS, READY_PATIENCE_NS, Tracker};
    use crate::turn::{End, Moment};
    use profiler_ebpf::turn::{Loop, Turn, WaitCall, phase, wait};

    const THRESHOLD: u64 = 100;

    fn in_turn(start_ns: u64) -> Loop {
        let mut state = Loop::default();
        state.adopt(&WaitCall { fd: 3, ..WaitCall::any(wait::EPOLL) });
        state.begin(start_ns, 0);
        state
    }

    fn waiting_after(start_ns: u64) -> Loop {
        Loop { phase: phase::WAITING, ..in_turn(start_ns) }
    }

    fn turn(start_ns: u64, running_ns: u64) -> Turn {
        Turn { start_ns, running_ns, ..Turn::default() }
    }

    fn moments(due: &[Due]) -> Vec<Moment> {
        due.iter().map(|due| due.moment).collect()
    }

    /// A stall is announced once it passes the threshold, updated, and ended with what was ready.
    #[test]
    fn open_update_end() {
        // ns   0 ── threshold 100 ── update ──┤ wait returns 7
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        let state = in_turn(0);
        tracker.look(&state, 99, &mut due);
        assert_eq!(due, []);
        tracker.look(&state, 101, &mut due);
        tracker.look(&state, 200, &mut due);
        assert_eq!(moments(&due), [Moment::Open]);
        assert_eq!(due[0].turn.booked_ns(), 101);
        tracker.look(&state, 101 + FIRST_UPDATE_NS, &mut due);
        tracker.ended(turn(0, 5000), 5000, &mut due);
        tracker.ready(0, 7, &mut due);
        assert_eq!(moments(&due), [Moment::Open, Moment::Update, Moment::End]);
        assert_eq!((due[2].ready_events, &due[2].end), (Some(7), &End::Seen));
    }

    /// A short stall may be over before anyone looked: its end stands alone, and a state that was
    /// read before its record does not open it again.
    #[test]
    fn end_alone() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        let before = in_turn(0);
        tracker.ended(turn(0, 120), 120, &mut due);
        tracker.look(&before, 125, &mut due);
        tracker.ready(0, 0, &mut due);
        tracker.look(&before, 126, &mut due);
        assert_eq!(moments(&due), [Moment::End]);
    }

    /// A loop that sits in its next wait found nothing ready.
    #[test]
    fn nothing_was_ready() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        tracker.ended(turn(0, 150), 150, &mut due);
        tracker.look(&waiting_after(0), 160, &mut due);
        assert_eq!(due, []);
        tracker.look(&waiting_after(0), 150 + READY_PATIENCE_NS, &mut due);
        assert_eq!(due[0].ready_events, Some(0));
    }

    /// A stall whose end record was lost is closed as far as it was seen, not stretched.
    #[test]
    fn lost_end() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        tracker.look(&in_turn(0), 130, &mut due);
        tracker.look(&in_turn(400), 420, &mut due);
        assert_eq!(moments(&due), [Moment::Open, Moment::End]);
        assert_eq!(due[1].turn.booked_ns(), 130);
        assert!(matches!(&due[1].end, End::Unseen(why) if why.contains("lost")));
    }

    /// Detaching closes what is open, with the account up to now.
    #[test]
    fn closed_by_us() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        let state = in_turn(0);
        tracker.look(&state, 130, &mut due);
        tracker.close(Some(&state), "detached", 300, &mut due);
        assert_eq!(due[1].turn.booked_ns(), 300);
        assert_eq!(due[1].end, End::Unseen("detached".to_owned()));
        tracker.close(Some(&state), "detached", 400, &mut due);
        assert_eq!(due.len(), 2, "closed once");
    }

    /// A thread that exits in a long turn has stalled; one that exits in a short one has not.
    #[test]
    fn exits() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        tracker.exited(Some(turn(0, 50)), 50, ExitedBy::Exit, &mut due);
        tracker.exited(None, 50, ExitedBy::Exit, &mut due);
        assert_eq!(due, []);
        tracker.exited(Some(turn(100, 150)), 250, ExitedBy::Exit, &mut due);
        tracker.exited(Some(turn(300, 150)), 450, ExitedBy::Exec, &mut due);
        assert_eq!(moments(&due), [Moment::End, Moment::End]);
        let why = |due: &Due| matches!(&due.end, End::Unseen(why) if why == super::EXECUTED);
        assert_eq!(due.iter().map(why).collect::<Vec<_>>(), [false, true]);
    }

    /// A stall whose end was missed ends as it was seen last, whatever is heard of the thread next; what it does later is
    /// no part of it.
    #[test]
    fn another_turn_is_heard_of() {
        type Heard = fn(&mut Tracker, &mut Vec<Due>);
        let table: [(Heard, usize); 4] = [
            (|tracker, due| tracker.exited(Some(turn(400, 5)), 405, ExitedBy::Exit, due), 1),
            (|tracker, due| tracker.exited(None, 405, ExitedBy::Exit, due), 1),
            (|tracker, due| tracker.ended_without_wait(turn(400, 150), 550, due), 2),
            (|tracker, due| tracker.closed(turn(400, 150), 550, "closed", due), 2),
        ];
        for (number, (heard, ends)) in table.into_iter().enumerate() {
            let (mut tracker, mut due) = (Tracker::new(THRESHOLD), Vec::new());
            tracker.look(&in_turn(0), 130, &mut due);
            due.clear();
            heard(&mut tracker, &mut due);
            assert_eq!(moments(&due), vec![Moment::End; ends], "{number}");
            assert_eq!(due[0].turn.booked_ns(), 130, "{number}");
            assert!(matches!(&due[0].end, End::Unseen(why) if why.contains("lost")), "{number}");
        }
    }

    /// What is cut off of an account is taken from its sleep first, and the rest adds up.
    #[test]
    fn an_end_that_was_found_late() {
        let mut tracker = Tracker::new(THRESHOLD);
        let mut due = Vec::new();
        let account = Turn { blocked_ns: 300, runnable_ns: 5, preempted_ns: 5, ..turn(1000, 95) };
        tracker.ended_without_wait(account, 1400, &mut due);
        let late = due.pop().unwrap();
        for (at_ns, expected) in [(1390, (290, 95, 5, 5)), (1050, (0, 45, 5, 5))] {
            let cut = late.clone().cut_back(at_ns);
            let Turn { blocked_ns, running_ns, runnable_ns, preempted_ns, .. } = cut.turn;
            assert_eq!((blocked_ns, running_ns, runnable_ns, preempted_ns), expected);
            assert_eq!(cut.turn.booked_ns(), at_ns - 1000);
            assert_eq!(cut.at_ns, at_ns);
        }
    }
}
