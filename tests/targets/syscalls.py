"""A loop that is blocked in one system call after the other, or, as a healthy twin, only for moments.

Prints `ready 0 PID`, and after SIGUSR1 for every wait `waited JSON`: from when until when, in which function, and
what whoever watches is expected to say of it: what this program knows of its own sockets, files and children, and
what those who kept it waiting know of themselves. Lives in mount and network namespaces of its own. Ends by itself.
"""

import argparse
import asyncio
import ctypes
import fcntl
import json
import mmap
import os
import pathlib
import select
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time

from slow_files import Slow

LIBC = ctypes.CDLL(None, use_errno=True)
FAN_CLASS_CONTENT, FAN_MARK_ADD, FAN_ALLOW = 4, 1, 1
FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, FAN_EVENT_ON_CHILD = 0x10000, 0x20000, 0x40000, 0x8000000
AT_FDCWD = -100
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

HOLD_S = 0.5
HEALTHY_HOLD_S = 0.005


class Keeper:
    """The other side of everything, in a process of its own, which says when it is there."""

    def __init__(self, where, hold):
        self.where = where
        self.hold = float(hold)

    def holds(self):
        print("there", flush=True)
        sys.stdin.readline()
        time.sleep(self.hold)

    def tcp(self):
        self.serves(socket.create_server(("127.0.0.1", int(self.where))))

    def unix(self):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.where)
        listener.listen()
        self.serves(listener)

    def serves(self, listener):
        print("there", flush=True)
        connection, _ = listener.accept()
        self.holds()
        connection.sendall(b"x")

    def flock(self):
        self.locks(fcntl.flock)

    def lockf(self):
        self.locks(fcntl.lockf)

    def locks(self, lock):
        with open(self.where, "w") as file:
            lock(file, fcntl.LOCK_EX)
            self.holds()

    def sqlite(self):
        database = sqlite3.connect(self.where, isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        self.holds()
        database.execute("COMMIT")

    def checks_opens(self):
        self.checks(FAN_OPEN_PERM)

    def checks_reads(self):
        self.checks(FAN_ACCESS_PERM)

    def checks_programs(self):
        self.checks(FAN_OPEN_EXEC_PERM)

    def checks(self, event):
        """A scanner, which says late that a file of one folder may be had; whatever comes after that is not checked."""
        questions = must(LIBC.fanotify_init(FAN_CLASS_CONTENT, os.O_RDONLY))
        mask = ctypes.c_uint64(event | FAN_EVENT_ON_CHILD)
        must(LIBC.fanotify_mark(questions, FAN_MARK_ADD, mask, AT_FDCWD, self.where.encode()))
        print("there", flush=True)
        sys.stdin.readline()
        # Length, version and so on, the mask, the file and who asks for it.
        *_, file, _ = struct.unpack_from("=IBBHQii", os.read(questions, 4096))
        time.sleep(self.hold)
        os.write(questions, struct.pack("=iI", file, FAN_ALLOW))

    def write(self):
        self.holds()
        os.write(int(self.where), b"x" * 8)


class Server:
    """Such a process, until it is told to let go."""

    def __init__(self, kind, where, hold, pass_fds=()):
        command = [sys.executable, __file__, "--keep", kind, str(where), str(hold)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds
        )
        self.awaits("there")

    def awaits(self, word):
        line = self.process.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"{line!r} instead of {word!r}")

    def lets_go(self):
        """From now on it holds for its time."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    @property
    def pid(self):
        return self.process.pid

    def ends(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def address_of(name):
    return f"{name[0]}:{name[1]}"


class Waits:
    """The waits, each a method that returns what it knows of its own; `hold` is how long they last."""

    def __init__(self, hold, folder):
        self.hold = hold
        self.folder = folder
        self.spans = []

    async def timed(self, wait, *arguments, until=None):
        """Waits in a turn of its own: for the server `until`, which begins to hold for its time just before."""
        # What was prepared so far is no part of the turn that waits,
        await asyncio.sleep(0.05)
        if until is not None:
            until.lets_go()
        start_ns = time.monotonic_ns()
        try:
            return wait(*arguments)
        finally:
            self.spans.append((start_ns, time.monotonic_ns()))
            # nor is what is cleared up afterwards.
            await asyncio.sleep(0.05)

    def connected(self):
        """A connection to a server that answers when it is told to."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Server("tcp", port, self.hold)
        connection = socket.create_connection(("127.0.0.1", port))
        server.awaits("there")
        return server, connection

    def a_connection(self, connection, server):
        return {
            "number": connection.fileno(),
            "kind": "socket",
            "local": address_of(connection.getsockname()),
            "peer": address_of(connection.getpeername()),
            "state": "established",
            "process": {"pid": server.pid},
        }

    async def receive(self):
        server, connection = self.connected()
        await self.timed(connection.recv, 1, until=server)
        descriptor = self.a_connection(connection, server)
        server.ends()
        words = f"blocked in recvfrom on tcp {descriptor['peer']}, without a timeout"
        return {
            "words": words,
            "woken_by": server.pid,
            "cause": {"kind": "syscall", "syscall": "recvfrom", "timeout": "none", "descriptor": descriptor},
        }

    async def receive_at_most(self):
        server, connection = self.connected()
        allowed = struct.pack("ll", 0, int(self.hold * 1e6))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, allowed)
        try:
            await self.timed(connection.recv, 1)
        except BlockingIOError:
            pass
        descriptor = self.a_connection(connection, server)
        server.process.kill()
        server.ends()
        cause = {
            "kind": "syscall",
            "syscall": "recvfrom",
            "timeout": {"ns": int(self.hold * 1e6) * 1000},
            "descriptor": descriptor,
        }
        return {"words": f"blocked in recvfrom on tcp {descriptor['peer']}", "cause": cause}

    async def receive_by_poll(self):
        server, connection = self.connected()
        connection.settimeout(self.hold)
        try:
            await self.timed(connection.recv, 1)
        except TimeoutError:
            pass
        descriptor = self.a_connection(connection, server)
        server.process.kill()
        server.ends()
        cause = {
            "kind": "syscall",
            "syscall": "poll",
            "timeout": {"ns": int(self.hold * 1e9)},
            "polled": [descriptor],
        }
        return {"words": f"blocked in poll on tcp {descriptor['peer']}", "cause": cause}

    async def poll_for_ever(self):
        server, connection = self.connected()
        reader, writer = os.pipe()
        poll = select.poll()
        poll.register(connection)
        poll.modify(connection, select.POLLIN)
        poll.register(reader, select.POLLIN)
        await self.timed(poll.poll, until=server)
        descriptor = self.a_connection(connection, server)
        server.ends()
        os.close(reader)
        os.close(writer)
        return {
            "words": f"blocked in poll on tcp {descriptor['peer']} and another, without a timeout",
            "woken_by": server.pid,
            "cause": {
                "kind": "syscall",
                "timeout": "none",
                "polled": [descriptor, {"number": reader, "kind": "pipe", "process": {"pid": os.getpid()}}],
            },
        }

    async def connect(self):
        """To an address that swallows everything: see `dark_network`."""

        def interrupted(*_):
            raise TimeoutError

        def connect():
            signal.signal(signal.SIGALRM, interrupted)
            signal.setitimer(signal.ITIMER_REAL, self.hold)
            try:
                connection.connect(("10.9.9.2", 443))
            except TimeoutError:
                pass

        with socket.socket() as connection:
            await self.timed(connect)
            number, local = connection.fileno(), address_of(connection.getsockname())
        descriptor = {
            "number": number,
            "kind": "socket",
            "local": local,
            "peer": "10.9.9.2:443",
            "state": "syn_sent",
            "process": None,
        }
        return {
            "words": "blocked in connect on tcp 10.9.9.2:443, without a timeout",
            "cause": {"kind": "syscall", "syscall": "connect", "timeout": "none", "descriptor": descriptor},
        }

    async def accept(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            there = listener.getsockname()
            client = threading.Timer(self.hold, socket.create_connection, [there])
            client.start()
            await self.timed(listener.accept)
            client.join()
            number = listener.fileno()
        descriptor = {"number": number, "kind": "socket", "local": address_of(there), "state": "listen", "peer": None}
        return {
            "words": f"blocked in accept4 on tcp on {address_of(there)}, without a timeout",
            "cause": {"kind": "syscall", "timeout": "none", "descriptor": descriptor},
        }

    async def resolve(self):
        """By a name server that says nothing: see `silent_name_server`. It takes a whole second."""
        if self.hold < 0.1:
            await self.timed(socket.getaddrinfo, "localhost", 80)
            return {}
        try:
            await self.timed(socket.getaddrinfo, "shop.example", 80)
        except socket.gaierror:
            pass
        return {
            "words": "looking up a host name at udp 127.0.0.1:53",
            "cause": {
                "kind": "syscall",
                "purpose": "name_resolution",
                "timeout": {"ns": 1_000_000_000},
                "polled": [{"kind": "socket", "peer": "127.0.0.1:53", "process": {"pid": os.getpid()}}],
            },
        }

    async def read_pipe(self):
        reader, writer = os.pipe()
        server = Server("write", writer, self.hold, pass_fds=[writer])
        os.close(writer)
        await self.timed(os.read, reader, 1, until=server)
        os.close(reader)
        server.ends()
        return {
            "words": "blocked in read on pipe",
            "woken_by": server.pid,
            "cause": {
                "kind": "syscall",
                "syscall": "read",
                "timeout": "none",
                "descriptor": {"number": reader, "kind": "pipe", "process": {"pid": server.pid}},
            },
        }

    async def receive_locally(self):
        path = str(self.folder / "bank.sock")
        server = Server("unix", path, self.hold)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            server.awaits("there")
            await self.timed(connection.recv, 1, until=server)
            number = connection.fileno()
        server.ends()
        os.unlink(path)
        return {
            "words": f"blocked in recvfrom on unix {path}, without a timeout",
            "woken_by": server.pid,
            "cause": {
                "kind": "syscall",
                "timeout": "none",
                "descriptor": {"number": number, "kind": "socket", "peer": path, "process": {"pid": server.pid}},
            },
        }

    async def wait_for_child(self):
        child = subprocess.Popen(["sleep", str(self.hold)])
        await self.timed(child.wait)
        command = f"sleep {self.hold}"
        return {
            "words": f"waiting for child {child.pid} ({command})",
            "woken_by": child.pid,
            "cause": {
                "kind": "syscall",
                "syscall": "wait4",
                "purpose": "child_process",
                "timeout": "none",
                "child": {"pid": child.pid, "name": "sleep", "command": command},
            },
        }

    async def lock_file(self, kind="flock"):
        path = self.folder / f"{kind}.lock"
        server = Server(kind, path, self.hold)
        with open(path, "w") as file:
            await self.timed(getattr(fcntl, kind), file, fcntl.LOCK_EX, until=server)
        server.ends()
        return {
            "words": f"waiting for a file lock on {path}, held by process {server.pid} (",
            "woken_by": server.pid,
            "cause": {
                "kind": "syscall",
                "syscall": "flock" if kind == "flock" else "fcntl",
                "purpose": "file_lock",
                "timeout": "none",
                "descriptor": {"kind": "file", "path": str(path)},
                "held_by": [{"pid": server.pid}],
            },
        }

    async def lock_range(self):
        return await self.lock_file("lockf")

    async def insert(self, journal="DELETE"):
        path = str(self.folder / f"shop-{journal.lower()}.db")
        database = sqlite3.connect(path, timeout=5)
        database.execute(f"PRAGMA journal_mode={journal}")
        database.execute("CREATE TABLE orders (number)")
        database.commit()
        server = Server("sqlite", path, self.hold)
        await self.timed(database.execute, "INSERT INTO orders VALUES (1)", until=server)
        database.commit()
        database.close()
        server.ends()
        return {
            "words": f"waiting for a locked SQLite database ({path}), held by process {server.pid} (",
            "cause": {
                "kind": "sleep",
                "purpose": "sqlite_busy",
                "path": path,
                "held_by": [{"pid": server.pid}],
            },
        }

    async def insert_into_log(self):
        return await self.insert("WAL")

    async def read_terminal(self):
        master, slave = os.openpty()
        server = Server("write", master, self.hold, pass_fds=[master])
        path = os.ttyname(slave)
        # Not line by line.
        subprocess.run(["stty", "raw"], stdin=slave, check=True)
        await self.timed(os.read, slave, 1, until=server)
        os.close(slave)
        os.close(master)
        server.ends()
        return {
            "words": f"blocked in read on {path}",
            "cause": {
                "kind": "syscall",
                "syscall": "read",
                "descriptor": {"number": slave, "kind": "terminal", "path": path},
            },
        }

    async def read_events(self):
        events = os.eventfd(0)
        server = Server("write", events, self.hold, pass_fds=[events])
        await self.timed(os.eventfd_read, events, until=server)
        os.close(events)
        server.ends()
        return {
            "words": "blocked in read on eventfd",
            "woken_by": server.pid,
            "cause": {
                "kind": "syscall",
                "syscall": "read",
                "timeout": "none",
                "descriptor": {"number": events, "kind": "eventfd"},
            },
        }

    def checked(self, kind):
        """A file of a folder that another process checks, and that process."""
        folder = self.folder / kind
        folder.mkdir(exist_ok=True)
        shutil.copy("/bin/true", folder / "report")
        return str(folder / "report"), Server(kind, folder, self.hold)

    def is_checked(self, call, path, server):
        return {
            "words": f"blocked in {call} on {path}, which process {server.pid} (",
            "cause": {
                "kind": "syscall",
                "syscall": call,
                "purpose": "access_check",
                "target": path,
                "held_by": [{"pid": server.pid}],
            },
            "kernel": "fanotify_",
        }

    async def open_checked(self):
        path, server = self.checked("checks_opens")
        # Who checks other files has nothing to do with it.
        other, others = self.checked("checks_reads")
        file = await self.timed(os.open, path, os.O_RDONLY, until=server)
        os.close(file)
        server.ends()
        others.process.kill()
        others.ends()
        return self.is_checked("openat", path, server)

    async def read_checked(self):
        path, server = self.checked("checks_reads")
        file = os.open(path, os.O_RDONLY)
        await self.timed(os.read, file, 100, until=server)
        os.close(file)
        server.ends()
        return {**self.is_checked("read", path, server), "woken_by": server.pid}

    async def run_checked(self):
        path, server = self.checked("checks_programs")
        child = await self.timed(subprocess.Popen, [path], until=server)
        child.wait()
        server.ends()
        return {
            "words": f"starting {path}, which process {server.pid} (",
            "woken_by": child.pid,
            "cause": {
                "kind": "syscall",
                "purpose": "program_start",
                "path": path,
                "held_by": [{"pid": server.pid}],
                "child": {"pid": child.pid},
            },
        }

    def slow_files(self, cached=False):
        folder = self.folder / "slow"
        folder.mkdir(exist_ok=True)
        return Slow(folder, cached)

    async def open_slowly(self):
        slow = self.slow_files()
        slow.takes(self.hold)
        file = await self.timed(os.open, slow.path, os.O_RDWR)
        os.close(file)
        slow.ends()
        return {
            "words": f"blocked in openat on {slow.path} (fuse.slow)",
            "cause": {"kind": "syscall", "syscall": "openat", "path": slow.path, "file_system": "fuse.slow"},
            "kernel": "request_wait_answer",
        }

    async def read_slowly(self, cached=False):
        slow = self.slow_files(cached)
        file = os.open(slow.path, os.O_RDWR)
        slow.takes(self.hold)
        await self.timed(os.read, file, 100)
        os.close(file)
        slow.ends()
        return {
            "words": f"blocked in read on {slow.path} (fuse.slow)",
            "woken_by": slow.pid,
            "cause": {
                "kind": "syscall",
                "syscall": "read",
                "descriptor": {"number": file, "kind": "file", "path": slow.path, "file_system": "fuse.slow"},
            },
            "kernel": "folio_wait_bit" if cached else "request_wait_answer",
        }

    async def read_page_slowly(self):
        return await self.read_slowly(cached=True)

    async def sync_slowly(self):
        slow = self.slow_files()
        file = os.open(slow.path, os.O_RDWR)
        os.write(file, b"x" * 512)
        slow.takes(self.hold)
        await self.timed(os.fsync, file)
        os.close(file)
        slow.ends()
        return {
            "words": f"blocked in fsync on {slow.path} (fuse.slow)",
            "cause": {"kind": "syscall", "syscall": "fsync", "descriptor": {"file_system": "fuse.slow"}},
            "kernel": "request_wait_answer",
        }

    async def sync_disk(self):
        """A disk that is a file of the slow file system."""
        slow = self.slow_files()
        made = subprocess.run(["losetup", "-f", "--show", slow.path], check=True, capture_output=True, text=True)
        device = made.stdout.strip()
        disk = os.open(device, os.O_RDWR)
        # It goes away with its last user, whatever happens here.
        subprocess.run(["losetup", "-d", device], check=True)
        os.write(disk, b"x" * 4096)
        slow.takes(self.hold)
        await self.timed(os.fsync, disk)
        slow.takes(0)
        os.close(disk)
        slow.ends()
        return {
            "words": f"waiting for the disk in fsync on {device}",
            "cause": {"kind": "disk", "syscall": "fsync", "target": device},
        }

    async def read_disk(self):
        slow = self.slow_files()
        made = subprocess.run(["losetup", "-f", "--show", slow.path], check=True, capture_output=True, text=True)
        device = made.stdout.strip()
        disk = os.open(device, os.O_RDONLY)
        subprocess.run(["losetup", "-d", device], check=True)
        slow.takes(self.hold)
        # Not where whoever looks for partitions has been.
        await self.timed(os.pread, disk, 512, 33 * 1024 * 1024)
        slow.takes(0)
        os.close(disk)
        slow.ends()
        return {
            "words": f"waiting for the disk in pread64 on {device}",
            "cause": {"kind": "disk", "syscall": "pread64", "target": device},
            "kernel": "folio_wait_bit",
        }

    async def touch_page(self):
        """Of a file that is mapped: a page fault."""
        slow = self.slow_files(cached=True)
        file = os.open(slow.path, os.O_RDWR)
        mapped = mmap.mmap(file, 4096, mmap.MAP_PRIVATE)
        slow.takes(self.hold)
        await self.timed(mapped.read_byte)
        mapped.close()
        os.close(file)
        slow.ends()
        return {
            "words": "waiting for a page of a file",
            "cause": {"kind": "disk", "syscall": None},
            "kernel": "folio_wait_bit",
        }

    async def sleep(self):
        await self.timed(time.sleep, self.hold)
        return {
            "words": f"asleep in clock_nanosleep ({self.hold * 1000:.0f} ms asked for)",
            "cause": {"kind": "sleep", "syscall": "clock_nanosleep", "purpose": None},
        }

    async def sleep_on(self):
        """A sleep that is stopped in the middle, and then goes on by another system call."""
        stops = f"sleep {self.hold / 5}; kill -STOP $0; kill -CONT $0"
        stopper = subprocess.Popen(["sh", "-c", stops, str(os.getpid())])
        await self.timed(LIBC.usleep, int(self.hold * 1e6))
        stopper.wait()
        return {
            "words": f"asleep in clock_nanosleep ({self.hold * 1000:.0f} ms asked for)",
            "cause": {"kind": "sleep", "syscall": "clock_nanosleep", "asked_ns": int(self.hold * 1e9)},
        }


def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def own_namespaces():
    must(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET))
    must(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def dark_network():
    """A neighbour that is told to exist and does not: what is sent there is not answered."""
    for command in [
        "link add dark0 type veth peer name dark1",
        "addr add 10.9.9.1/24 dev dark0",
        "link set dark1 up",
        "link set dark0 up",
        "neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev dark0",
    ]:
        subprocess.run(["ip", *command.split()], check=True)


def silent_name_server(folder):
    configuration = folder / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    must(LIBC.mount(bytes(configuration), b"/etc/resolv.conf", None, MS_BIND, None))
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    return server


async def serve(kinds, hold, folder):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for kind in kinds:
        await asyncio.sleep(0.3)
        waits = Waits(hold, folder)
        told = await getattr(waits, kind)()
        [(start_ns, end_ns)] = waits.spans
        told.update(kind=kind, start_ns=start_ns, end_ns=end_ns)
        print("waited", json.dumps(told), flush=True)
    await asyncio.sleep(0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--healthy", action="store_true", help="wait for moments only")
    parser.add_argument("--keep", action="store_true", help="be the other side: KIND WHERE SECONDS")
    parser.add_argument("kinds", nargs="+")
    options = parser.parse_args()
    if options.keep:
        kind, where, hold = options.kinds
        getattr(Keeper(where, hold), kind)()
        return
    own_namespaces()
    dark_network()
    with tempfile.TemporaryDirectory(prefix="stalltrace-syscalls-") as folder:
        # Disks take their time.
        must(LIBC.mount(b"none", folder.encode(), b"tmpfs", 0, None))
        try:
            server = silent_name_server(pathlib.Path(folder))
            hold = HEALTHY_HOLD_S if options.healthy else HOLD_S
            asyncio.run(serve(options.kinds, hold, pathlib.Path(folder)))
            server.close()
        finally:
            must(LIBC.umount2(folder.encode(), MNT_DETACH))


if __name__ == "__main__":
    main()
