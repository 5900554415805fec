"""An event loop that freezes and thaws by turns, for whoever comes while it is frozen.

Prints `ready 0 PID`, then `frozen` at the beginning of every freeze; writes each down; ends on SIGTERM. With
`--in-thread` the loop is in a thread that the main thread joins.
"""

import argparse
import asyncio
import os
import signal
import threading
import time

from truth import Truth


def wait_for_licence(truth, seconds):
    with truth.stall("sleep"):
        time.sleep(seconds)


def rebuild_index(truth, seconds):
    until_ns = time.monotonic_ns() + int(seconds * 1e9)
    entries = 0
    with truth.stall("spin", lines=2):
        while time.monotonic_ns() < until_ns:
            entries += 1


FREEZES = {"sleep": wait_for_licence, "spin": rebuild_index}


async def serve(freeze, freeze_s, thaw_s, truth):
    loop = asyncio.get_running_loop()
    stop = loop.create_future()
    if threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGTERM, stop.cancel)
    heartbeat = loop.create_task(truth.heartbeat())

    def refreeze():
        print("frozen", flush=True)
        freeze(truth, freeze_s)
        loop.call_later(thaw_s, refreeze)

    print("ready 0", os.getpid(), flush=True)
    # The loop waits once before it freezes, as any that has lived for a while.
    loop.call_later(thaw_s, refreeze)
    try:
        await stop
    except asyncio.CancelledError:
        heartbeat.cancel()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=sorted(FREEZES), default="sleep")
    parser.add_argument("--freeze-s", type=float, default=3)
    parser.add_argument("--thaw-s", type=float, default=1)
    parser.add_argument("--truth", metavar="FILE", help="where to write down each freeze")
    parser.add_argument("--in-thread", action="store_true")
    options = parser.parse_args()
    service = serve(FREEZES[options.kind], options.freeze_s, options.thaw_s, Truth(options.truth))
    if options.in_thread:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        thread = threading.Thread(target=asyncio.run, args=(service,), name="service")
        thread.start()
        thread.join()
    else:
        asyncio.run(service)


if __name__ == "__main__":
    main()
