"""Threads that run an event loop each, one after another: the next may get the slot of the one before.

Prints `ready 0`, and after a second for each thread `loop TID TURNS`, the turns that its loop had at least. The
last one stays idle.
"""

import asyncio
import sys
import threading
import time

COUNTS = (60, 20, 5)


async def turns(count, stays):
    for _ in range(count):
        await asyncio.sleep(0.005)
    print("loop", threading.get_native_id(), count, flush=True)
    if stays:
        await asyncio.Event().wait()


def main():
    sys.argv.clear()
    print("ready 0", flush=True)
    # A loop of its own: without any, there is nothing to attach to.
    idle = asyncio.new_event_loop()
    threading.Thread(target=idle.run_forever, daemon=True).start()
    time.sleep(1.5)
    for count in COUNTS:
        thread = threading.Thread(target=lambda: asyncio.run(turns(count, count == COUNTS[-1])))
        thread.start()
        if count != COUNTS[-1]:
            thread.join()
            time.sleep(0.3)
    while True:
        time.sleep(1)


main()
