"""How much work takes a given time on this machine: measured, not assumed.

A target that computes by a count or a size asks here how many that are. What it measures is CPU time, and the quickest
of a few: others on the machine can only make it slower.
"""

import time

# A trial shorter than this says little.
TRIAL_NS = 20_000_000
TRIES = 4


def cpu_ns(work, amount):
    """CPU time of this thread that the work takes at least."""

    def once():
        before_ns = time.thread_time_ns()
        work(amount)
        return time.thread_time_ns() - before_ns

    return max(min(once() for _ in range(TRIES)), 1)


def amount(work, seconds, first=1000):
    """The amount with which `work(amount)` takes that long. Twice as much has to take twice as long."""
    amount = first
    while True:
        taken_ns = cpu_ns(work, amount)
        if taken_ns >= TRIAL_NS:
            return max(int(amount * seconds * 1e9 / taken_ns), 1)
        amount *= 4


def steps(work, seconds, first=12):
    """The number of steps with which `work(steps)` takes that long or up to twice as long. Each step has to double it."""
    steps = first
    while True:
        taken_ns = cpu_ns(work, steps)
        if taken_ns >= TRIAL_NS:
            break
        steps += 1
    while taken_ns < seconds * 1e9:
        steps += 1
        taken_ns *= 2
    return steps
