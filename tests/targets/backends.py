"""What the sample handlers wait for: a slow server, a late configuration file, a lock that someone else holds.

Each makes the wait last as many milliseconds as it is asked to. Run as a script, this is the slow server.
"""

import asyncio
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time

# The functions themselves: gevent puts its own in their modules' place, for which nothing blocks.
from _thread import start_new_thread
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from urllib.parse import parse_qs, urlsplit


class SlowServer:
    """An HTTP server in a process of its own, that answers after the time given in the request."""

    host = "127.0.0.1"

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.port = int(self._process.stdout.readline())

    def path(self, ms):
        return "/charge?ms=%d" % ms

    def url(self, ms):
        return "http://%s:%d%s" % (self.host, self.port, self.path(ms))


class LateFile:
    """A named pipe that looks like a configuration file, and whose writer takes its time."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "pricing.json")
        os.mkfifo(self.path)

    def arrives_after(self, ms):
        start_new_thread(self._write, (ms,))

    def _write(self, ms):
        with open(self.path, "w", encoding="utf-8") as pipe:
            sleep(ms / 1000)
            pipe.write(json.dumps({"currency": "EUR", "vat": 0.19}))


class Inventory:
    """Seats behind a lock, which a thread holds while it synchronises them with somewhere else."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seats = 100_000
        self._orders = queue.Queue()
        threading.Thread(target=self._sync_forever, name="inventory-sync", daemon=True).start()

    async def being_synced(self, ms):
        """Returns once the lock is taken; it is given back `ms` later."""
        loop = asyncio.get_running_loop()
        taken = loop.create_future()
        self._orders.put((ms, lambda: loop.call_soon_threadsafe(taken.set_result, None)))
        await taken

    def _sync_forever(self):
        while True:
            ms, tell = self._orders.get()
            with self.lock:
                tell()
                time.sleep(ms / 1000)


class HardDocument:
    """JSON documents that a pattern needs a given time for: it backtracks over a run of blanks.

    The time grows with the square of the run's length, so one measurement gives the length for any time.
    """

    pattern = re.compile(r"\s+[}\]]\s*$")

    def __init__(self):
        # Made once: making it is no part of the stall.
        self._items = json.dumps([{"sku": n, "note": "fragile"} for n in range(2000)])
        self._blanks = 1000
        self._ms = 0.0
        while self._ms < 10:
            self._blanks *= 2
            document = self._of_length(self._blanks)
            # The quickest of a few: others on the machine can only make it slower.
            self._ms = min(self._search(document) for _ in range(4))

    def _search(self, document):
        # CPU time: what others take of the machine meanwhile is not the pattern's.
        start_ns = time.thread_time_ns()
        self.pattern.search(document)
        return (time.thread_time_ns() - start_ns) / 1e6

    def taking(self, ms):
        return self._of_length(int(self._blanks * (ms / self._ms) ** 0.5))

    def _of_length(self, blanks):
        return '{"items": %s, "remark": "left%sright"}' % (self._items, " " * blanks)


class _SlowHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        ms = int(parse_qs(urlsplit(self.path).query)["ms"][0])
        time.sleep(ms / 1000)
        body = b'{"accepted": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def _serve_slowly():
    server = ThreadingHTTPServer((SlowServer.host, 0), _SlowHandler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    # The pipe closes when the target ends, however it ends.
    sys.stdin.buffer.read()


if __name__ == "__main__":
    _serve_slowly()
