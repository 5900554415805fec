"""A loop whose handler waits for somebody in a blocking call, once for each kind of call.

Prints `ready 0 PID`, and after SIGUSR1 for every wait `waited JSON`: its kind, from when until when, and who ended it,
by pid, tid and the name of the system call that did; nobody for a sleep. Ends by itself.
"""

import asyncio
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

WAIT_S = 0.4

WRITER = f"import os, time; time.sleep({WAIT_S}); os.write(1, b'.'); time.sleep(1)"
LOCKER = f"""
import fcntl, sys, time
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep({WAIT_S})
fcntl.flock(file, fcntl.LOCK_UN)
time.sleep(1)
"""


def python(code, *options):
    return subprocess.Popen([sys.executable, "-c", code, *options], stdout=subprocess.PIPE)


class Pipe:
    """Waits for what another process writes into a pipe."""

    def __init__(self):
        self.writer = python(WRITER)

    def wait(self):
        os.read(self.writer.stdout.fileno(), 1)
        return self.writer.pid, self.writer.pid, "write"


class Child:
    """Waits for the end of a child."""

    def __init__(self):
        self.child = subprocess.Popen(["sleep", str(WAIT_S)])

    def wait(self):
        self.child.wait()
        return self.child.pid, self.child.pid, "exit_group"


class Killed(Child):
    """The same, of a child that a signal ends."""

    def wait(self):
        threading.Timer(WAIT_S / 2, self.child.kill).start()
        self.child.wait()
        return self.child.pid, self.child.pid, "exit"


class Peer:
    """Waits for a thread of its own at the other end of a socket."""

    def __init__(self):
        self.here, self.there = socket.socketpair()
        self.thread = threading.Thread(target=self.answer, daemon=True)

    def answer(self):
        time.sleep(WAIT_S)
        self.there.send(b".")
        time.sleep(1)

    def wait(self):
        self.thread.start()
        self.here.recv(1)
        return os.getpid(), self.thread.native_id, "sendto"


class Lock:
    """Waits for a lock on a file that another process keeps."""

    def __init__(self):
        self.file = tempfile.NamedTemporaryFile()
        self.keeper = python(LOCKER, self.file.name)
        self.keeper.stdout.readline()

    def wait(self):
        fcntl.flock(self.file, fcntl.LOCK_EX)
        return self.keeper.pid, self.keeper.pid, "flock"


class Sleep:
    """Waits for the time."""

    def wait(self):
        time.sleep(WAIT_S)
        return None, None, None


async def serve():
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for kind in [Pipe, Child, Killed, Peer, Lock, Sleep]:
        await asyncio.sleep(0.3)
        wait = kind()
        start_ns = time.monotonic_ns()
        pid, tid, syscall = wait.wait()
        told = dict(kind=kind.__name__, start_ns=start_ns, end_ns=time.monotonic_ns())
        print("waited", json.dumps(dict(told, pid=pid, tid=tid, syscall=syscall)), flush=True)
    await asyncio.sleep(0.3)


asyncio.run(serve())
