"""A loop of a CPython without the GIL, which another thread keeps waiting all the same, or, as a healthy twin, does not.

`collect`: that thread collects garbage, which stops all others. `object`: it sorts a list that the loop wants to append
to. Prints `ready 0 PID`, and after SIGUSR1 for every time `kept TID LINE START_NS END_NS`: by whom, on which line, and from
when until when. Ends by itself.
"""

import argparse
import asyncio
import gc
import os
import random
import signal
import threading
import time

# Well past twice the threshold.
LEAST_S = 0.3
TIMES = 3


def collect(heap):
    gc.collect()


def sort(prices):
    prices.sort()


def grow(make, work):
    """As much of it as keeps a thread that long."""
    count = 200_000
    while True:
        content = make(count)
        before = time.monotonic()
        work(content)
        took = time.monotonic() - before
        if took >= LEAST_S:
            return content
        del content
        count = int(count * max(1.3, min(4, 1.2 * LEAST_S / took)))


def boxes(count):
    return [[number] for number in range(count)]


def prices(count):
    return [random.random() for _ in range(count)]


KINDS = {"collect": (boxes, collect), "object": (prices, sort)}


def keep(content, work, healthy):
    line = work.__code__.co_firstlineno + 1
    for _ in range(TIMES):
        time.sleep(0.5)
        if work is sort:
            random.shuffle(content)
            time.sleep(0.3)
        start_ns = time.monotonic_ns()
        if healthy:
            time.sleep(LEAST_S)
        else:
            work(content)
        print("kept", threading.get_native_id(), line, start_ns, time.monotonic_ns(), flush=True)


# As long as the process lives: to free it takes long, too.
kept = []


async def serve(kind, healthy):
    content = grow(*KINDS[kind])
    kept.append(content)
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    thread = threading.Thread(target=keep, args=[content, KINDS[kind][1], healthy], name="reports")
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
        if kind == "object" and not content:
            content.append(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--healthy", action="store_true", help="let the other thread sleep instead")
    options = parser.parse_args()
    asyncio.run(serve(options.kind, options.healthy))


main()
