"""An asyncio service that fetches over HTTP through an extension module which brings a Rust runtime of its own.

Prints `ready 0 PID`. With `--stalling` it blocks its loop now and then, and writes that down; else all is healthy.
"""

import argparse
import asyncio
import http.server
import os
import threading
import time

from truth import Truth

STALL_S = 0.3


class Objects(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"data")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def through_obstore(url):
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(url, client_options={"allow_http": True})

    async def fetch():
        result = await obstore.get_async(store, "a/b")
        return await result.bytes_async()

    return fetch


def through_primp(url):
    import primp

    client = primp.AsyncClient()

    async def fetch():
        await client.get(url + "/a")

    return fetch


def price_order(truth):
    with truth.stall("sleep"):
        time.sleep(STALL_S)


async def serve(options, truth):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    fetch = {"obstore": through_obstore, "primp": through_primp}[options.library](url)
    heartbeat = asyncio.create_task(truth.heartbeat())
    await fetch()
    print("ready 0", os.getpid(), flush=True)
    while not heartbeat.done():
        # Workers park for longer and for shorter than a threshold.
        for pause in (0.02, 0.3, 0.15):
            await fetch()
            await asyncio.sleep(pause)
        if options.stalling:
            price_order(truth)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=["obstore", "primp"], required=True)
    parser.add_argument("--stalling", action="store_true")
    parser.add_argument("--truth", metavar="FILE", help="where to write down each stall")
    options = parser.parse_args()
    asyncio.run(serve(options, Truth(options.truth)))


main()
