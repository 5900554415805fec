"""A loop that stalls twice, once it is told to by SIGUSR1, in a function that ran so often that a JIT has compiled it.

Prints `ready PID`, then for each stall `stalled` and a JSON object: its kind, and when it began and ended. The healthy
twin runs the same code in short pieces.
"""

import asyncio
import json
import os
import signal
import sys
import time

STALL_S = 0.4
ROUNDS = 20000


def step(total, number):
    return (total * 31 + number) % 1000003


def busy(until):
    total = number = 0
    while number % 1000 or time.thread_time() < until:
        number += 1
        total = step(total, number)
    return total


def nap(seconds):
    if seconds:
        time.sleep(seconds)


def asleep(until):
    # The last of many rounds sleeps, within the code that was made for all of them.
    for number in range(ROUNDS):
        nap(STALL_S if until and number == ROUNDS - 1 else 0)


def stall(work, until):
    start_ns = time.monotonic_ns()
    work(until)
    seen = {"kind": work.__name__, "start_ns": start_ns, "end_ns": time.monotonic_ns()}
    print("stalled", json.dumps(seen), flush=True)


async def serve(is_healthy):
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    busy(time.thread_time() + 0.05)
    asleep(0)
    print("ready", os.getpid(), flush=True)
    await told.wait()
    for work in (asleep, busy):
        await asyncio.sleep(STALL_S / 2)
        if is_healthy:
            for _ in range(20):
                busy(time.thread_time() + STALL_S / 40)
                await asyncio.sleep(STALL_S / 40)
        else:
            stall(work, time.thread_time() + STALL_S)
    await asyncio.sleep(STALL_S / 2)


asyncio.run(serve("--healthy" in sys.argv))
