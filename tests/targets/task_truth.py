"""Freezes the loop, and turns what asyncio itself says about the running task into JSON lines.

A line: {"kind", "task", "function", "file", "line", "start_ns", "end_ns"}. `task` is null in a plain callback;
the place is where the outermost of the program's own frames in that task stands.
"""

import asyncio
import json
import os
import sys
import time

PATH = os.environ.get("TASK_TRUTH")


def freeze(kind, ms, place=None, spin=False):
    """Keeps the loop for so long. `place` is the frame to expect, where it is not the outermost."""
    task = asyncio.current_task()
    place = place or (task and outermost(task.get_coro().cr_frame, sys._getframe(1)))
    start_ns = time.monotonic_ns()
    if spin:
        while time.monotonic_ns() < start_ns + ms * 1_000_000:
            pass
    else:
        time.sleep(ms / 1000)
    end_ns = time.monotonic_ns()
    code = place and place.f_code
    record = {
        "kind": kind,
        # Only now: to ask for a name makes one, where there was but a number.
        "task": task and task.get_name(),
        # co_qualname is new in 3.11.
        "function": code and getattr(code, "co_qualname", code.co_name),
        "file": code and code.co_filename,
        "line": place and place.f_lineno,
        "start_ns": start_ns,
        "end_ns": end_ns,
    }
    if PATH:
        with open(PATH, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def outermost(root, frame):
    """The outermost frame of the caller's file, no further out than the task's coroutine."""
    file = frame.f_code.co_filename
    found = None
    while frame is not None:
        if frame.f_code.co_filename == file:
            found = frame
        if frame is root:
            break
        frame = frame.f_back
    return found
