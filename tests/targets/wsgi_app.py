"""A WSGI application whose /sleep and /cpu block for `ms` milliseconds; / answers at once.

Writes its stalls to the file in TARGET_TRUTH, and prints `serving PID` once it is imported.
"""

import os
import time
from urllib.parse import parse_qs

from truth import Truth

TRUTH = Truth(os.environ.get("TARGET_TRUTH"))


def sleep(seconds):
    with TRUTH.stall("sleep"):
        time.sleep(seconds)


def cpu(seconds):
    end = time.monotonic() + seconds
    with TRUTH.stall("cpu", lines=2):
        while time.monotonic() < end:
            pass


def application(environ, start_response):
    handler = {"/sleep": sleep, "/cpu": cpu}.get(environ["PATH_INFO"])
    if handler:
        handler(int(parse_qs(environ["QUERY_STRING"])["ms"][0]) / 1000)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


# In one piece: several workers write to the same pipe.
print(f"serving {os.getpid()}\n", end="", flush=True)
