//! What was gathered of one turn, up to the moment of a line, to the stall that the line tells.

use super::Analyst;
use crate::gap::Gap;
use crate::turn::Stall;
use crate::turn::tracker::Due;

impl Analyst {
    pub(super) fn stall(&mut self, tid: u32, due: Due) -> Stall {
        let pid = self.target.pid();
        let away = self.away(&due.away, due.at_ns);
        let gathered = self.gathered(tid, due.turn.start_ns);
        let (ticks_user, ticks_kernel) = gathered.samples.ticks();
        let (mut gaps, mut instead, around) = (due.gaps, due.instead, due.around);
        instead.introduce(&mut gathered.neighbours);
        instead.target = pid;
        if gathered.samples.dropped > 0 {
            let why = format!(
                "{} captures showed more different ones than are kept",
                gathered.samples.dropped
            );
            gaps.push(Gap::new("stacks", why));
        }
        let (ticks_collecting, calls) =
            (gathered.samples.ticks_collecting(), gathered.samples.calls());
        let stacks = gathered.stacks(&due.turn, due.at_ns);
        let waited = gathered.samples.waited(due.at_ns);
        let holders = gathered.holders(&waited);
        gaps.extend(gathered.gaps());
        let (owner, wakers) = (gathered.owner(), gathered.wakers());
        let (futexes, company) = (gathered.futexes(due.at_ns), gathered.company());
        let (others, queues) = (gathered.others(), gathered.queues());
        let mut stall = Stall {
            tid,
            turn: due.turn,
            end: due.end,
            now: due.now,
            ticks_user,
            ticks_kernel,
            ticks_collecting,
            calls,
            stacks,
            holders,
            waited,
            owner,
            futexes,
            company,
            wakers,
            instead,
            others,
            away,
            around,
            ready_events: due.ready_events,
            queues,
            gaps,
        };
        if !self.config.show_commands {
            stall.hide_commands();
        }
        stall
    }
}
