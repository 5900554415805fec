"""A loop whose handler computes, sleeps and waits for a slow neighbour within one turn, for times that it is told.

Each argument is one turn: `cpu=200,sleep=90,recv=120`, in ms. Prints `ready 0 PID`, and after SIGUSR1 for every turn
`stalled JSON`: from when until when, and the ns that went into each part by the program's own clocks. Ends by itself.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import threading
import time


def compute(seconds):
    before_ns = time.thread_time_ns()
    while time.thread_time_ns() - before_ns < seconds * 1e9:
        pass
    return time.thread_time_ns() - before_ns


def pause(seconds):
    before_ns = time.monotonic_ns()
    time.sleep(seconds)
    return time.monotonic_ns() - before_ns


class Neighbour:
    """Answers each request, a number of seconds, with a byte after that time."""

    def __init__(self):
        self.here, there = socket.socketpair()
        threading.Thread(target=self.serve, args=[there], daemon=True).start()

    @staticmethod
    def serve(there):
        while request := there.recv(64):
            time.sleep(float(request))
            there.send(b".")

    def ask(self, seconds):
        self.here.send(str(seconds).encode())
        before_ns = time.monotonic_ns()
        self.here.recv(1)
        return time.monotonic_ns() - before_ns


def turn(parts, neighbour):
    works = {"cpu": compute, "sleep": pause, "recv": neighbour.ask}
    start_ns = time.monotonic_ns()
    spent_ns = {kind: works[kind](ms / 1e3) for kind, ms in parts}
    told = dict(start_ns=start_ns, end_ns=time.monotonic_ns(), parts=spent_ns)
    print("stalled", json.dumps(told), flush=True)


def parts_of(text):
    parts = [part.split("=") for part in text.split(",")]
    return [(kind, float(ms)) for kind, ms in parts]


async def serve(turns):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    neighbour = Neighbour()
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for parts in turns:
        await asyncio.sleep(0.3)
        turn(parts, neighbour)
    await asyncio.sleep(0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("turns", nargs="+", type=parts_of)
    asyncio.run(serve(parser.parse_args().turns))


if __name__ == "__main__":
    main()
