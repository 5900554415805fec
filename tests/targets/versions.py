"""A loop that stalls twice once it is told to by SIGUSR1: asleep and busy, below C code and a coroutine.

Prints `ready PID`, then for each stall `stalled` and a JSON object: its kind, when it began and ended, and the
stack as another thread of this process saw it meanwhile. The healthy twin waits as long without blocking.
"""

import asyncio
import json
import os
import signal
import sys
import threading
import time

STALL_S = 0.4


def asleep():
    time.sleep(STALL_S)


def busy():
    # CPU time: what others have of the machine meanwhile is not this function's.
    end = time.thread_time() + STALL_S
    while time.thread_time() < end:
        pass


def handle(work):
    # Below a function written in C, which the loop's own C code has called.
    return sorted([work], key=lambda chosen: chosen())


async def inner(work):
    handle(work)


async def request(work):
    await inner(work)


def stack_of(frame):
    stack = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        stack.append({"function": name, "file": code.co_filename, "line": frame.f_lineno})
        frame = frame.f_back
    return stack


async def stall(work):
    seen = {}

    def look(ident):
        time.sleep(STALL_S / 2)
        seen["stack"] = stack_of(sys._current_frames()[ident])

    watcher = threading.Thread(target=look, args=[threading.get_ident()])
    watcher.start()
    start_ns = time.monotonic_ns()
    await request(work)
    seen.update(kind=work.__name__, start_ns=start_ns, end_ns=time.monotonic_ns())
    watcher.join()
    print("stalled", json.dumps(seen), flush=True)


async def serve(is_healthy):
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    print("ready", os.getpid(), flush=True)
    await told.wait()
    for work in (asleep, busy):
        await asyncio.sleep(STALL_S / 2)
        if is_healthy:
            for _ in range(40):
                await asyncio.sleep(STALL_S / 40)
        else:
            await stall(work)
    await asyncio.sleep(STALL_S / 2)


asyncio.run(serve("--healthy" in sys.argv))
