"""A loop whose turns copy nested data: as deep as the data are the frames of copy.py above the handler.

`deep.py TURN …`: `copy=800` copies data of 800 levels for 300 ms of CPU time; `pause=800` copies data of which the
innermost part sleeps for 300 ms. Prints `ready 0 PID`, and after SIGUSR1 for every turn `stalled JSON`: from when until
when, which function is to blame, and how many Python frames were on the stack at the innermost. Ends by itself.
"""

import asyncio
import copy
import json
import os
import signal
import sys
import time

# Frames on the stack at the innermost of the data.
deepest = 0


class Leaf:
    pauses = False

    def __deepcopy__(self, memo):
        global deepest
        frame = None if deepest else sys._getframe()
        while frame:
            frame, deepest = frame.f_back, deepest + 1
        if self.pauses:
            time.sleep(0.3)
        return self


def nested(depth, leaf):
    data = [leaf]
    for _ in range(depth - 1):
        data = [data]
    return data


async def log_request(data, leaf):
    if leaf.pauses:
        copy.deepcopy(data)
        return
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        copy.deepcopy(data)


async def play(kind, depth):
    global deepest
    deepest = 0
    leaf = Leaf()
    leaf.pauses = kind == "pause"
    data = nested(depth, leaf)
    start_ns = time.monotonic_ns()
    await log_request(data, leaf)
    function = "__deepcopy__" if leaf.pauses else "log_request"
    told = dict(kind=kind, depth=depth, function=function, frames=deepest)
    print("stalled", json.dumps(dict(told, start_ns=start_ns, end_ns=time.monotonic_ns())), flush=True)


async def main():
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for turn in sys.argv[1:]:
        kind, depth = turn.split("=")
        await asyncio.sleep(0.2)
        await play(kind, int(depth))
    await asyncio.sleep(0.2)


sys.setrecursionlimit(40000)
asyncio.run(main())
