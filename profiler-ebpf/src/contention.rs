//! Who ran on a CPU while a loop's thread was ready and waited for it: the rules that run in the kernel.
//!
//! At each switch on that CPU, the task that leaves it has the time since the switch before. What
//! cannot be known is given to nobody: the sum is at most the turn's `runnable_ns`.

use core::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::limits::MAX_CONTENDERS;
use crate::record::RecordHead;

/// A task, as the kernel numbers it. The idle task of each CPU is 0 in both.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TaskId {
    /// The process.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
}

impl TaskId {
    /// Nobody that is known.
    pub const UNKNOWN: Self = Self { tgid: u32::MAX, tid: u32::MAX };
}

/// One task, and for how long it ran instead.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ContenderEntry {
    /// Which.
    pub task: TaskId,
    /// On the CPU that the loop's thread waited for, ns.
    pub time_ns: u64,
    /// What the thread was called, ended by a zero; all zero where it was not seen to leave the CPU.
    pub name: [u8; 16],
}

/// The kernel's count of how a thread waited for CPUs.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Queued {
    /// How long, without the queue that it is in now, ns.
    pub delay_ns: u64,
    /// How often it was moved to another CPU's queue.
    pub migrations: u64,
}

/// Who ran instead of one loop's thread in one turn. Lies in the loop's slot; sent as it is when a
/// turn past the threshold is over.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Contenders {
    /// [`crate::record::kind::CONTENDERS`]
    pub head: RecordHead,
    /// See [`crate::version`].
    pub version: u64,
    /// The turn that all this is about.
    pub turn_start_ns: u64,
    /// The thread's task, as an address in the kernel, while it waits for a CPU; else 0.
    pub waiter: u64,
    /// Until when all is given to somebody.
    pub until_ns: u64,
    /// Since when it waits.
    pub since_ns: u64,
    /// How it had waited before.
    pub before: Queued,
    /// Who runs where it waits, from `until_ns` on.
    pub on_cpu: TaskId,
    /// The CPU that it waits for.
    pub cpu: u32,
    /// How many of `tasks` are in use.
    pub used: u32,
    /// The CPU had nothing to run that it was allowed to, ns.
    pub idle_ns: u64,
    /// Of tasks that there was no room for, ns.
    pub others_ns: u64,
    /// Which of `tasks` is the next that has to stand a comparison with a new one.
    pub hand: u64,
    /// In no order. One that makes room for another and comes back later begins anew.
    pub tasks: [ContenderEntry; MAX_CONTENDERS],
}

const _: () = assert!(MAX_CONTENDERS.is_power_of_two());

impl Contenders {
    /// The thread waits for a CPU from now on. `on_cpu` is who comes onto that CPU, if that is known.
    #[inline(always)]
    pub fn begin(
        &mut self,
        turn_start_ns: u64,
        waiter: u64,
        cpu: u32,
        on_cpu: TaskId,
        now_ns: u64,
    ) {
        if self.turn_start_ns != turn_start_ns {
            self.turn_start_ns = turn_start_ns;
            self.used = 0;
            self.idle_ns = 0;
            self.others_ns = 0;
        }
        self.waiter = waiter;
        self.cpu = cpu;
        self.on_cpu = on_cpu;
        self.since_ns = now_ns;
        self.until_ns = now_ns;
    }

    /// The thread waits no more.
    #[inline(always)]
    pub fn end(&mut self) {
        self.waiter = 0;
    }

    /// Whose the time since the last booking is, if `task` is on the CPU at its end. Of that CPU, all is
    /// known from `since_ns` on; where that is later than the booking, only the time from there on is its.
    #[inline(always)]
    pub fn ran(&mut self, task: TaskId, since_ns: u64) -> TaskId {
        if since_ns > self.until_ns {
            self.until_ns = since_ns;
            return task;
        }
        // Where somebody else came onto it, a switch in between was kept from us.
        let is_it = self.on_cpu == TaskId::UNKNOWN || self.on_cpu.tid == task.tid;
        if is_it { task } else { TaskId::UNKNOWN }
    }

    /// Whose the time since the last booking is, if the CPU has not been switched since; `since_ns` as above.
    #[inline(always)]
    pub const fn stays(&self, since_ns: u64) -> TaskId {
        if since_ns > self.until_ns { TaskId::UNKNOWN } else { self.on_cpu }
    }

    /// This task had the CPU from the last booking to `now_ns`. `name` is asked for once a task.
    #[inline(always)]
    pub fn book(&mut self, task: TaskId, now_ns: u64, name: impl FnOnce(&mut [u8; 16])) {
        let passed_ns = now_ns.saturating_sub(self.until_ns);
        if passed_ns == 0 {
            return;
        }
        self.until_ns = now_ns;
        if task.tid == TaskId::UNKNOWN.tid {
            return;
        }
        if task.tid == 0 {
            self.idle_ns += passed_ns;
            return;
        }
        let used = self.used as usize;
        let mut place = 0;
        while place < MAX_CONTENDERS && place < used && self.tasks[place].task.tid != task.tid {
            place += 1;
        }
        // The verifier would else follow what comes now once for each place.
        let place = black_box(place);
        let is_known = place < used;
        let has_room = place < MAX_CONTENDERS;
        // To look for the least at each switch would take too long: where there is no room, they take turns.
        let place = if has_room { place } else { self.hand as usize } & (MAX_CONTENDERS - 1);
        let contender = &mut self.tasks[place];
        if has_room && is_known {
            contender.time_ns += passed_ns;
            return;
        }
        if has_room {
            self.used = place as u32 + 1;
        } else {
            self.hand += 1;
            let lost_ns = contender.time_ns.min(passed_ns);
            self.others_ns += lost_ns;
            if lost_ns == passed_ns {
                return;
            }
        }
        contender.task = task;
        contender.time_ns = passed_ns;
        contender.name = [0; 16];
        name(&mut contender.name);
    }

    /// Until when the thread waited where it began to, if it was moved from there once since: then all
    /// that it has waited and left was there.
    #[inline(always)]
    pub const fn moved_at(&self, queued: Queued) -> Option<u64> {
        if queued.migrations.wrapping_sub(self.before.migrations) != 1 {
            return None;
        }
        Some(self.since_ns + queued.delay_ns.wrapping_sub(self.before.delay_ns))
    }

    /// The thread waits elsewhere since `moved_ns`, as far as that is known. Who runs there is not.
    #[inline(always)]
    pub fn moved(&mut self, moved_ns: Option<u64>, queued: Queued, now_ns: u64) {
        self.on_cpu = TaskId::UNKNOWN;
        self.until_ns = now_ns;
        self.before = queued;
        match moved_ns {
            Some(moved_ns) => self.since_ns = moved_ns,
            // Then it is not known of the next move either.
            None => self.before.migrations = queued.migrations.wrapping_sub(1),
        }
    }

    /// The same seen from elsewhere, at `now_ns`: what is still going on has its time so far.
    pub fn so_far(&self, now_ns: u64) -> Self {
        let mut copy = *self;
        if copy.waiter != 0 {
            copy.book(self.on_cpu, now_ns, |_| {});
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::{Contenders, Queued, TaskId};
    use crate::limits::MAX_CONTENDERS;

    const IDLE: TaskId = TaskId { tgid: 0, tid: 0 };

    fn task(tid: u32) -> TaskId {
        TaskId { tgid: tid, tid }
    }

    fn waiting(now_ns: u64) -> Contenders {
        let mut contenders = Contenders::default();
        contenders.begin(50, 0xffff, 3, TaskId::UNKNOWN, now_ns);
        contenders
    }

    fn times(contenders: &Contenders) -> Vec<(u32, u64)> {
        let used = &contenders.tasks[..contenders.used as usize];
        used.iter().map(|contender| (contender.task.tid, contender.time_ns)).collect()
    }

    /// Each task has its time, however often it comes back; the idle task is kept apart.
    #[test]
    fn everybody_has_their_time() {
        // ns   100      130      150    180     200
        //       ├ 7 ran  ┤ 8 ran  ┤ idle ┤ 7 ran ┤
        let mut contenders = waiting(100);
        contenders.book(task(7), 130, |name| name[0] = b'a');
        contenders.book(task(8), 150, |name| name[0] = b'b');
        contenders.book(IDLE, 180, |_| panic!("nobody asks for its name"));
        contenders.book(task(7), 200, |_| panic!("it is known"));
        assert_eq!(times(&contenders), [(7, 50), (8, 20)]);
        assert_eq!((contenders.idle_ns, contenders.others_ns), (30, 0));
        assert_eq!([contenders.tasks[0].name[0], contenders.tasks[1].name[0]], *b"ab");
    }

    /// Stretches of one turn add up; another turn begins with nobody.
    #[test]
    fn turns_do_not_mix() {
        let mut contenders = waiting(100);
        contenders.book(task(7), 130, |_| {});
        contenders.end();
        contenders.begin(50, 0xffff, 3, task(7), 500);
        contenders.book(task(7), 510, |_| {});
        assert_eq!(times(&contenders), [(7, 40)]);
        contenders.begin(600, 0xffff, 3, task(9), 700);
        assert_eq!((times(&contenders).len(), contenders.idle_ns), (0, 0));
    }

    /// Of time in which the CPU was switched unseen, nobody has any.
    #[test]
    fn who_ran_at_the_end_need_not_have_run_before() {
        // ns   100    130                  170     200
        //       ├ 7 ─┤ not followed: 8, 9 ┤ 9 ran ┤
        let mut contenders = Contenders::default();
        contenders.begin(50, 0xffff, 3, task(7), 100);
        let ran = contenders.ran(task(7), 90);
        contenders.book(ran, 130, |_| {});
        contenders.on_cpu = task(8);
        let ran = contenders.ran(task(9), 170);
        contenders.book(ran, 200, |_| {});
        assert_eq!(times(&contenders), [(7, 30), (9, 30)]);

        contenders.on_cpu = task(7);
        let ran = contenders.ran(task(8), 200);
        assert_eq!(ran, TaskId::UNKNOWN, "7 has left, unseen");
        assert_eq!((contenders.stays(200), contenders.stays(201)), (task(7), TaskId::UNKNOWN));
        contenders.on_cpu = TaskId::UNKNOWN;
        assert_eq!(contenders.ran(task(8), 200), task(8));
    }

    /// What is known of nobody, and time that goes backwards, is given to nobody.
    #[test]
    fn nobodys_time() {
        let mut contenders = waiting(0);
        contenders.book(task(1), 10, |_| {});
        let before = contenders;
        contenders.book(task(1), 3, |_| {});
        assert_eq!(contenders, before, "time that goes backwards");
        contenders.book(TaskId::UNKNOWN, 1000, |_| {});
        contenders.book(task(1), 1003, |_| {});
        assert_eq!(times(&contenders), [(1, 10 + 3)], "nobody's time is not the next one's");
    }

    /// Where there is no room, whoever runs long comes in all the same, and all time counts once.
    #[test]
    fn long_runners_stay() {
        const HOG: u32 = 9999;
        let mut contenders = waiting(0);
        let mut now_ns = 0;
        for tid in 1..=10 * MAX_CONTENDERS as u32 {
            now_ns += 7;
            contenders.book(task(tid), now_ns, |_| {});
            now_ns += if tid > MAX_CONTENDERS as u32 { 50 } else { 0 };
            contenders.book(task(HOG), now_ns, |_| {});
        }
        let hog = times(&contenders).into_iter().find(|(tid, _)| *tid == HOG).unwrap();
        assert_eq!(hog.1, 9 * MAX_CONTENDERS as u64 * 50, "it came in at once, and stayed");
        let named: u64 = times(&contenders).iter().map(|(_, ns)| ns).sum();
        assert_eq!(named + contenders.others_ns, now_ns);
        assert_eq!(contenders.used as usize, MAX_CONTENDERS);
    }

    /// Where there is no room, newcomers are each held against another one.
    #[test]
    fn newcomers_take_turns() {
        let mut contenders = waiting(0);
        for tid in 1..=MAX_CONTENDERS as u32 {
            contenders.book(task(tid), 10 * u64::from(tid), |_| {});
        }
        let full_ns = 10 * MAX_CONTENDERS as u64;
        contenders.book(task(501), full_ns + 20, |_| {});
        contenders.book(task(502), full_ns + 40, |_| {});
        assert_eq!(times(&contenders)[..2], [(501, 20), (502, 20)]);
    }

    /// Of a thread that was moved once, it is known when; of one that was moved more often, it is not
    /// known where it waited for how long.
    #[test]
    fn moves() {
        let mut contenders = waiting(100);
        contenders.before = Queued { delay_ns: 5000, migrations: 8 };
        assert_eq!(contenders.moved_at(Queued { delay_ns: 5030, migrations: 9 }), Some(130));
        assert_eq!(contenders.moved_at(Queued { delay_ns: 5030, migrations: 10 }), None);
        assert_eq!(contenders.moved_at(contenders.before), None);

        // From where it is then, it may be moved again.
        let once = Queued { delay_ns: 5030, migrations: 9 };
        contenders.moved(contenders.moved_at(once), once, 135);
        assert_eq!((contenders.since_ns, contenders.until_ns), (130, 135));
        assert_eq!(contenders.moved_at(Queued { delay_ns: 5050, migrations: 10 }), Some(150));
        let twice_more = Queued { delay_ns: 5050, migrations: 11 };
        contenders.moved(contenders.moved_at(twice_more), twice_more, 160);
        assert_eq!(contenders.moved_at(Queued { delay_ns: 5060, migrations: 12 }), None);
    }

    /// A look from elsewhere counts what still goes on, and changes nothing.
    #[test]
    fn a_look_counts_what_goes_on() {
        let mut contenders = Contenders::default();
        contenders.begin(50, 0xffff, 3, task(7), 100);
        assert_eq!(times(&contenders.so_far(170)), [(7, 70)]);
        assert_eq!(contenders.used, 0);
        contenders.end();
        assert_eq!(contenders.so_far(170).used, 0);
    }
}
