"""A loop that is not closed, over before the program is: its interpreter ends, and waits meanwhile.

`--pool`: for a pool's thread; `--handler`: in an exit handler; `--looping`: for an event loop that an exit handler
runs, and that is blocked: the one stall that is one. Prints `ready 0 PID`, and `over` where only the end is left.
"""

import argparse
import asyncio
import atexit
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from truth import Truth

WAITS_S = 1.2


def last_rites():
    time.sleep(WAITS_S)


def flush_metrics(truth):
    async def flush():
        with truth.stall("sleep"):
            time.sleep(WAITS_S)

    asyncio.run(flush())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["pool", "thread", "handler", "looping"], required=True)
    parser.add_argument("--truth", metavar="FILE", help="where to write down the stall, if there is one")
    options = parser.parse_args()
    truth = Truth(options.truth)
    loop = asyncio.new_event_loop()
    print("ready 0", os.getpid(), flush=True)
    # Time to attach.
    loop.run_until_complete(asyncio.sleep(2.5))
    if options.kind == "pool":
        ThreadPoolExecutor(1).submit(last_rites)
    elif options.kind == "thread":
        threading.Thread(target=last_rites).start()
    elif options.kind == "handler":
        atexit.register(last_rites)
    else:
        atexit.register(flush_metrics, truth)
    print("over", flush=True)
    # Never closed, and never collected before the end.
    globals()["kept"] = loop


main()
