"""A loop that is frozen by tasks of every kind and by plain callbacks, which write down whose turn it was.

`ready 0 PID` on standard output, then everything once on SIGUSR1. With --healthy every turn stays short.
"""

import argparse
import asyncio
import os
import signal
import sys

from task_truth import freeze

BREATH_S = 0.05


def retry(kind, ms):
    freeze(kind, ms)


async def sign(kind, ms):
    await asyncio.sleep(0)
    retry(kind, ms)


async def charge(kind, ms):
    await asyncio.sleep(0)
    await sign(kind, ms)


async def refund(kind, ms):
    freeze(kind, ms)


async def score(kind, ms):
    freeze(kind, ms, spin=True)


async def pages(kind, ms):
    yield 1
    freeze(kind, ms)
    yield 2


async def export(kind, ms):
    async for _ in pages(kind, ms):
        await asyncio.sleep(0)


async def start_eagerly(kind, ms):
    await asyncio.sleep(0)
    await asyncio.create_task(refund(kind, ms), name=kind)


class Shop:
    async def open(self, kind, ms):
        await charge(kind, ms)


async def play(ms):
    loop = asyncio.get_running_loop()

    async def breathe():
        await asyncio.sleep(BREATH_S)

    await asyncio.create_task(charge("named", ms), name="billing-7")
    await breathe()
    await asyncio.create_task(charge("default name", ms))
    await breathe()
    await asyncio.create_task(charge("another alphabet", ms), name="Zahlung-Ü€😀")
    await breathe()
    await asyncio.create_task(Shop().open("method", ms))
    await breathe()
    await asyncio.create_task(export("asynchronous generator", ms))
    await breathe()
    await asyncio.create_task(score("busy", ms), name="scores")
    await breathe()
    await asyncio.create_task(asyncio.wait_for(refund("under a library", ms), 60))
    await breathe()
    loop.call_soon(retry, "callback", ms)
    await breathe()
    loop.call_later(BREATH_S, retry, "timer", ms)
    await asyncio.sleep(2 * BREATH_S)
    await asyncio.gather(refund("first of two", ms // 4), charge("second of two", ms))
    await breathe()
    # The task of all of this.
    retry("main", ms)
    await breathe()
    if sys.version_info >= (3, 12):
        loop.set_task_factory(asyncio.eager_task_factory)
        await start_eagerly("eager", ms)
        await breathe()
        await asyncio.create_task(charge("eager, later on", ms))
        await breathe()


async def main(ms):
    begin = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin.set)
    print("ready 0", os.getpid(), flush=True)
    await begin.wait()
    await play(ms)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--healthy", action="store_true", help="never keep the loop for long")
options = parser.parse_args()
asyncio.run(main(20 if options.healthy else 250))
