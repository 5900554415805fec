//! What was gathered of one turn, up to the moment of a line, to the stall that the line tells.

use super::Analyst;
use super::contenders::introduce;
use crate::gap::Gap;
use crate::turn::Stall;
use crate::turn::tracker::Due;

impl Analyst {
    pub(super) fn stall(&mut self, tid: u32, due: Due) -> Stall {
        let pid = self.target.pid();
        let away = self.away(&due.away, due.at_ns);
        let builder = self.builder(tid, due.turn.start_ns);
        let (ticks_user, ticks_kernel) = builder.samples.ticks();
        let (mut gaps, mut contention, environment) = (due.gaps, due.contention, due.environment);
        introduce(&mut contention, &mut builder.other_processes);
        contention.target = pid;
        if builder.samples.dropped > 0 {
            let why = format!(
                "{} captures showed more different ones than are kept",
                builder.samples.dropped
            );
            gaps.push(Gap::new("stacks", why));
        }
        let (ticks_collecting, calls) =
            (builder.samples.ticks_collecting(), builder.samples.calls());
        let stacks = builder.stacks(&due.turn, due.at_ns);
        let waited = builder.samples.waited(due.at_ns);
        let holders = builder.holders(&waited);
        gaps.extend(builder.gaps());
        let (owner, wakers) = (builder.owner(), builder.wakers());
        let (futexes, company) = (builder.futexes(due.at_ns), builder.company());
        let (others, queues) = (builder.others(), builder.queues());
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
            contention,
            others,
            away,
            environment,
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
