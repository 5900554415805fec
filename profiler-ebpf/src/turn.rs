//! When a turn of an event loop begins and ends, and how its time divides: the rules that run in the kernel.
//!
//! A turn lasts from the return of the loop's own wait to the entry of its next. Each hook applies
//! one rule to the thread's [`Loop`] and passes the time in; nothing here asks for a clock. Every
//! interval is booked to exactly one state, so the four sums always add up to the turn's duration,
//! even when the kernel keeps a switch from us.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use crate::account::{Faults, SINCE_BIRTH, START_UNKNOWN, Turn};
use crate::credit::Credit;
pub use crate::outcome::{Entered, Left};
pub use crate::parks::{MAX_PARKS, Park, Parks};
use crate::sleep::task;
pub use crate::wait_call::{
    INTERRUPTED, RESTART, WaitCall, has_instance, may_be_wait, wait, wait_of,
};

/// The syscall in which locks are waited for, and in which workers of pools park (x86-64).
pub const FUTEX: i64 = 202;

/// Where a loop is.
pub mod phase {
    /// Nothing is known yet.
    pub const NEW: u32 = 0;
    /// Inside its own wait.
    pub const WAITING: u32 = 1;
    /// Inside a turn.
    pub const TURN: u32 = 2;
    /// The thread has exited.
    pub const DEAD: u32 = 3;
    /// Asleep where it waits for work, without a syscall that is hooked: see [`Parks`](crate::parks::Parks).
    pub const PARKED: u32 = 4;
    /// The loop's instance is closed: the thread has no loop until it waits again.
    pub const LOOPLESS: u32 = 5;
}

/// What a thread does, as far as the scheduler is concerned.
pub mod state {
    /// On a CPU.
    pub const RUNNING: u32 = 0;
    /// Off the CPU until something wakes it.
    pub const BLOCKED: u32 = 1;
    /// Ready, but without a CPU.
    pub const RUNNABLE: u32 = 2;
    /// Stopped, traced or frozen: not to be woken by what it waits for.
    pub const STOPPED: u32 = 3;
    /// Ready as well, but because its CPU was taken from it, where [`RUNNABLE`] was woken.
    pub const PREEMPTED: u32 = 4;

    /// That of a thread that gave up its CPU with this `__state`.
    #[inline(always)]
    pub const fn of_sleep(task_state: u64) -> u32 {
        use super::task::{FROZEN, STOPPED as STOPPED_BIT, TRACED};
        if task_state & (STOPPED_BIT | TRACED | FROZEN) != 0 { STOPPED } else { BLOCKED }
    }

    /// Whether only a CPU is missing.
    #[inline(always)]
    pub const fn is_ready(state: u32) -> bool {
        state == RUNNABLE || state == PREEMPTED
    }
}

/// One event loop's thread.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Loop {
    /// See [`crate::version`].
    pub version: u64,
    /// The thread, as the kernel numbers it.
    pub tid: u32,
    /// One of [`phase`].
    pub phase: u32,
    /// One of [`state`]; meaningful inside a turn.
    pub state: u32,
    /// The kind of the loop's own wait: one of [`wait`].
    pub home_kind: u32,
    /// The descriptor of the loop's own epoll instance or ring.
    pub home_fd: u32,
    /// 1 while the number of events that the wait after a stall returns is still to be told.
    pub ready_owed: u32,
    /// Which instance that is, as the address of its file in the kernel; 0 where that is not known.
    pub home_file: u64,
    /// What kind of file that is, as the address of its operations: the address of a file that is closed may be the
    /// next one's.
    pub home_operations: u64,
    /// The system call of the present wait.
    pub wait_syscall: u64,
    /// When it entered its own wait last, ns.
    pub entered_ns: u64,
    /// When it left its own wait last, ns; 0: never yet.
    pub left_ns: u64,
    /// When the thread came onto a CPU inside the present wait, ns; 0: not yet. Kept as long as it was never seen to
    /// leave one: no hook sees the return of a call that was under way when the hook was made.
    pub back_ns: u64,
    /// Until when the current turn is booked.
    pub booked_until_ns: u64,
    /// Turns that have ended.
    pub turns: u64,
    /// The current turn.
    pub turn: Turn,
    /// Its short waits that are still to be told of.
    pub credit: Credit,
    /// The thread's faults as they were counted last; all zero: not yet.
    pub faults: Faults,
    /// Start of the last turn that was reported as a stall.
    pub stalled_ns: u64,
    /// When the daemon was last told that the thread goes to sleep, ns.
    pub told_asleep_ns: u64,
    /// The interpreter's thread state; written by the daemon, checked by the probes.
    pub python_tstate: u64,
    /// Where it keeps whether it collects garbage, an `int`; written by the daemon, 0: not known.
    pub python_collecting: u64,
    /// Where the loop keeps which callback it runs; likewise.
    pub python_callback: u64,
    /// 1 for a thread that is handed work through a queue: all its waits are the work's. Likewise.
    pub handed_work: u64,
    /// 1 for a thread of an instance that other threads wait on, too, and whose places of parking are not known.
    /// Likewise.
    pub shares: u64,
}

impl Loop {
    /// Whether a wait is the loop's own. A number alone may stand for another instance by now.
    #[inline(always)]
    pub const fn is_home(&self, call: &WaitCall) -> bool {
        // poll and select have no instance of their own to compare.
        call.kind == self.home_kind
            && (call.kind == wait::POLL
                || if call.file != 0 && self.home_file != 0 {
                    call.file == self.home_file
                } else {
                    call.fd == self.home_fd
                })
    }

    /// Makes this wait the loop's own.
    #[inline(always)]
    pub fn adopt(&mut self, call: &WaitCall) {
        self.home_kind = call.kind;
        self.home_fd = call.fd;
        self.home_file = call.file;
    }

    /// Whether a wait that is not the loop's own becomes it, with the turn that it ends: the first, one of a
    /// greater kind, or any where the thread's own has never been seen.
    #[inline(always)]
    pub const fn takes_over(&self, call: &WaitCall) -> bool {
        call.kind > self.home_kind || call.kind == self.home_kind && self.home_fd == u32::MAX
    }

    /// A wait begins. The caller has made it the loop's own where it takes over.
    #[inline(always)]
    pub fn wait_entered(&mut self, call: &WaitCall, now_ns: u64) -> Entered {
        if !self.is_home(call) || self.handed_work == 1 {
            self.turn.nested_waits += 1;
            return Entered::Nested;
        }
        if self.phase == phase::WAITING && self.back_ns != 0 {
            // It has done nothing but run since then.
            self.had_left(now_ns);
        }
        let before = self.phase;
        if before == phase::TURN {
            self.book(now_ns);
            self.turns += u64::from(self.counts());
        }
        self.phase = phase::WAITING;
        // Another descriptor may stand for the same instance.
        self.home_fd = call.fd;
        self.wait_syscall = call.syscall;
        self.entered_ns = now_ns;
        match before {
            phase::TURN => Entered::TurnOver(self.turn),
            phase::WAITING => Entered::ReturnMissed,
            _ => Entered::Idle,
        }
    }

    /// Whether the turn counts as one. Where several threads take turns at one instance, one that is woken to wait
    /// there in another's place has none of its own.
    #[inline(always)]
    pub const fn counts(&self) -> bool {
        self.shares == 0 || self.turn.start_ns == self.left_ns
    }

    /// A wait returns. True where that begins a turn.
    #[inline(always)]
    pub fn wait_left(&mut self, now_ns: u64) -> bool {
        if self.phase != phase::WAITING {
            // The end of a nested wait.
            return false;
        }
        self.left_ns = now_ns;
        self.back_ns = 0;
        self.wait_syscall = 0;
        self.begin(now_ns, 0);
        true
    }

    /// The thread is found outside of its wait, whose return was not seen: a turn is under way, since it came back onto
    /// a CPU, where that is known.
    #[inline(always)]
    pub fn had_left(&mut self, now_ns: u64) {
        let (start_ns, flags) = match self.back_ns {
            0 => (now_ns, START_UNKNOWN),
            back_ns => (back_ns, 0),
        };
        self.left_ns = start_ns;
        self.back_ns = 0;
        self.begin(start_ns, flags);
    }

    /// Whether it matters when the thread comes onto a CPU or leaves it inside its wait.
    #[inline(always)]
    pub const fn is_in_first_wait(&self) -> bool {
        self.phase == phase::WAITING && self.left_ns == 0
    }

    /// Since when the thread may have been out of its wait without having been seen to leave it.
    pub fn may_have_left_ns(&self) -> Option<u64> {
        (self.is_in_first_wait() && self.back_ns != 0).then_some(self.back_ns)
    }

    /// Whether a thread that leaves its CPU inside this system call, or in none (a number that no call has), has
    /// left its wait, although nobody saw it return.
    #[inline(always)]
    pub const fn has_left_unseen(&self, syscall: u64) -> bool {
        self.phase == phase::WAITING && self.wait_syscall != syscall
    }

    /// Whether the loop hangs on an instance that can be closed.
    #[inline(always)]
    pub const fn has_instance(&self) -> bool {
        self.phase == phase::TURN && self.home_file != 0 && self.handed_work == 0
    }

    /// The loop's instance was found closed: the turn lasted at least up to the last booking. The next wait of the
    /// kind is the thread's own: the file of another instance may lie where this one's did.
    #[inline(always)]
    pub fn closed(&mut self) -> Turn {
        self.turns += u64::from(self.counts());
        self.phase = phase::LOOPLESS;
        (self.home_fd, self.home_file) = (u32::MAX, 0);
        self.turn
    }

    /// The loop's instance was found open: the time up to now is the turn's.
    #[inline(always)]
    pub fn is_open(&mut self, now_ns: u64) {
        self.book(now_ns);
    }

    /// The thread was born, and may be handed work at once.
    #[inline(always)]
    pub fn born(&mut self, now_ns: u64) {
        self.adopt(&WaitCall::any(wait::PARK));
        self.begin(now_ns, SINCE_BIRTH);
        self.state = state::RUNNABLE;
    }

    /// A turn is under way from here on; `flags` may say that it had begun earlier.
    #[inline(always)]
    pub fn begin(&mut self, now_ns: u64, flags: u32) {
        self.phase = phase::TURN;
        self.state = state::RUNNING;
        self.booked_until_ns = now_ns;
        self.turn = Turn { start_ns: now_ns, flags, ..Turn::default() };
        self.credit = Credit::NONE;
    }

    /// The thread has parked, says whoever recognised where it went to sleep: the turn ended as it
    /// gave up its CPU, at the last booking.
    #[inline(always)]
    pub fn parked(&mut self) -> Turn {
        self.turns += u64::from(self.counts());
        self.phase = phase::PARKED;
        self.turn
    }

    /// The same, found out once it is back. `blocked_ns` is for how long the turn had been blocked or
    /// stopped as the thread went to sleep.
    #[inline(always)]
    pub fn had_parked(&mut self, blocked_ns: u64) -> Turn {
        self.turn.blocked_ns = blocked_ns.saturating_sub(self.turn.stopped_ns);
        self.parked()
    }

    /// A parked thread is back: a turn begins.
    #[inline(always)]
    pub fn unparked(&mut self, now_ns: u64) {
        self.begin(now_ns, 0);
    }

    /// Whether leaving the CPU means anything to a turn: asked first, because even the clock costs
    /// more than the answer, and idle loops sleep often.
    #[inline(always)]
    pub const fn minds_leaving(&self, task_state: u64) -> bool {
        self.phase == phase::TURN || self.phase == phase::PARKED || task_state & task::DEAD != 0
    }

    /// The thread leaves the CPU. `task_state` is its `__state`, 0 where it could go on running.
    #[inline(always)]
    pub fn switched_out(&mut self, preempted: bool, task_state: u64, now_ns: u64) -> Left {
        if task_state & task::DEAD != 0 {
            if self.phase == phase::TURN {
                self.book(now_ns);
            }
            return Left::Dead;
        }
        if self.phase == phase::PARKED {
            // It had woken up already when we were told that it was parked.
            self.begin(now_ns, START_UNKNOWN);
        }
        if self.phase != phase::TURN {
            return Left::Elsewhere;
        }
        self.book(now_ns);
        // A preempted thread may already have announced that it will sleep; it has not yet.
        if preempted || task_state == 0 {
            self.state = state::PREEMPTED;
            self.turn.preempted += 1;
            return Left::Runnable;
        }
        self.turn.voluntary += 1;
        self.state = state::of_sleep(task_state);
        Left::Blocked
    }

    /// Something woke the thread. True where it waits for a CPU from now on, inside a turn.
    #[inline(always)]
    pub fn woken(&mut self, now_ns: u64) -> bool {
        let slept = self.phase == phase::TURN
            && (self.state == state::BLOCKED || self.state == state::STOPPED);
        if slept {
            self.book(now_ns);
            self.state = state::RUNNABLE;
        }
        slept
    }

    /// The thread comes onto a CPU. False where it was thought to be on one already.
    #[inline(always)]
    pub fn switched_in(&mut self, now_ns: u64) -> bool {
        if self.phase != phase::TURN {
            return true;
        }
        self.book(now_ns);
        let was_off = self.state != state::RUNNING;
        self.state = state::RUNNING;
        was_off
    }

    /// Gives the turn under way, if there is one, the faults since they were counted last. To be asked
    /// before each rule that begins or ends a turn, and at switches, so that a long one shows them.
    #[inline(always)]
    pub fn count_faults(&mut self, now: Faults) {
        let before = self.faults;
        self.faults = now;
        if self.phase == phase::TURN && before.minor | before.major != 0 {
            self.turn.minor_faults += now.minor.wrapping_sub(before.minor) as u32;
            self.turn.major_faults += now.major.wrapping_sub(before.major) as u32;
        }
    }

    /// Gives the time since the last booking to the present state.
    #[inline(always)]
    fn book(&mut self, now_ns: u64) {
        // A probe that was interrupted may hold an older time than the one booked last.
        let passed_ns = now_ns.saturating_sub(self.booked_until_ns);
        if passed_ns == 0 {
            return;
        }
        self.booked_until_ns = now_ns;
        // All are written: as a match, the compiler makes it an indexed store whose bound the
        // verifier cannot see.
        let now = self.state;
        let share = |state: u32| if now == state { passed_ns } else { 0 };
        self.turn.running_ns += share(state::RUNNING);
        self.turn.blocked_ns += share(state::BLOCKED);
        let preempted_ns = share(state::PREEMPTED);
        self.turn.runnable_ns += share(state::RUNNABLE) + preempted_ns;
        self.turn.preempted_ns += preempted_ns;
        self.turn.stopped_ns += share(state::STOPPED);
    }

    /// The account up to now, for a turn that is still going on.
    pub fn account(&self, now_ns: u64) -> Turn {
        let mut copy = *self;
        copy.book(now_ns);
        copy.turn
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Entered, Faults, Left, Loop, SINCE_BIRTH, START_UNKNOWN, WaitCall, has_instance, phase,
        state, wait,
    };

    const EPFD: u32 = 7;
    const EPOLL: WaitCall = call(wait::EPOLL, EPFD, 0xa000);

    const fn call(kind: u32, fd: u32, file: u64) -> WaitCall {
        WaitCall { kind, fd, file, syscall: 232 }
    }

    /// A loop whose wait has just returned.
    fn in_turn(at_ns: u64) -> Loop {
        let mut thread = Loop::default();
        thread.adopt(&EPOLL);
        assert_eq!(thread.wait_entered(&EPOLL, at_ns - 1), Entered::Idle);
        assert!(thread.wait_left(at_ns));
        thread
    }

    fn over(entered: Entered) -> super::Turn {
        match entered {
            Entered::TurnOver(turn) => turn,
            other => panic!("no turn was over: {other:?}"),
        }
    }

    /// Every nanosecond of a turn is booked to one state.
    #[test]
    fn states_sum_to_duration() {
        // ns   100      130      150      180      200      260     275
        //       ├ running ┤ blocked ┤runnable┤ running ┤runnable┤running┤
        let mut thread = in_turn(100);
        assert_eq!(thread.switched_out(false, 1, 130), Left::Blocked);
        thread.woken(150);
        assert!(thread.switched_in(180));
        assert_eq!(thread.switched_out(true, 0, 200), Left::Runnable);
        assert!(thread.switched_in(260));
        let turn = over(thread.wait_entered(&EPOLL, 275));

        assert_eq!(turn.running_ns, 30 + 20 + 15);
        assert_eq!(turn.blocked_ns, 20);
        assert_eq!(turn.runnable_ns, 30 + 60);
        assert_eq!(turn.preempted_ns, 60, "the rest was woken, and waited");
        assert_eq!(turn.booked_ns(), 175);
        assert_eq!((turn.voluntary, turn.preempted), (1, 1));
    }

    /// `poll()` and a second epoll instance inside a callback are part of the turn.
    #[test]
    fn nested_wait_is_not_idleness() {
        let mut thread = in_turn(100);
        assert_eq!(thread.wait_entered(&call(wait::POLL, 0, 0), 110), Entered::Nested);
        assert_eq!(thread.switched_out(false, 1, 111), Left::Blocked);
        thread.woken(190);
        thread.switched_in(190);
        assert!(!thread.wait_left(191), "the return of a nested wait begins no turn");
        assert_eq!(thread.wait_entered(&call(wait::EPOLL, EPFD + 1, 0xb000), 195), Entered::Nested);
        assert!(!thread.wait_left(196));
        let turn = over(thread.wait_entered(&EPOLL, 200));
        assert_eq!(turn.start_ns, 100);
        assert_eq!(turn.booked_ns(), 100);
        assert_eq!(turn.nested_waits, 2);
    }

    /// A wait with timeout 0 ends a turn as well: the loop looked for I/O.
    #[test]
    fn every_home_wait_ends_a_turn() {
        let mut thread = in_turn(100);
        assert_eq!(over(thread.wait_entered(&EPOLL, 140)).booked_ns(), 40);
        assert!(thread.wait_left(141));
        assert_eq!(over(thread.wait_entered(&EPOLL, 150)).booked_ns(), 9);
        assert_eq!(thread.turns, 2);
    }

    /// A preempted thread that had announced its sleep still wants the CPU.
    #[test]
    fn preemption_is_not_blocking() {
        let mut thread = in_turn(100);
        assert_eq!(thread.switched_out(true, 1, 110), Left::Runnable);
        assert_eq!(thread.state, state::PREEMPTED);
        assert!(!thread.woken(120), "a wakeup that comes late changes nothing");
        assert!(thread.switched_in(130));
        let turn = over(thread.wait_entered(&EPOLL, 135));
        assert_eq!((turn.preempted_ns, turn.runnable_ns, turn.blocked_ns), (20, 20, 0));
    }

    /// Only a thread that slept inside a turn begins to wait for a CPU as it is woken.
    #[test]
    fn woken_from_sleep_in_a_turn() {
        let mut thread = in_turn(100);
        assert!(!thread.woken(105), "it runs");
        thread.switched_out(false, 1, 110);
        assert!(thread.woken(120));
        assert!(!thread.woken(125));
        thread.switched_in(130);
        let turn = over(thread.wait_entered(&EPOLL, 140));
        assert_eq!((turn.preempted_ns, turn.runnable_ns), (0, 10));
        thread.switched_out(false, 1, 150);
        assert!(!thread.woken(160), "it waits for its loop's events");
    }

    /// A turn has the faults from its beginning to its end, and those before are not its own. Of a turn
    /// whose beginning was not seen, they count from when they were first looked at.
    #[test]
    fn faults_of_a_turn() {
        let faults = |minor, major| Faults { minor, major };
        let mut thread = Loop::default();
        thread.adopt(&EPOLL);
        thread.begin(50, START_UNKNOWN);
        thread.count_faults(faults(1000, 7));
        thread.count_faults(faults(1003, 7));
        let turn = over(thread.wait_entered(&EPOLL, 60));
        assert_eq!((turn.minor_faults, turn.major_faults), (3, 0));
        thread.count_faults(faults(1005, 8));
        thread.wait_left(100);
        thread.count_faults(faults(1015, 9));
        assert_eq!(thread.turn.minor_faults, 10);
        thread.switched_out(false, 2, 110);
        thread.count_faults(faults(1025, 9));
        let turn = over(thread.wait_entered(&EPOLL, 120));
        assert_eq!((turn.minor_faults, turn.major_faults), (20, 1));
    }

    /// SIGSTOP and the freezer are neither blocking nor waiting for a CPU.
    #[test]
    fn stopped_is_its_own_state() {
        for task_state in [0x4, 0x8, 0x8000] {
            let mut thread = in_turn(100);
            assert_eq!(thread.switched_out(false, task_state, 110), Left::Blocked);
            thread.woken(150);
            thread.switched_in(155);
            let turn = over(thread.wait_entered(&EPOLL, 160));
            assert_eq!((turn.stopped_ns, turn.blocked_ns, turn.runnable_ns), (40, 0, 5));
        }
    }

    /// A turn that ended by parking has the time up to there, whenever that is found out.
    #[test]
    fn parks_that_are_found_later() {
        // ns   100      130        150      160          900       905
        //       ├ running ┤ blocked ┤ running ┤ parked ... woken ┤ back
        let mut thread = in_turn(100);
        thread.switched_out(false, 1, 130);
        thread.woken(150);
        thread.switched_in(150);
        thread.switched_out(false, 1, 160);
        let blocked_ns = thread.turn.blocked_ns;
        thread.woken(900);
        let turn = thread.had_parked(blocked_ns);
        assert_eq!((turn.running_ns, turn.blocked_ns, turn.booked_ns()), (40, 20, 60));
        thread.unparked(905);
        assert_eq!((thread.turns, thread.turn.start_ns), (1, 905));
    }

    /// Where the kernel kept a switch-out from us, the sum still holds and the loss is told.
    #[test]
    fn missed_switch_heals() {
        let mut thread = in_turn(100);
        assert!(!thread.switched_in(130), "it was thought to be on a CPU");
        assert_eq!(over(thread.wait_entered(&EPOLL, 150)).booked_ns(), 50);
    }

    /// Time that goes backwards between two CPUs' probes books nothing twice.
    #[test]
    fn stale_time_books_nothing() {
        let mut thread = in_turn(100);
        thread.switched_out(false, 1, 120);
        thread.woken(118);
        thread.switched_in(140);
        let turn = over(thread.wait_entered(&EPOLL, 150));
        assert_eq!(turn.booked_ns(), 50);
    }

    /// A loop that was in a turn when we came is measured from then on, and says so.
    #[test]
    fn frozen_before_we_came() {
        let mut thread = Loop::default();
        thread.begin(500, START_UNKNOWN);
        thread.state = state::BLOCKED;
        thread.adopt(&EPOLL);
        thread.switched_in(900);
        let turn = over(thread.wait_entered(&EPOLL, 910));
        assert_eq!((turn.flags, turn.blocked_ns, turn.running_ns), (START_UNKNOWN, 400, 10));
    }

    /// The dead do not stall.
    #[test]
    fn exit_is_told() {
        let mut thread = in_turn(100);
        assert_eq!(thread.switched_out(false, 0x80, 110), Left::Dead);
        assert_eq!(thread.turn.booked_ns(), 10);
    }

    /// Waiting threads are not accounted: the scheduler hook does nothing for them.
    #[test]
    fn idle_costs_nothing() {
        let mut thread = in_turn(100);
        thread.wait_entered(&EPOLL, 110);
        let before = thread;
        assert_eq!(thread.switched_out(false, 1, 120), Left::Elsewhere);
        thread.woken(130);
        assert!(thread.switched_in(140));
        assert_eq!(thread, before);
        assert_eq!(thread.phase, phase::WAITING);
    }

    /// An instance is told by its file: another descriptor of it ends the turn, and its number on another file
    /// does not.
    #[test]
    fn instances_are_files() {
        let mut thread = in_turn(100);
        assert!(!thread.is_home(&call(wait::EPOLL, EPFD, 0xb000)));
        assert!(
            thread.is_home(&call(wait::EPOLL, EPFD, 0)),
            "what is not known is told by its number"
        );
        let again = call(wait::EPOLL, EPFD + 4, 0xa000);
        assert_eq!(over(thread.wait_entered(&again, 140)).booked_ns(), 40);
        assert_eq!(thread.home_fd, EPFD + 4);
        assert!(!thread.takes_over(&call(wait::EPOLL, EPFD, 0xb000)), "its own may be open yet");
        let mut seeded = Loop::default();
        seeded.adopt(&WaitCall::any(wait::EPOLL));
        assert!(seeded.takes_over(&EPOLL));
        assert!(
            has_instance(wait::EPOLL, [7, 0, 0, 16]) && has_instance(wait::IO_URING, [7, 0, 1, 1])
        );
        assert!(!has_instance(wait::IO_URING, [0, 0, 1, 17]) && !has_instance(wait::POLL, [0; 4]));
    }

    /// A turn has the time in which its instance was seen open, and none after.
    #[test]
    fn a_closed_instance_ends_the_turn() {
        // ns   100     130        150       180         900
        //       ├ open ┤ blocked ┤ open ... ┤ closed ... ┤ another
        let mut thread = in_turn(100);
        thread.switched_out(false, 1, 130);
        thread.is_open(150);
        thread.switched_in(150);
        let turn = thread.closed();
        assert_eq!((turn.booked_ns(), turn.running_ns, turn.blocked_ns), (50, 30, 20));
        assert_eq!((thread.phase, thread.turns), (phase::LOOPLESS, 1));
        let before = thread;
        assert_eq!(thread.switched_out(false, 1, 200), Left::Elsewhere);
        thread.woken(300);
        thread.switched_in(310);
        assert_eq!(thread, before);
        assert!(!thread.wait_left(400), "a nested wait's return begins nothing");
        thread.adopt(&call(wait::EPOLL, EPFD, 0xb000));
        assert_eq!(thread.wait_entered(&call(wait::EPOLL, EPFD, 0xb000), 900), Entered::Idle);
        assert!(thread.wait_left(910));
        assert_eq!(thread.turn.start_ns, 910);
    }

    /// Of a wait that was under way when its hook was made, the return is not seen: the turn after it began as the
    /// thread came onto a CPU, whatever is seen next. Woken for nothing, it waits on.
    #[test]
    fn first_waits() {
        let waiting = || {
            let mut thread = Loop::default();
            thread.adopt(&EPOLL);
            (thread.phase, thread.wait_syscall, thread.back_ns) = (phase::WAITING, 232, 500);
            thread
        };
        let mut thread = waiting();
        assert_eq!(thread.may_have_left_ns(), Some(500));
        // It ran up to its next wait.
        let Entered::TurnOver(turn) = thread.wait_entered(&EPOLL, 900) else { panic!("no turn") };
        assert_eq!((turn.start_ns, turn.running_ns, turn.flags), (500, 400, 0));
        assert_eq!((thread.left_ns, thread.back_ns, thread.turns), (500, 0, 1));
        assert!(!thread.is_in_first_wait());
        // It was found in another call, or on a CPU.
        let mut thread = waiting();
        thread.had_left(700);
        assert_eq!((thread.phase, thread.turn.start_ns, thread.turn.flags), (phase::TURN, 500, 0));
        assert_eq!(thread.switched_out(false, 1, 750), Left::Blocked);
        assert_eq!(thread.turn.running_ns, 250);
        // Where the return is seen, it is that.
        let mut thread = waiting();
        assert!(thread.wait_left(510));
        assert_eq!((thread.turn.start_ns, thread.back_ns), (510, 0));
        assert_eq!(thread.may_have_left_ns(), None);
    }

    /// A thread that is found outside of its wait has left it, unseen; one inside has not.
    #[test]
    fn missed_returns() {
        let mut thread = in_turn(100);
        assert!(!thread.has_left_unseen(1), "it is in a turn");
        thread.wait_entered(&EPOLL, 110);
        assert!(!thread.has_left_unseen(232));
        assert!(thread.has_left_unseen(1) && thread.has_left_unseen(u64::MAX));
        thread.had_left(150);
        assert_eq!(
            (thread.turn.start_ns, thread.turn.flags, thread.left_ns),
            (150, START_UNKNOWN, 150)
        );
    }

    /// When a loop was served last stays known through its turns and parks.
    #[test]
    fn when_it_waited() {
        let mut thread = in_turn(100);
        assert_eq!((thread.entered_ns, thread.left_ns), (99, 100));
        thread.switched_out(false, 1, 110);
        thread.parked();
        thread.unparked(500);
        assert_eq!((thread.entered_ns, thread.left_ns, thread.turn.start_ns), (99, 100, 500));
    }

    /// Who is woken to wait in another's place has no turn of its own to count; who is handed work has.
    #[test]
    fn turns_of_shared_instances() {
        let mut thread = Loop { shares: 1, ..in_turn(100) };
        thread.switched_out(false, 1, 110);
        thread.parked();
        thread.unparked(500);
        thread.wait_entered(&EPOLL, 501);
        assert_eq!(thread.turns, 1);
        let mut worker = Loop { shares: 0, ..thread };
        worker.unparked(600);
        worker.parked();
        assert_eq!(worker.turns, 2);
    }

    /// A thread's first piece of work begins at its birth, and the time to its first CPU is part of it.
    #[test]
    fn births() {
        let mut thread = Loop::default();
        thread.born(100);
        thread.switched_in(130);
        thread.switched_out(false, 1, 150);
        let turn = thread.account(190);
        assert_eq!((turn.flags, turn.start_ns), (SINCE_BIRTH, 100));
        assert_eq!((turn.runnable_ns, turn.running_ns, turn.blocked_ns), (30, 20, 40));
    }

    /// Looking at a turn that is still going on does not change it.
    #[test]
    fn account_looks_only() {
        let mut thread = in_turn(100);
        thread.switched_out(false, 1, 120);
        let before = thread;
        let turn = thread.account(400);
        assert_eq!((turn.running_ns, turn.blocked_ns), (20, 280));
        assert_eq!(thread, before);
    }
}
