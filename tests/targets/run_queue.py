"""A loop that shares its CPU with others, and one of those others.

`run_queue.py loop --cpu 0 --hog PID … TURN …`: each argument is one turn: `compute=200` takes so many ms of CPU time,
`nap=50` wakes the hogs by SIGUSR1 and sleeps so many ms. Prints `ready 0 PID`, and after SIGUSR1 for every turn
`stalled JSON`: from when until when, and by the kernel's own count what the loop's thread and each hog ran, and how
long the loop's thread waited for the CPU, in ns. Ends by itself.

`run_queue.py hog --cpu 0` computes for ever. With `--pulse MS` it waits for SIGUSR1, and 10 ms later computes for so
long before everybody else on that CPU. Prints `ready`.
"""

import argparse
import asyncio
import json
import os
import signal
import time

FIFO_PRIORITY = 10


def schedstat(pid):
    """What the thread ran and what it waited, ns."""
    with open(f"/proc/{pid}/schedstat") as file:
        ran, waited, _ = file.read().split()
    return int(ran), int(waited)


def compute(milliseconds):
    before_ns = time.thread_time_ns()
    while time.thread_time_ns() - before_ns < milliseconds * 1e6:
        pass


def spin(milliseconds):
    until_ns = time.monotonic_ns() + milliseconds * 1e6
    while time.monotonic_ns() < until_ns:
        pass


def turn(kind, milliseconds, hogs):
    start_ns = time.monotonic_ns()
    ran_ns, waited_ns = schedstat("self")
    before = {pid: schedstat(pid)[0] for pid in hogs}
    if kind == "compute":
        compute(milliseconds)
    else:
        for pid in hogs:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(milliseconds / 1e3)
    ran_to_ns, waited_to_ns = schedstat("self")
    told = dict(
        kind=kind,
        start_ns=start_ns,
        end_ns=time.monotonic_ns(),
        ran_ns=ran_to_ns - ran_ns,
        waited_ns=waited_to_ns - waited_ns,
        hogs={pid: schedstat(pid)[0] - before[pid] for pid in hogs},
    )
    print("stalled", json.dumps(told), flush=True)


async def serve(turns, hogs):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for kind, milliseconds in turns:
        await asyncio.sleep(0.3)
        turn(kind, milliseconds, hogs)
    await asyncio.sleep(0.3)


def hog(pulse):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print("ready", flush=True)
    if pulse is None:
        while True:
            pass
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
    while True:
        signal.sigwait([signal.SIGUSR1])
        time.sleep(0.01)
        spin(pulse)


def turn_of(text):
    kind, milliseconds = text.split("=")
    return kind, float(milliseconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=["loop", "hog"])
    parser.add_argument("turns", nargs="*", type=turn_of)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--hog", type=int, action="append", default=[])
    parser.add_argument("--pulse", type=float)
    options = parser.parse_intermixed_args()
    os.sched_setaffinity(0, [options.cpu])
    if options.role == "hog":
        hog(options.pulse)
    asyncio.run(serve(options.turns, options.hog))


if __name__ == "__main__":
    main()
