"""The sample application on gevent, under gevent's own server or another one for WSGI.

`gevent_app.py PORT`, or `gunicorn --worker-class gevent gevent_app:application`.
"""

import shop
from gevent import monkey

monkey.patch_all()

import sys
import time
from urllib.parse import parse_qs

import gevent
import gevent.pywsgi

HEARTBEATS = []


async def pause(seconds):
    gevent.sleep(seconds)


def start():
    # It awaits nothing but `pause`, which switches to another greenlet: one step takes it to its end.
    HEARTBEATS.append(gevent.spawn(shop.TRUTH.heartbeat(pause).send, None))
    shop.announce()


def handle(name, ms):
    if name == "upstream":
        shop.ask_for_payment(ms)
    elif name in shop.STALLS:
        shop.STALLS[name](ms)
    elif name == "wait":
        time.sleep(ms / 1000)
    elif name == "to-thread":
        gevent.get_hub().threadpool.apply(shop.sleep, (ms / 1000,))


def application(environ, start_response):
    if not HEARTBEATS:
        start()
    ms = parse_qs(environ["QUERY_STRING"]).get("ms", ["0"])[0]
    handle(environ["PATH_INFO"].strip("/"), int(ms))
    start_response("200 OK", [("Content-Length", "2")])
    return [b"{}"]


if __name__ == "__main__":
    gevent.pywsgi.WSGIServer(("127.0.0.1", int(sys.argv[1])), application, log=None).serve_forever()
