"""A thread pool that always has more work than threads: short pieces, and now and then a long one.

Prints `ready 0 PID`, and after SIGUSR1, a moment later, for every long piece `held TID LINE START_NS END_NS`. Ends by
itself.
"""

import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

# Counted from the signal on.
LONG = (40, 80)
LAST = 120
# Submitted beforehand, so that the queue is never empty: enough for a minute.
PIECES = 4000


def short():
    time.sleep(0.03)


def long():
    start_ns = time.monotonic_ns()
    time.sleep(0.4)
    end_ns = time.monotonic_ns()
    line = long.__code__.co_firstlineno + 2
    print("held", threading.get_native_id(), line, start_ns, end_ns, flush=True)


def piece(go, numbers, over):
    number = next(numbers) if go.is_set() else 0
    (long if number in LONG else short)()
    if number == LAST:
        over.set()


def main():
    go, over = threading.Event(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: go.set())
    pool = ThreadPoolExecutor(2)
    numbers = itertools.count(1)
    for _ in range(PIECES):
        pool.submit(piece, go, numbers, over)
    print("ready 0", os.getpid(), flush=True)
    over.wait()
    pool.shutdown(wait=True, cancel_futures=True)


main()
