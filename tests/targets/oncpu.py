"""A loop that keeps its CPU in known ways: one long call, many short ones, the collector, page faults, the kernel.

Each argument names a turn (see `turns_of`). Every turn lasts about TURN_S, on a fast machine as on a slow one. Prints
`ready 0 PID`, and after SIGUSR1 for every turn `stalled JSON`: its name, from when until when, and what the program
measured of it itself. Ends by itself.
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

import calibrated

# Four times the threshold: some forty samples.
TURN_S = 0.4
CALLS = 10_000
PAGE = 4096
# What is touched before it is given back; all of it is touched in a part of a turn.
TOUCHED = 32 << 20
# The collector has so much to walk that a turn has few collections, as a program with a large heap has it.
COLLECTIONS = 4
CYCLES_AT_ONCE = 50_000
OBJECTS_AT_ONCE = 1000


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


def many_callbacks(loop, call, words):
    for _ in range(CALLS):
        loop.call_soon(call, count_words, words // CALLS)


def many_tasks(loop, words):
    # The tasks' first steps are the next turn's.
    for _ in range(CALLS):
        loop.create_task(count_lines(words // CALLS))


def turn_end():
    # Of CPU time: what others have of the machine meanwhile makes the turn no emptier.
    return time.thread_time() + TURN_S


def collect_garbage():
    end = turn_end()
    while time.thread_time() < end:
        gc.collect()


def make_objects(pile):
    # Of the kind that the collector walks, which has nothing to do with it.
    end = turn_end()
    while time.thread_time() < end:
        for _ in range(OBJECTS_AT_ONCE):
            pile.append([None])


def touch_pages(memory):
    for offset in range(0, TOUCHED, PAGE):
        memory[offset] = 1


def touch_memory(memory):
    end = turn_end()
    while time.thread_time() < end:
        # To touch it again is then to touch it for the first time.
        memory.madvise(mmap.MADV_DONTNEED)
        touch_pages(memory)


def touch_again(memory):
    end = turn_end()
    while time.thread_time() < end:
        touch_pages(memory)


def read_zeros(file):
    end = turn_end()
    while time.thread_time() < end:
        os.read(file, 4 << 20)


def hash_password(rounds):
    return hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", rounds)


def check_document(document):
    return re.match(r"(a+)+$", document)


def document(letters):
    return "a" * letters + "b"


def fill(pile):
    """Makes cycles that are kept, until the collector takes a part of a turn to walk them."""
    while calibrated.cpu_ns(gc.collect, 2) < TURN_S * 1e9 / COLLECTIONS:
        for _ in range(CYCLES_AT_ONCE):
            one, other = [], []
            one.append(other)
            other.append(one)
            pile.append(one)


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


def turns_of(loop, names, kept):
    """What is to be scheduled, by name; what takes its time to prepare only where it is asked for."""
    memory, zeros = mmap.mmap(-1, TOUCHED), os.open("/dev/zero", os.O_RDONLY)
    if "retouch" in names:
        touch_pages(memory)
    if "collect" in names:
        fill(kept)
    words = rounds = letters = 1
    if {"callbacks", "tasks", "long"} & set(names):
        words = calibrated.amount(count_words, TURN_S)
    if "hash" in names:
        rounds = calibrated.amount(hash_password, TURN_S)
    if "match" in names:
        letters = calibrated.steps(lambda letters: check_document(document(letters)), TURN_S)
    return {
        "callbacks": lambda: many_callbacks(loop, call, words),
        "tasks": lambda: many_tasks(loop, words),
        "long": lambda: loop.call_soon(call, count_words, words),
        "collect": lambda: loop.call_soon(collect_garbage),
        "objects": lambda: loop.call_soon(make_objects, kept),
        "touch": lambda: loop.call_soon(touch_memory, memory),
        "retouch": lambda: loop.call_soon(touch_again, memory),
        "hash": lambda: loop.call_soon(hash_password, rounds),
        "match": lambda: loop.call_soon(check_document, document(letters)),
        "read": lambda: loop.call_soon(read_zeros, zeros),
    }


async def serve(names):
    loop = asyncio.get_running_loop()
    gc.disable()
    # What is made is not freed again in the same turn.
    kept = []
    turns = turns_of(loop, names, kept)
    go = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, go.set)
    print("ready 0", os.getpid(), flush=True)
    await go.wait()
    await asyncio.sleep(0.3)
    for name in names:
        await run(name, loop, turns[name])


main()
