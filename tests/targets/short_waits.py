"""A loop whose handler waits many times for a short while within one turn, with the clients that people use.

Each argument is a kind of wait: `redis`, `postgres`, `sqlite`, `http`, `files`, `naps`, `both`. Its turn
lasts as long as it is told, however fast the machine is. Prints `ready 0 PID`, and after SIGUSR1 for every turn
`waited JSON`: what it was, from when until when, at which line, and how many round trips it made. Ends by itself.
"""

import argparse
import asyncio
import inspect
import json
import os
import signal
import sqlite3
import time

# Behind the statement that waits.
MARK = "# waits"


class Redis:
    def __init__(self, options):
        import redis

        self.client = redis.Redis(port=options.redis)
        self.client.ping()

    def load(self, goes_on):
        # On this machine alone it would answer before the client has gone to sleep.
        while goes_on():
            self.client.execute_command("DEBUG", "SLEEP", "0.0003")  # waits


class Postgres:
    def __init__(self, options):
        import psycopg

        self.connection = psycopg.connect(options.postgres, autocommit=True)

    def load(self, goes_on):
        query = "SELECT sum(price) FROM generate_series(1, 4000) AS price"
        while goes_on():
            self.connection.execute(query).fetchone()  # waits


class Http:
    def __init__(self, options):
        import requests

        self.get, self.url = requests.get, options.http
        self.load(iter([True, False]).__next__)

    def load(self, goes_on):
        while goes_on():
            self.get(self.url)  # waits


class Sqlite:
    def __init__(self, options):
        path = os.path.join(options.folder, "orders.db")
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA synchronous = FULL")
        self.database.execute("CREATE TABLE IF NOT EXISTS orders (id integer)")

    def load(self, goes_on):
        while goes_on():
            self.database.execute("INSERT INTO orders VALUES (7)")  # waits


class Files:
    def __init__(self, options):
        # Opened once: to make a file may wait for the disk as well.
        self.file = open(os.path.join(options.folder, "orders.log"), "w")

    def load(self, goes_on):
        while goes_on():
            self.file.write("{}\n")
            self.file.flush()
            os.fsync(self.file.fileno())  # waits


class Naps:
    def __init__(self, options):
        pass

    def load(self, goes_on):
        while goes_on():
            time.sleep(0.0002)  # waits


class Both:
    """Asks Redis and naps in turn, and knows how long each took together."""

    def __init__(self, options):
        self.redis = Redis(options)
        self.parts = {}

    def load(self, goes_on):
        spent = {"redis": 0, "naps": 0}
        while goes_on():
            before = time.monotonic_ns()
            self.redis.client.execute_command("DEBUG", "SLEEP", "0.0003")
            between = time.monotonic_ns()
            time.sleep(0.0003)  # waits
            spent["redis"] += between - before
            spent["naps"] += time.monotonic_ns() - between
        self.parts = spent


KINDS = {
    "both": Both,
    "redis": Redis,
    "postgres": Postgres,
    "http": Http,
    "sqlite": Sqlite,
    "files": Files,
    "naps": Naps,
}


def place(kind):
    """The function that waits, and the line of the statement."""
    lines, first = inspect.getsourcelines(kind.load)
    waits = [number for number, line in enumerate(lines, first) if MARK in line]
    return kind.load.__qualname__, waits[0]


def turn(name, work, seconds):
    """Plays one turn, and says of it what is known here."""
    trips = 0
    until = time.monotonic() + seconds

    def goes_on():
        nonlocal trips
        more = time.monotonic() < until
        trips += more
        return more

    before = os_switches()
    start_ns = time.monotonic_ns()
    work.load(goes_on)
    end_ns = time.monotonic_ns()
    function, line = place(type(work))
    told = dict(kind=name, function=function, line=line, start_ns=start_ns, end_ns=end_ns)
    told.update(trips=trips, switches=os_switches() - before, parts=getattr(work, "parts", {}))
    print("waited", json.dumps(told), flush=True)


def os_switches():
    """How often this thread has given up its CPU, by the kernel's own count."""
    with open("/proc/thread-self/status") as status:
        line = next(line for line in status if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


async def serve(options):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    works = [(name, KINDS[name](options)) for name in options.kinds]
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for name, work in works * options.times:
        await asyncio.sleep(0.2)
        turn(name, work, options.turn_ms / 1e3)
    await asyncio.sleep(0.3)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--turn-ms", type=float, default=250)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--redis", type=int)
    parser.add_argument("--postgres")
    parser.add_argument("--http")
    parser.add_argument("--folder")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
