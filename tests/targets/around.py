"""A loop whose handlers compute, sleep, or use memory, while the test does something to the process.

Each argument is one turn: `compute=300` and `nap=300` in ms (of CPU time, of sleep), `write=600` in ms for which it
writes at least to a file that is removed again, `grow=64` in MiB of memory that is given back, `touch=64` in MiB of
memory that it has from the beginning and reads a byte of each page of. `rest` is none: it waits for its loop's next
event, which is SIGUSR1. Prints `ready 0 PID`; after SIGUSR1 for every turn `begun START_NS` and `done START_NS END_NS
CPU_NS`, with the process's own clocks. With `--idle` it waits for its loop's next event for that long after each turn.
Ends by itself.
"""

import argparse
import asyncio
import ctypes
import os
import signal
import tempfile
import time

MIB = 1 << 20
PAGE = 4096
MCL_CURRENT = 1
# Then a file is written from its beginning again.
FILE_MIB = 256

# What `touch` reads.
held = bytearray()


def compute(ms):
    # Mostly in user code, and never asleep.
    end_ns = time.thread_time_ns() + ms * 1_000_000
    while time.thread_time_ns() < end_ns:
        sum(range(2000))


def nap(ms):
    time.sleep(ms / 1000)


def write(ms):
    block = b"x" * MIB
    end_ns = time.monotonic_ns() + ms * 1_000_000
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        # Once whole, however slow that is: what has to be freed is what was written before.
        while file.tell() < FILE_MIB * MIB:
            file.write(block)
            if file.tell() >= FILE_MIB * MIB and time.monotonic_ns() < end_ns:
                file.seek(0)


def grow(mib):
    bytearray(mib * MIB)[::PAGE] = b"x" * (mib * MIB // PAGE)


def touch(mib):
    # A slice of bytes copies them in one call into C.
    sum(held[: mib * MIB : PAGE])


HANDLERS = {"compute": compute, "nap": nap, "write": write, "grow": grow, "touch": touch}


async def turn(name, amount, go):
    go.clear()
    start_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
    print("begun", start_ns, flush=True)
    if name == "rest":
        await go.wait()
    else:
        HANDLERS[name](amount)
    print("done", start_ns, time.monotonic_ns(), time.thread_time_ns() - cpu_ns, flush=True)


async def serve(options):
    go = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, go.set)
    print("ready 0", os.getpid(), flush=True)
    await go.wait()
    for name, amount in options.turns:
        await asyncio.sleep(options.idle)
        await turn(name, amount, go)
    await asyncio.sleep(options.idle)


def turn_of(text):
    name, _, amount = text.partition("=")
    return name, int(amount or 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=0.4, help="seconds between the turns")
    parser.add_argument("--lock-code", action="store_true", help="keep in memory what is mapped at the start")
    parser.add_argument("turns", nargs="+", type=turn_of)
    options = parser.parse_args()
    if options.lock_code and ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT) != 0:
        raise OSError(ctypes.get_errno(), "mlockall")
    # Bytes other than 0, so that each page is its own.
    held.extend(b"x" * max((amount * MIB for name, amount in options.turns if name == "touch"), default=0))
    asyncio.run(serve(options))


main()
