"""A loop that keeps its CPU in known ways: one long call, many short ones, the collector, page faults, the kernel.

Each argument names a turn (see TURNS). Prints `ready 0 PID`, and after SIGUSR1 for every turn `stalled JSON`: its
name, from when until when, and what the program measured of it itself. Ends by itself.
"""

import asyncio
import gc
import hashlib
import json
import mmap
import os
import re
import resource
import signal
import sys
import time

CALLS = 10_000
WORDS_PER_CALL = 900
PAGE = 4096
TOUCHED = 320 << 20
REPEATED = 40
READS = 3000
CYCLES = 1_200_000
OBJECTS = 3_000_000
COLLECTIONS = 3


def count_words(words):
    count = 0
    for word in range(words):
        count += word
    return count


async def count_lines(words):
    count_words(words)


class Turn:
    """What one turn measured of itself."""

    def __init__(self, name):
        self.truth = {"name": name}

    def begin(self):
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        self.faults, self.user, self.system = usage.ru_minflt, usage.ru_utime, usage.ru_stime
        self.truth["start_ns"] = time.monotonic_ns()

    def end(self):
        self.truth["end_ns"] = time.monotonic_ns()
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        user, system = usage.ru_utime - self.user, usage.ru_stime - self.system
        self.truth["minor_faults"] = usage.ru_minflt - self.faults
        self.truth["kernel_share"] = system / max(user + system, 1e-9)
        print("stalled", json.dumps(self.truth), flush=True)


def many_callbacks(loop, call):
    for _ in range(CALLS):
        loop.call_soon(call, count_words, WORDS_PER_CALL)


def many_tasks(loop, call):
    # The tasks' first steps are the next turn's.
    for _ in range(CALLS):
        loop.create_task(count_lines(WORDS_PER_CALL))


def long_call(loop, call):
    loop.call_soon(call, count_words, CALLS * WORDS_PER_CALL)


def collect_garbage():
    for _ in range(COLLECTIONS):
        gc.collect()


def make_objects(pile):
    # More than the collector walks, which has nothing to do with it.
    for _ in range(OBJECTS):
        pile.append([None])


def touch_memory(memory):
    for offset in range(0, TOUCHED, PAGE):
        memory[offset] = 1


def touch_again(memory):
    for _ in range(REPEATED):
        touch_memory(memory)


def read_zeros(file):
    for _ in range(READS):
        os.read(file, 4 << 20)


def hash_password(password):
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 800_000)


def check_document(document):
    return re.match(r"(a+)+$", document)


def main():
    signal.signal(signal.SIGUSR1, lambda *_: None)
    asyncio.run(serve(sys.argv[1:]))


async def run(name, loop, schedule):
    """Runs what is scheduled as one turn of the loop, and measures from its first callback to its last."""
    turn = Turn(name)
    done = loop.create_future()
    loop.call_soon(turn.begin)
    schedule()
    loop.call_soon(turn.end)
    loop.call_soon(done.set_result, None)
    await done
    await asyncio.sleep(0.3)


def call(function, argument):
    return function(argument)


async def serve(names):
    loop = asyncio.get_running_loop()
    # What is made is not freed again in the same turn.
    kept = []
    pile, memory, zeros = [], mmap.mmap(-1, TOUCHED), os.open("/dev/zero", os.O_RDONLY)
    gc.disable()
    if "collect" in names:
        for _ in range(CYCLES):
            one, other = [], []
            one.append(other)
            other.append(one)
            pile.append(one)
    turns = {
        "callbacks": lambda: many_callbacks(loop, call),
        "tasks": lambda: many_tasks(loop, call),
        "long": lambda: long_call(loop, call),
        "collect": lambda: loop.call_soon(collect_garbage),
        "objects": lambda: loop.call_soon(make_objects, kept),
        "touch": lambda: loop.call_soon(touch_memory, memory),
        "retouch": lambda: loop.call_soon(touch_again, memory),
        "hash": lambda: loop.call_soon(hash_password, b"secret"),
        "match": lambda: loop.call_soon(check_document, "a" * 24 + "b"),
        "read": lambda: loop.call_soon(read_zeros, zeros),
    }
    go = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, go.set)
    print("ready 0", os.getpid(), flush=True)
    await go.wait()
    await asyncio.sleep(0.3)
    for name in names:
        await run(name, loop, turns[name])


main()
