"""What the sample application does in every framework: functions that hold up its loop, and write down when.

TARGET_TRUTH names the file to write to.
"""

import os
import sys
import tempfile
import urllib.request

# The function itself, before gevent puts its own in the module's place: as a library has it that was
# imported too early.
from time import monotonic_ns, sleep

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from backends import LateFile, SlowServer
from truth import Truth

TRUTH_FILE = os.environ.get("TARGET_TRUTH")
TRUTH = Truth(TRUTH_FILE)
# Beside the truth: whoever asked for that also clears up after a server that was killed.
_BESIDE = os.path.dirname(os.path.abspath(TRUTH_FILE)) if TRUTH_FILE else None
_FOLDER = tempfile.TemporaryDirectory(prefix="shop-", dir=_BESIDE)
PRICING = LateFile(_FOLDER.name)
PAYMENTS = SlowServer()
# The slow server is on this machine, whatever proxy leads out of it.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def retry_delivery(ms):
    with TRUTH.stall("sleep"):
        sleep(ms / 1000)


def score_risk(ms):
    until_ns = monotonic_ns() + int(ms * 1e6)
    score = 0
    with TRUTH.stall("cpu", lines=2):
        while monotonic_ns() < until_ns:
            score = (score * 31 + 7) % 1_000_003
    return score


def charge_payment(ms):
    with TRUTH.stall("upstream"):
        reply = _OPENER.open(PAYMENTS.url(ms))
    return reply.read()


def ask_for_payment(ms):
    """The same where sockets are gevent's: nothing is held up."""
    return _OPENER.open(PAYMENTS.url(ms)).read()


def load_prices(ms):
    PRICING.arrives_after(ms)
    # Both block: until the writer is there, and until it has written.
    with TRUTH.stall("file", lines=2):
        with open(PRICING.path, encoding="utf-8") as file:
            return file.read()


SLICE_MS = 5


class Recount:
    """Many short callbacks, in whichever order they run: together they take `ms`, and no kind of them most of it."""

    def __init__(self, ms):
        kinds = [count_item, price_item, render_item, reserve_item, announce_item]
        self.callbacks = [kinds[n % len(kinds)] for n in range(ms // SLICE_MS)]
        self._left = len(self.callbacks)
        self._start_ns = None

    def one(self):
        start_ns = monotonic_ns()
        self._start_ns = self._start_ns or start_ns
        while monotonic_ns() < start_ns + SLICE_MS * 1e6:
            pass
        self._left -= 1
        if self._left == 0:
            TRUTH.write("saturated", self._start_ns, monotonic_ns())


def count_item(recount):
    recount.one()


def price_item(recount):
    recount.one()


def render_item(recount):
    recount.one()


def reserve_item(recount):
    recount.one()


def announce_item(recount):
    recount.one()


# By the path of the request: `/sleep?ms=300`.
STALLS = {
    "sleep": retry_delivery,
    "cpu": score_risk,
    "upstream": charge_payment,
    "file": load_prices,
}


def announce():
    """Tells the one who started this in which process the loop runs."""
    # One write, so that the lines of several workers do not mix.
    print("serving %d\n" % os.getpid(), end="", flush=True)
