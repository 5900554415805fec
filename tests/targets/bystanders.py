"""A loop that sleeps while other threads wait in ways of their own, or run, and that knows where they were.

Prints `ready 0 PID`, and after SIGUSR1 `stalled JSON`: its time, the stack of every thread that waited as the interpreter itself
had it at its beginning, innermost frame first, and the function of the one that ran. Ends by itself.
"""

import argparse
import asyncio
import json
import os
import queue
import signal
import socket
import sys
import threading
import time

DONE = threading.Event()
JOBS = queue.Queue()


def wait_for_event():
    DONE.wait()


def wait_for_job():
    JOBS.get()


def wait_for_bytes(connection):
    connection.recv(1)


def count_up():
    number = 0
    while not DONE.is_set():
        number += 1


def outer(depth, inner, *arguments):
    if depth:
        outer(depth - 1, inner, *arguments)
    else:
        inner(*arguments)


def stack_of(frame):
    frames = []
    while frame is not None:
        code = frame.f_code
        frames.append([getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno])
        frame = frame.f_back
    return frames


def stall(threads, counter, seconds):
    frames = sys._current_frames()
    others = {thread.native_id: stack_of(frames[thread.ident]) for thread in threads}
    start_ns = time.monotonic_ns()
    time.sleep(seconds)
    running = {counter.native_id: count_up.__name__}
    return {"others": others, "running": running, "start_ns": start_ns, "end_ns": time.monotonic_ns()}


async def serve(seconds):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    near, far = socket.socketpair()
    works = [(0, wait_for_event), (3, wait_for_job), (30, wait_for_bytes, near)]
    threads = [threading.Thread(target=outer, args=work) for work in works]
    counter = threading.Thread(target=count_up)
    for thread in [*threads, counter]:
        thread.start()
    await watched.wait()
    told = stall(threads, counter, seconds)
    # What the threads do from here on belongs to another turn.
    await asyncio.sleep(0.1)
    print("stalled", json.dumps(told), flush=True)
    DONE.set()
    JOBS.put(None)
    far.send(b"x")
    await asyncio.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true", help="sleep too short to be a stall")
    options = parser.parse_args()
    asyncio.run(serve(0.01 if options.healthy else 0.4))


if __name__ == "__main__":
    main()
