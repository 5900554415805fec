"""A loop that waits for what another thread or process holds, or, as a healthy twin, gets it at once.

Prints `ready 0 PID`, and after SIGUSR1 for every time `waited JSON`: who held what the loop waited for, in which
function and on which lines; which function of the loop waited; and from when until when. Ends by itself.
"""

import argparse
import asyncio
import ctypes
import json
import multiprocessing
import os
import signal
import threading
import time

LIBC = ctypes.CDLL(None)
# The same functions, called without giving up the interpreter's lock.
LIBC_KEEPING_GIL = ctypes.PyDLL(None)
# Larger than glibc's mutex on any machine; all zeros is one that nobody holds.
MUTEX = ctypes.create_string_buffer(128)
# The same whose holder inherits the priority of whoever waits.
INHERITING_MUTEX = ctypes.create_string_buffer(128)
LOCK = threading.Lock()
RLOCK = threading.RLock()
PROCESS_LOCK = multiprocessing.get_context("fork").Lock()

HOLD_S = 0.5
HEALTHY_HOLD_S = 0.005

# A convoy: so many threads keep the mutex in turn, each for so long, until the loop has taken it so often.
CONVOY_THREADS = 4
CONVOY_HOLD_S = 0.02
CONVOY_ENTRIES = 8


def lines_of(function, first, last):
    """The lines of a function from its `first` to its `last`, counted from the `def`."""
    start = function.__code__.co_firstlineno
    return {"function": function.__name__, "first": start + first, "last": start + last}


def compute_prices(seconds):
    until = time.monotonic() + seconds
    total = 0
    while time.monotonic() < until:
        total += 1
    return total


def read_sensor(seconds):
    LIBC_KEEPING_GIL.usleep(int(seconds * 1e6))


def poll_devices(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.0005)


def refresh_cache(seconds, held):
    with LOCK:
        held.set()
        time.sleep(seconds)


def handle_request():
    with LOCK:
        pass


def rebuild_index(seconds, held):
    with RLOCK:
        held.set()
        time.sleep(seconds)


def search():
    with RLOCK:
        pass


def write_journal(seconds, held):
    LIBC.pthread_mutex_lock(MUTEX)
    held.set()
    time.sleep(seconds)
    LIBC.pthread_mutex_unlock(MUTEX)


def compress_journal(seconds, held):
    LIBC.pthread_mutex_lock(MUTEX)
    held.set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    LIBC.pthread_mutex_unlock(MUTEX)


def send_batch(seconds, held):
    LIBC.pthread_mutex_lock(INHERITING_MUTEX)
    held.set()
    time.sleep(seconds)
    LIBC.pthread_mutex_unlock(INHERITING_MUTEX)


def send_one():
    LIBC.pthread_mutex_lock(INHERITING_MUTEX)
    LIBC.pthread_mutex_unlock(INHERITING_MUTEX)


def make_inheriting(mutex):
    attributes = ctypes.create_string_buffer(64)
    LIBC.pthread_mutexattr_init(attributes)
    LIBC.pthread_mutexattr_setprotocol(attributes, 1)
    LIBC.pthread_mutex_init(mutex, attributes)


def append_entry():
    LIBC.pthread_mutex_lock(MUTEX)
    LIBC.pthread_mutex_unlock(MUTEX)


def back_up(seconds, held):
    with PROCESS_LOCK:
        held.set()
        time.sleep(seconds)


def save():
    with PROCESS_LOCK:
        pass


def gives_up_the_gil(seconds):
    time.sleep(seconds)


def flush_page(done, held):
    while not done.is_set():
        LIBC.pthread_mutex_lock(MUTEX)
        held.set()
        time.sleep(CONVOY_HOLD_S)
        LIBC.pthread_mutex_unlock(MUTEX)
        # glibc's mutex is not fair: without a pause nobody else would ever get it.
        time.sleep(CONVOY_HOLD_S / 10)


def append_entries(count):
    waited = 0
    for _ in range(count):
        before_ns = time.monotonic_ns()
        LIBC.pthread_mutex_lock(MUTEX)
        waited += time.monotonic_ns() - before_ns
        LIBC.pthread_mutex_unlock(MUTEX)
        time.sleep(CONVOY_HOLD_S / 10)
    return waited


# What is kept, by which function on which of its lines, by how many threads, and who waits for it.
GIL = {
    "spin": (compute_prices, 1, 4, 1),
    "spinners": (compute_prices, 1, 4, 3),
    "asleep": (read_sensor, 1, 1, 1),
}
LOCKS = {
    "lock": (refresh_cache, 1, 3, handle_request, 1, 1),
    "rlock": (rebuild_index, 1, 3, search, 1, 1),
    "mutex": (write_journal, 3, 3, append_entry, 1, 1),
    "busy": (compress_journal, 3, 5, append_entry, 1, 1),
    "inheriting": (send_batch, 3, 3, send_one, 1, 1),
    "process": (back_up, 1, 3, save, 1, 1),
}


def keep_the_gil(kind, healthy):
    function, first, last, count = GIL[kind]
    work = gives_up_the_gil if healthy else function
    threads = [
        threading.Thread(target=work, args=[HOLD_S], name=f"keeper-{number}") for number in range(count)
    ]
    for thread in threads:
        thread.start()
    start_ns = time.monotonic_ns()
    # A healthy loop waits for its devices where it does not hold up anybody.
    poll_devices(HEALTHY_HOLD_S if healthy else HOLD_S / 2)
    end_ns = time.monotonic_ns()
    holders = [dict(lines_of(function, first, last), tid=thread.native_id) for thread in threads]
    told = dict(kind=kind, holders=holders, waiter=lines_of(poll_devices, 1, 3), start_ns=start_ns, end_ns=end_ns)
    return threads, told


def join_a_convoy(healthy):
    done, held = threading.Event(), threading.Event()
    count = 0 if healthy else CONVOY_THREADS
    threads = [
        threading.Thread(target=flush_page, args=[done, held], name=f"keeper-{number}")
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    if threads:
        held.wait()
    start_ns = time.monotonic_ns()
    waited_ns = append_entries(CONVOY_ENTRIES)
    end_ns = time.monotonic_ns()
    done.set()
    holders = [dict(lines_of(flush_page, 1, 5), tid=thread.native_id) for thread in threads]
    told = dict(
        kind="convoy",
        holders=holders,
        waiter=lines_of(append_entries, 1, 7),
        start_ns=start_ns,
        end_ns=end_ns,
        waited_ns=waited_ns,
    )
    return threads, told


def keep(kind, healthy):
    if kind == "convoy":
        return join_a_convoy(healthy)
    return (keep_the_gil if kind in GIL else keep_a_lock)(kind, healthy)


def keep_a_lock(kind, healthy):
    function, first, last, waits, first_waiting, last_waiting = LOCKS[kind]
    arguments = [HEALTHY_HOLD_S if healthy else HOLD_S]
    if kind == "process":
        context = multiprocessing.get_context("fork")
        held = context.Event()
        keeper = context.Process(target=function, args=[*arguments, held])
    else:
        held = threading.Event()
        keeper = threading.Thread(target=function, args=[*arguments, held], name="keeper-0")
    keeper.start()
    held.wait()
    start_ns = time.monotonic_ns()
    waits()
    end_ns = time.monotonic_ns()
    tid = keeper.pid if kind == "process" else keeper.native_id
    told = dict(
        kind=kind,
        holders=[dict(lines_of(function, first, last), tid=tid)],
        waiter=lines_of(waits, first_waiting, last_waiting),
        start_ns=start_ns,
        end_ns=end_ns,
    )
    return [keeper], told


async def serve(kinds, healthy, times):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for _ in range(times):
        for kind in kinds:
            keepers, told = keep(kind, healthy)
            while any(keeper.is_alive() for keeper in keepers):
                await asyncio.sleep(0.01)
            print("waited", json.dumps(told), flush=True)
            await asyncio.sleep(0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true", help="keep nothing for long")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("kinds", nargs="+", choices=[*GIL, *LOCKS, "convoy"])
    options = parser.parse_args()
    make_inheriting(INHERITING_MUTEX)
    asyncio.run(serve(options.kinds, options.healthy, options.times))


if __name__ == "__main__":
    main()
