"""An event loop on an epoll instance that watches nothing: what it has to do comes by its timeouts.

Blocks for STALL_MS now and then (0: never), and writes down when: `stall START_NS END_NS`.
"""

import select
import sys
import time

STALL_MS = int(sys.argv[1])
TURNS_BETWEEN = 40


def charge_payment():
    time.sleep(STALL_MS / 1000)


def main():
    instance = select.epoll()
    print("ready", flush=True)
    turns = 0
    while True:
        instance.poll(0.01)
        turns += 1
        if STALL_MS and turns % TURNS_BETWEEN == 0:
            start_ns = time.monotonic_ns()
            charge_payment()
            print("stall", start_ns, time.monotonic_ns(), flush=True)


main()
