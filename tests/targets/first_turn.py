"""A loop on epoll that answers a connection from before, in the turn in which that asks.

Prints `ready PORT PID`, then `connected`. A line of `sleep MS` or `compute MS` is done at once, in the turn that read it,
and answered by `done START_NS END_NS`, with the process's own clock. Ends with the connection.
"""

import os
import select
import socket
import time


def pause(ms):
    time.sleep(ms / 1000)


def count(ms):
    end_ns = time.monotonic_ns() + ms * 1_000_000
    while time.monotonic_ns() < end_ns:
        pass


HANDLERS = {"sleep": pause, "compute": count}


def main():
    server = socket.create_server(("127.0.0.1", 0))
    print("ready", server.getsockname()[1], os.getpid(), flush=True)
    connection, _ = server.accept()
    loop = select.epoll()
    loop.register(connection, select.EPOLLIN)
    print("connected", flush=True)
    while True:
        loop.poll()
        words = connection.recv(99).decode().split()
        if not words:
            return
        start_ns = time.monotonic_ns()
        HANDLERS[words[0]](int(words[1]))
        connection.sendall(b"done %d %d\n" % (start_ns, time.monotonic_ns()))


main()
