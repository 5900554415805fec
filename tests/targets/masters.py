"""Processes that start others: some only wait for them, some serve as well. Says `ready` and the children's numbers."""

import os
import select
import signal
import socket
import sys
import time


def run_child(listener):
    """A worker with an epoll instance, which ends when its parent is gone."""
    parent = os.getppid()
    epoll = select.epoll()
    if listener is not None:
        epoll.register(listener, select.EPOLLIN)
    while os.getppid() == parent:
        for _ in epoll.poll(0.2):
            try:
                listener.accept()[0].close()
            except OSError:
                pass
    os._exit(0)


def start(count, listener):
    children = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            run_child(listener)
        children.append(pid)
    print("ready", *children, flush=True)


def listening():
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def sleeper():
    """No loop at all."""
    listener = listening()
    start(2, listener)
    while True:
        time.sleep(0.1)


def supervisor():
    """A loop of its own, about a pipe."""
    listener = listening()
    start(2, listener)
    ours, _theirs = os.pipe()
    epoll = select.epoll()
    epoll.register(ours, select.EPOLLIN)
    while True:
        epoll.poll(0.2)


def server():
    """It serves beside its worker."""
    listener = listening()
    start(1, listener)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    while True:
        epoll.poll(0.2)


def poller():
    """It serves by poll, and has a helper that has a loop."""
    start(1, None)
    listener = listening()
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        poll.poll(200)


def job():
    """A loop without any connection, and a helper that has a loop."""
    start(1, None)
    ours, _theirs = os.pipe()
    epoll = select.epoll()
    epoll.register(ours, select.EPOLLIN)
    while True:
        epoll.poll(0.2)


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
{"sleeper": sleeper, "supervisor": supervisor, "server": server, "poller": poller, "job": job}[sys.argv[1]]()
