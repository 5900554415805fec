"""A WSGI application for servers that hand requests to threads, and that says which thread was held, and where.

Appends to the file TARGET_WORDS, because servers do as they like with standard output: `serving PID` at its first
request, then for every request that holds its thread `held TID LINE START_NS END_NS`, or `hanging TID LINE` for
the one that never gives it back.
"""

import os
import threading
import time
from urllib.parse import parse_qs

words = os.open(os.environ["TARGET_WORDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
announced = threading.Lock()
forever = threading.Event()


def say(*parts):
    os.write(words, (" ".join(map(str, parts)) + "\n").encode())


def sleep(seconds):
    time.sleep(seconds)


def spin(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def hang():
    say("hanging", threading.get_native_id(), line_in(hang, 2))
    forever.wait()


def line_in(function, below):
    """The line number of the statement that many lines below the function's first."""
    return function.__code__.co_firstlineno + below


def hold(how, seconds):
    start_ns = time.monotonic_ns()
    {"sleep": sleep, "spin": spin}[how](seconds)
    end_ns = time.monotonic_ns()
    line = line_in(sleep, 1) if how == "sleep" else line_in(spin, 2)
    say("held", threading.get_native_id(), line, start_ns, end_ns)


def application(environ, start_response):
    if announced.acquire(blocking=False):
        say("serving", os.getpid())
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/hang":
        hang()
    elif environ["PATH_INFO"] == "/hold":
        hold(query["how"], int(query["ms"]) / 1000)
    else:
        sleep(0.005)
    body = b"done\n"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
