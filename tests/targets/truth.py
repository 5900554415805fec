"""Turns what a target knows about its own stalls into JSON lines, one a stall, for others to be held against.

A line: {"kind", "function", "file", "line", "last_line", "thread", "start_ns", "end_ns"}, times in ns of
CLOCK_MONOTONIC. Kind "lag" is the heartbeat's: the loop answered late, whatever the reason.
"""

import asyncio
import json
import sys
import threading
import time
from contextlib import contextmanager

# A heartbeat that comes later than this after its time is written down. Well below every threshold in use.
LAG_NOTED_NS = 40_000_000
HEARTBEAT_S = 0.02


class Truth:
    """Where the lines go. Without a path it keeps silent."""

    def __init__(self, path=None):
        self._file = open(path, "a", encoding="utf-8") if path else None

    def write(self, kind, start_ns, end_ns, function=None, file=None, line=None, last_line=None):
        if self._file is None:
            return
        record = {
            "kind": kind,
            "function": function,
            "file": file,
            "line": line,
            "last_line": last_line,
            "thread": threading.get_native_id(),
            "start_ns": start_ns,
            "end_ns": end_ns,
        }
        # One write call a line: a reader never sees half of one.
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    @contextmanager
    def stall(self, kind, lines=1):
        """The `lines` lines below the `with` statement hold up the loop."""
        # 0 is this generator, 1 contextlib's __enter__, 2 the function that stalls.
        caller = sys._getframe(2)
        first = caller.f_lineno + 1
        code = caller.f_code
        # co_qualname is new in 3.11.
        function = getattr(code, "co_qualname", code.co_name)
        start_ns = time.monotonic_ns()
        try:
            yield
        finally:
            end_ns = time.monotonic_ns()
            self.write(kind, start_ns, end_ns, function, code.co_filename, first, first + lines - 1)

    async def heartbeat(self, sleep=asyncio.sleep):
        """Runs in the loop and notes when the loop let it wait: an independent witness of every delay.

        `sleep` is the loop's own, where that is not asyncio's.
        """
        while True:
            last_ns = time.monotonic_ns()
            await sleep(HEARTBEAT_S)
            now_ns = time.monotonic_ns()
            if now_ns - last_ns > HEARTBEAT_S * 1e9 + LAG_NOTED_NS:
                self.write("lag", last_ns, now_ns)
