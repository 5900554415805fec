"""A loop whose other thread keeps the interpreter's lock, or, as a healthy twin, gives it back.

Prints `ready 0 PID`, and after SIGUSR1 for every time `holding TID LINE START_NS` and `held END_NS`: who kept the lock,
on which line, and from when until when. At its end `late`, and the start and end of each of the loop's rounds that
took too long, whatever kept it. Ends by itself.
"""

import argparse
import asyncio
import os
import re
import signal
import threading
import time

import calibrated

# Well past twice the threshold.
HOLD_S = 0.4

WAIT_S = 0.01

# Half of the threshold.
LATE_NS = 50_000_000


def match(letters):
    re.match(r"(a+)+$", "a" * letters + "b")


def hold(times, letters):
    for _ in range(times):
        time.sleep(0.5)
        match_report(threading.get_native_id(), letters)


def match_report(tid, letters):
    print("holding", tid, match_report.__code__.co_firstlineno + 2, time.monotonic_ns(), flush=True)
    re.match(r"(a+)+$", "a" * letters + "b")
    print("held", time.monotonic_ns(), flush=True)


def wait_for_report(times, _letters):
    for _ in range(times):
        time.sleep(1.5)


async def serve(work, times):
    letters = calibrated.steps(match, HOLD_S)
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    late = []
    start = time.monotonic_ns()
    thread = threading.Thread(target=work, args=[times, letters], name="reports")
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(WAIT_S)
        end = time.monotonic_ns()
        if end - start > LATE_NS:
            late += [start, end]
        start = end
    print("late", *late, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true", help="let the other thread sleep instead")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    asyncio.run(serve(wait_for_report if options.healthy else hold, options.times))


main()
