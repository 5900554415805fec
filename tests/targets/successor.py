"""An asyncio program that stalls when it gets SIGUSR1, and on SIGUSR2 as well, where it then executes the program that
it was given; on SIGHUP a thread of it does that.

Tests run copies of it in which NAME is another word: other functions at the same places.

usage: NAME.py PROGRAM ARGUMENT...
"""

import asyncio
import os
import signal
import sys
import threading
import time


def NAME_works():
    time.sleep(0.4)


def NAME_handles():
    NAME_works()


def NAME_leaves():
    NAME_works()
    os.execv(sys.argv[1], sys.argv[1:])


def NAME_leaves_by_thread():
    threading.Thread(target=NAME_leaves).start()
    time.sleep(20)


async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, NAME_handles)
    loop.add_signal_handler(signal.SIGUSR2, NAME_leaves)
    loop.add_signal_handler(signal.SIGHUP, NAME_leaves_by_thread)
    print("ready NAME", flush=True)
    while True:
        await asyncio.sleep(0.05)


asyncio.run(main())
