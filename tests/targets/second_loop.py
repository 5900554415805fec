"""A main loop, and a second one in a thread of its own with a name; the second one stalls, if it is asked to.

Prints `ready TID`, the second thread's kernel number. Of each stall `held FUNCTION LINE START_NS END_NS`, ends on
SIGTERM. With `--renamed`, the thread has another name from its second stall on.
"""

import argparse
import asyncio
import signal
import sys
import threading
import time


def parse_feed(seconds):
    start_ns = time.monotonic_ns()
    time.sleep(seconds)
    line = sys._getframe().f_lineno - 1
    print("held parse_feed", line, start_ns, time.monotonic_ns(), flush=True)


async def beat():
    while True:
        await asyncio.sleep(0.02)


async def ingest(options):
    beating = asyncio.get_running_loop().create_task(beat())
    print("ready", threading.get_native_id(), flush=True)
    for count in range(options.stalls):
        await asyncio.sleep(2 if count == 0 else 0.5)
        if options.renamed and count == 1:
            threading.current_thread().name = options.renamed
        parse_feed(options.stall_s)
    await beating


async def serve():
    loop = asyncio.get_running_loop()
    stop = loop.create_future()
    loop.add_signal_handler(signal.SIGTERM, stop.cancel)
    beating = loop.create_task(beat())
    try:
        await stop
    except asyncio.CancelledError:
        beating.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="ingest")
    parser.add_argument("--renamed", default=None)
    parser.add_argument("--stalls", type=int, default=0)
    parser.add_argument("--stall-s", type=float, default=0.3)
    options = parser.parse_args()

    def second():
        asyncio.run(ingest(options))

    threading.Thread(target=second, name=options.name, daemon=True).start()
    asyncio.run(serve())


if __name__ == "__main__":
    main()
