"""Threads that run an event loop each, one after another: more than there are slots, so that slots serve several.

Prints `ready 0`, and after SIGUSR1, when all have run, `loops JSON`: for each thread how often its loop slept. The
last one stays idle.
"""

import asyncio
import json
import signal
import threading
import time

# The first two leave sums behind that no other has.
SLEEPS = (60, 60) + (2,) * 70


async def sleep(count, stays):
    for _ in range(count):
        await asyncio.sleep(0.005)
    if stays:
        await asyncio.Event().wait()


def main():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    # A loop of its own: without any, there is nothing to attach to.
    idle = asyncio.new_event_loop()
    threading.Thread(target=idle.run_forever, daemon=True).start()
    print("ready 0", flush=True)
    signal.sigwait([signal.SIGUSR1])
    loops = []
    for number, count in enumerate(SLEEPS, 1):
        stays = number == len(SLEEPS)
        thread = threading.Thread(target=asyncio.run, args=(sleep(count, stays),), daemon=True)
        thread.start()
        loops.append((thread.native_id, count))
        if not stays:
            thread.join()
            # Its slot is handed out again a moment later.
            time.sleep(0.01)
    time.sleep(0.2)
    print("loops " + json.dumps(loops), flush=True)
    while True:
        time.sleep(1)


main()
