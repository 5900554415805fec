//! A turn's account and stacks to the things that its time went into, the longest first.

use super::component::{Component, Nature};
use super::same_wait::SameWait;
use super::{memory, quota};
use crate::activity::Activity;
use crate::report::account::Part;
use crate::turn::{Sampled, Stall};

/// What the turn's time went into, longest first. The times add up to what is booked, unless the waits
/// that were seen are longer than the time that was booked as blocked: a wait that still lasts is
/// measured a moment later than its booking.
pub fn components(stall: &Stall) -> Vec<Component<'_>> {
    let turn = &stall.turn;
    let mut components = Components::default();
    let running = shown(stall, Part::Running);
    let of_memory = |sampled: &&Sampled| Some((memory::activity(sampled)?, sampled.time_ns));
    let for_memory_ns: u64 = running.iter().filter_map(of_memory).map(|(_, time_ns)| time_ns).sum();
    components.add(Nature::Running, turn.running_ns.saturating_sub(for_memory_ns));
    for sampled in running {
        match memory::activity(sampled) {
            Some(activity) => components.see(Nature::Memory(activity), sampled.time_ns, sampled),
            None => components.see(Nature::Running, 0, sampled),
        }
    }
    let mut seen_ns: u64 = 0;
    for sampled in shown(stall, Part::Blocked) {
        seen_ns = seen_ns.saturating_add(sampled.time_ns);
        let is_stop = sampled.activity().is_some_and(Activity::is_stop);
        let nature = match memory::activity(sampled) {
            Some(activity) => Nature::Memory(activity),
            // To the scheduler a thread that version 2's freezer stops is asleep.
            None if is_stop => Nature::Stopped,
            None => Nature::Waiting(SameWait::of(sampled)),
        };
        components.see(nature, sampled.time_ns, sampled);
    }
    components.add(Nature::Unseen, turn.blocked_ns.saturating_sub(seen_ns));
    let throttled_ns = quota::throttled_ns(stall);
    components.add(Nature::Throttled, throttled_ns);
    components.add(Nature::Runnable, turn.runnable_ns.saturating_sub(throttled_ns));
    for sampled in shown(stall, Part::Runnable) {
        components.see(Nature::Runnable, 0, sampled);
    }
    components.add(Nature::Stopped, turn.stopped_ns);
    for sampled in shown(stall, Part::Stopped) {
        components.see(Nature::Stopped, 0, sampled);
    }
    components.freeze(stall.environment.frozen_ns);
    components.longest_first()
}

/// Components while they are gathered.
#[derive(Debug, Default)]
struct Components<'a>(Vec<Component<'a>>);

impl<'a> Components<'a> {
    fn of(&mut self, nature: Nature<'a>) -> &mut Component<'a> {
        let place = self.0.iter().position(|known| known.nature == nature).unwrap_or_else(|| {
            self.0.push(Component { nature, time_ns: 0, stacks: Vec::new() });
            self.0.len() - 1
        });
        &mut self.0[place]
    }

    fn add(&mut self, nature: Nature<'a>, time_ns: u64) {
        let component = self.of(nature);
        component.time_ns = component.time_ns.saturating_add(time_ns);
    }

    fn see(&mut self, nature: Nature<'a>, time_ns: u64, sampled: &'a Sampled) {
        self.add(nature, time_ns);
        self.of(nature).stacks.push(sampled);
    }

    /// A thread that sleeps where the kernel allows it is frozen in its sleep, without a switch (6.1):
    /// what its group was seen frozen for is taken from its waits.
    fn freeze(&mut self, frozen_ns: u64) {
        let known_ns = self.of(Nature::Stopped).time_ns;
        let mut left_ns = frozen_ns.saturating_sub(known_ns);
        for component in &mut self.0 {
            if matches!(component.nature, Nature::Waiting(_) | Nature::Unseen) {
                let taken_ns = component.time_ns.min(left_ns);
                component.time_ns -= taken_ns;
                left_ns -= taken_ns;
            }
        }
        self.add(Nature::Stopped, frozen_ns.saturating_sub(known_ns) - left_ns);
    }

    fn longest_first(self) -> Vec<Component<'a>> {
        let mut components = self.0;
        components.retain(|component| component.time_ns > 0);
        // Among equals the first: stacks come heaviest first.
        components.sort_by_key(|component| std::cmp::Reverse(component.time_ns));
        components
    }
}

/// The stacks of one part.
fn shown(stall: &Stall, part: Part) -> Vec<&Sampled> {
    stall.stacks.iter().filter(|sampled| part.shows(sampled)).collect()
}
