"""A service whose pools start their threads when there is work, and a healthy twin of it.

usage: newborn.py KIND. Prints `ready 0`; SIGUSR1 starts it. For each job of a pool it prints `held TID LINE START_NS
END_NS`, and `over` in the end. `grows`: a pool starts a thread for each of six jobs. `changes`: six pools, one after
the other, end with their one job. `brief`: both, with short jobs. `background`: threads that are in no pool's service
sleep for long.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

JOBS = 6


def job(seconds):
    start_ns = time.monotonic_ns()
    line = sys._getframe().f_lineno + 1
    time.sleep(seconds)
    words = ("held", threading.get_native_id(), line, start_ns, time.monotonic_ns())
    # One call, so that no two lines mix.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def grows(loop, durations):
    pool = ThreadPoolExecutor(JOBS)
    await asyncio.gather(*(loop.run_in_executor(pool, job, seconds) for seconds in durations))
    # Its threads are parked from now on, which is no work.
    await asyncio.sleep(0.5)


async def changes(loop, durations):
    for seconds in durations:
        with ThreadPoolExecutor(1) as pool:
            await loop.run_in_executor(pool, job, seconds)
        await asyncio.sleep(0.02)


def tick():
    while True:
        time.sleep(0.4)


async def background():
    for target in (tick, threading.Event().wait):
        threading.Thread(target=target, daemon=True).start()
    await asyncio.sleep(2)


async def serve(kind):
    loop = asyncio.get_running_loop()
    started = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, started.set)
    print("ready 0", flush=True)
    await started.wait()
    held = [0.15 + 0.03 * number for number in range(JOBS)]
    brief = [0.005] * 40
    if kind == "grows":
        await grows(loop, held)
    if kind == "changes":
        await changes(loop, held)
    if kind == "brief":
        await grows(loop, brief)
        await changes(loop, brief)
    if kind == "background":
        await background()
    await asyncio.sleep(0.3)
    print("over", flush=True)
    await asyncio.sleep(60)


asyncio.run(serve(sys.argv[1]))
