"""A sample HTTP service on asyncio whose handlers stall its event loop in known ways, and write down when.

Standard library only. `GET /regex?ms=300` stalls for about 300 ms; see ROUTES for the others. Prints
`ready PORT PID` once it answers, ends on SIGTERM.
"""

import argparse
import asyncio
import http.client
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from urllib.parse import parse_qs, urlsplit

from backends import HardDocument, Inventory, LateFile, SlowServer
from truth import Truth

HEAD_BYTES = 16 * 1024
SHORT_MS = 30
SLICE_MS = 5


class Counting(selectors.EpollSelector):
    """Counts how often the loop waits: that is how many turns it has had."""

    waits = 0

    def select(self, timeout=None):
        Counting.waits += 1
        return super().select(timeout)


# What asyncio's loops are made with.
selectors.DefaultSelector = Counting


class Shop:
    """The application: what the routes lead to."""

    def __init__(self, truth, folder):
        self.truth = truth
        self.documents = HardDocument()
        self.payments = SlowServer()
        self.pricing = LateFile(folder)
        self.inventory = Inventory()


# What keeps the loop waiting.


def validate_document(shop, document):
    with shop.truth.stall("regex"):
        dangling = shop.documents.pattern.search(document)
    return {"valid": dangling is None}


def charge_payment(shop, ms):
    connection = http.client.HTTPConnection(shop.payments.host, shop.payments.port)
    connection.request("GET", shop.payments.path(ms))
    with shop.truth.stall("upstream"):
        reply = connection.getresponse()
    return json.load(reply)


def quote_shipping(shop, ms):
    connection = http.client.HTTPConnection(shop.payments.host, shop.payments.port, timeout=60)
    connection.request("GET", shop.payments.path(ms))
    with shop.truth.stall("upstream-timeout"):
        reply = connection.getresponse()
    return json.load(reply)


def load_config(shop, path):
    with open(path, encoding="utf-8") as file:
        with shop.truth.stall("file"):
            text = file.read()
    return json.loads(text)


def reserve_seat(shop):
    with shop.truth.stall("lock"):
        shop.inventory.lock.acquire()
    shop.inventory.seats -= 1
    shop.inventory.lock.release()
    return {"seats": shop.inventory.seats}


def retry_delivery(shop, ms):
    with shop.truth.stall("sleep"):
        time.sleep(ms / 1000)
    return {"delivered": True}


def render_invoice(shop, ms):
    with shop.truth.stall("subprocess"):
        subprocess.run(["sleep", "%.3f" % (ms / 1000)], check=True)
    return {"invoice": "F-2041"}


def score_risk(shop, ms):
    until_ns = time.monotonic_ns() + int(ms * 1e6)
    score = 0
    with shop.truth.stall("cpu", lines=2):
        while time.monotonic_ns() < until_ns:
            score = (score * 31 + 7) % 1_000_003
    return {"score": score}


def warm_template(shop):
    with shop.truth.stall("short"):
        time.sleep(SHORT_MS / 1000)
    return {"warm": True}


def resize_image(ms):
    time.sleep(ms / 1000)
    return {"resized": True}


# What the routes are bound to.


async def upload(shop, ms):
    return validate_document(shop, shop.documents.taking(ms))


async def checkout(shop, ms):
    return charge_payment(shop, ms)


async def shipping(shop, ms):
    return quote_shipping(shop, ms)


async def prices(shop, ms):
    shop.pricing.arrives_after(ms)
    return load_config(shop, shop.pricing.path)


async def booking(shop, ms):
    await shop.inventory.being_synced(ms)
    return reserve_seat(shop)


async def delivery(shop, ms):
    return retry_delivery(shop, ms)


async def invoice(shop, ms):
    return render_invoice(shop, ms)


async def risk(shop, ms):
    return score_risk(shop, ms)


def slice_end_ns():
    return time.monotonic_ns() + SLICE_MS * 1_000_000


def count_shelf():
    until_ns, seats = slice_end_ns(), 0
    while time.monotonic_ns() < until_ns:
        seats += 1


def refresh_price():
    until_ns, price = slice_end_ns(), 1.0
    while time.monotonic_ns() < until_ns:
        price = price * 1.19 % 100


def index_product():
    until_ns, words = slice_end_ns(), {}
    while time.monotonic_ns() < until_ns:
        words[len(words) % 50] = "fragile"


def expire_basket():
    until_ns, baskets = slice_end_ns(), [2041]
    while time.monotonic_ns() < until_ns:
        baskets.append(baskets.pop())


def notify_buyer():
    until_ns, text = slice_end_ns(), ""
    while time.monotonic_ns() < until_ns:
        text = "order %d" % len(text)


async def recount(shop, ms):
    """Many short callbacks of several kinds in one turn: none of them is long, and none is most of it."""
    loop = asyncio.get_running_loop()
    recounted = loop.create_future()
    started = []
    kinds = [count_shelf, refresh_price, index_product, expire_basket, notify_buyer]
    callbacks = [kinds[n % len(kinds)] for n in range(max(ms // SLICE_MS, 1))]

    def last():
        shop.truth.write("saturated", started[0], time.monotonic_ns())
        recounted.set_result({"callbacks": len(callbacks)})

    loop.call_soon(lambda: started.append(time.monotonic_ns()))
    for callback in callbacks:
        loop.call_soon(callback)
    loop.call_soon(last)
    return await recounted


async def list_orders(shop, ms):
    return {"orders": [2041, 2042]}


async def count_turns(shop, ms):
    return Counting.waits


async def track_shipment(shop, ms):
    await asyncio.sleep(ms / 1000)
    return {"shipped": True}


async def thumbnail(shop, ms):
    return await asyncio.get_running_loop().run_in_executor(None, resize_image, ms)


async def page(shop, ms):
    return warm_template(shop)


ROUTES = {
    "/regex": upload,
    "/upstream": checkout,
    "/upstream-timeout": shipping,
    "/file": prices,
    "/lock": booking,
    "/sleep": delivery,
    "/subprocess": invoice,
    "/cpu": risk,
    "/saturated": recount,
    "/": list_orders,
    "/turns": count_turns,
    "/async-sleep": track_shipment,
    "/to-thread": thumbnail,
    "/short": page,
}


# HTTP, as little of it as keeps a connection alive.


async def answer(shop, target):
    url = urlsplit(target)
    route = ROUTES.get(url.path)
    if route is None:
        return 404, {"error": "no such path"}
    ms = parse_qs(url.query).get("ms", ["200"])[0]
    if not ms.isdigit():
        return 400, {"error": "ms is not a number"}
    return 200, await route(shop, int(ms))


async def serve_connection(shop, reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode("ascii")
            status, content = await answer(shop, target)
            body = json.dumps(content).encode()
            reason = http.client.responses[status]
            writer.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, reason.encode(), len(body), body)
            )
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError, UnicodeError):
        pass
    finally:
        writer.close()


async def serve(port, truth, folder):
    shop = Shop(truth, folder)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await asyncio.start_server(
        lambda reader, writer: serve_connection(shop, reader, writer), "127.0.0.1", port, limit=HEAD_BYTES
    )
    heartbeat = loop.create_task(truth.heartbeat())
    print("ready", server.sockets[0].getsockname()[1], os.getpid(), flush=True)
    await stop.wait()
    heartbeat.cancel()
    server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--truth", metavar="FILE", help="where to write down each stall")
    options = parser.parse_args()
    # Beside the truth: whoever asked for that also clears up after a service that was killed.
    beside = os.path.dirname(os.path.abspath(options.truth)) if options.truth else None
    with tempfile.TemporaryDirectory(prefix="service-", dir=beside) as folder:
        asyncio.run(serve(options.port, Truth(options.truth), folder))


if __name__ == "__main__":
    main()
