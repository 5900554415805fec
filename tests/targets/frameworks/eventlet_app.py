"""The sample application on eventlet: `eventlet_app.py PORT`."""

import shop
import eventlet

eventlet.monkey_patch()

import sys
import time
from urllib.parse import parse_qs

import eventlet.tpool
import eventlet.wsgi


async def pause(seconds):
    eventlet.sleep(seconds)


def handle(name, ms):
    if name == "upstream":
        shop.ask_for_payment(ms)
    elif name in shop.STALLS:
        shop.STALLS[name](ms)
    elif name == "wait":
        time.sleep(ms / 1000)
    elif name == "to-thread":
        eventlet.tpool.execute(shop.sleep, ms / 1000)


def application(environ, start_response):
    ms = parse_qs(environ.get("QUERY_STRING", "")).get("ms", ["0"])[0]
    handle(environ["PATH_INFO"].strip("/"), int(ms))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]


if __name__ == "__main__":
    # It awaits nothing but `pause`, which switches to another greenlet: one step takes it to its end.
    eventlet.spawn(shop.TRUTH.heartbeat(pause).send, None)
    shop.announce()
    listener = eventlet.listen(("127.0.0.1", int(sys.argv[1])))
    eventlet.wsgi.server(listener, application, log_output=False)
