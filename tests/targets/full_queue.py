"""A thread pool that always has more work than threads: short pieces, and now and then a long one.

Prints `ready 0 PID`, then for every long piece `held TID LINE START_NS END_NS`. Ends by itself.
"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

PIECES = 260
LONG = (120, 180)


def short():
    time.sleep(0.03)


def long():
    start_ns = time.monotonic_ns()
    time.sleep(0.4)
    end_ns = time.monotonic_ns()
    line = long.__code__.co_firstlineno + 2
    print("held", threading.get_native_id(), line, start_ns, end_ns, flush=True)


def main():
    pool = ThreadPoolExecutor(2)
    print("ready 0", os.getpid(), flush=True)
    for piece in range(PIECES):
        pool.submit(long if piece in LONG else short)
    pool.shutdown(wait=True)


main()
