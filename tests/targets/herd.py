"""Workers that share one listening socket, all of them woken by every connection.

Prints `ready PORT`, then `worker PID` for each. After SIGUSR1 each worker prints `accepts PID ACCEPTED WOULD_BLOCK`:
what its own calls of accept came to.
"""

import argparse
import os
import select
import signal
import socket
import sys


def say(*words):
    # One write call a line: workers share standard output.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def work(listener):
    counts = {"accepted": 0, "would_block": 0}

    def tell(*_):
        say("accepts", os.getpid(), counts["accepted"], counts["would_block"])

    signal.signal(signal.SIGUSR1, tell)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    events = select.epoll()
    events.register(listener, select.EPOLLIN)
    say("worker", os.getpid())
    while True:
        events.poll()
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                counts["would_block"] += 1
                break
            counts["accepted"] += 1
            connection.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truth", help="not used: there is no stall to tell of")
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)
    say("ready", listener.getsockname()[1])
    workers = []
    for _ in range(options.workers):
        pid = os.fork()
        if pid == 0:
            work(listener)
        workers.append(pid)

    def pass_on(number, _):
        for pid in workers:
            os.kill(pid, number)
        if number == signal.SIGTERM:
            sys.exit()

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, pass_on)
    while True:
        signal.pause()


main()
