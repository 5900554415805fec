"""A loop of a known pattern that writes down its own turns, for statistics to be held against.

Prints `ready PORT`, and sits idle until somebody connects there. Then it runs its turns, sits idle again, and
prints `turns JSON`: for every turn its duration in ns, how many events the wait before it returned, and whether
that wait slept and found nothing. With --endless it goes on instead until it is ended, and prints nothing more.
With --cpu it stays on that one.
"""

import argparse
import asyncio
import json
import os
import selectors
import socket
import threading
import time

TURNS = 300
PAUSE_S = 0.004
# Every so often that many descriptors become ready together, or there is work that no wait may delay.
EVERY, TOGETHER = 5, 3
# Longer than the loop takes from the last step to its next wait.
SETTLE_S = 0.3


class Recording(selectors.EpollSelector):
    """Writes down when waits begin and end."""

    def __init__(self):
        super().__init__()
        self.turns = []
        self._begun = None

    def select(self, timeout=None):
        now_ns = time.monotonic_ns()
        if self._begun is not None:
            start_ns, events, empty = self._begun
            self.turns.append((now_ns - start_ns, events, empty))
        found = super().select(timeout)
        slept = timeout is None or timeout > 0
        self._begun = (time.monotonic_ns(), len(found), slept and not found)
        return found


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def seconds_of(step):
    place = step % 100
    return 0.001 if place < 85 else 0.004 if place < 97 else 0.020


class Pattern:
    def __init__(self, loop, selector, listener, endless):
        self.loop, self.selector, self.listener, self.endless = loop, selector, listener, endless
        self.pairs = [socket.socketpair() for _ in range(TOGETHER)]
        for ours, _ in self.pairs:
            ours.setblocking(False)
            loop.add_reader(ours, ours.recv, 16)
        loop.add_reader(listener, self.begin)

    def begin(self):
        # In the turn that the connection began: whatever came before is not asked for.
        self.connection, _ = self.listener.accept()
        self.loop.remove_reader(self.listener)
        self.selector.turns.clear()
        self.step(0)

    def step(self, number):
        spin(seconds_of(number))
        if number % EVERY == 0:
            for _, theirs in self.pairs:
                theirs.send(b"x")
        elif number % EVERY == 1:
            # The loop looks for events without sleeping.
            self.loop.call_soon(int)
        if self.endless or number + 1 < TURNS:
            self.loop.call_later(PAUSE_S, self.step, number + 1)
        else:
            threading.Thread(target=self.tell).start()

    def tell(self):
        time.sleep(SETTLE_S)
        print("turns " + json.dumps(self.selector.turns), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", help="not used: there is no stall to tell of")
    parser.add_argument("--endless", action="store_true")
    parser.add_argument("--cpu", type=int)
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    listener = socket.create_server(("127.0.0.1", 0))
    selector = Recording()
    loop = asyncio.SelectorEventLoop(selector)
    # Kept: without it its sockets would be closed once the last step is done, and be ready for ever.
    pattern = Pattern(loop, selector, listener, options.endless)
    loop.call_soon(lambda: print("ready", listener.getsockname()[1], flush=True))
    loop.run_forever()
    del pattern


main()
