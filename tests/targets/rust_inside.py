"""An asyncio service that reads objects through a Rust extension with a tokio runtime of its own, healthy all the time.

usage: rust_inside.py obstore|primp --truth FILE. Prints `ready 0 PID` and reads, at once and after pauses, so that the
extension's workers have work and are parked by turns. SIGUSR1 has the loop held up for 300 ms, which is written down.
"""

import argparse
import asyncio
import http.server
import os
import signal
import threading
import time

from truth import Truth

PAUSES_S = (0, 0.01, 0.02, 0, 0.15, 0.3)


class Objects(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.send_header("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
        self.end_headers()
        self.wfile.write(b"data")

    def log_message(self, *_):
        pass


def obstore_reader(url):
    import obstore
    from obstore.store import HTTPStore

    store = HTTPStore.from_url(url, client_options={"allow_http": True})

    async def read():
        await (await obstore.get_async(store, "a/b")).bytes_async()

    return read


def primp_reader(url):
    import primp

    client = primp.AsyncClient()

    async def read():
        await client.get(url)

    return read


def audit(truth):
    with truth.stall("sleep"):
        time.sleep(0.3)


async def serve(make_reader, truth):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    read = make_reader(f"http://127.0.0.1:{server.server_address[1]}")
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, audit, truth)
    heartbeat = asyncio.create_task(truth.heartbeat())
    await read()
    print("ready 0", os.getpid(), flush=True)
    while not heartbeat.done():
        for pause_s in PAUSES_S:
            await asyncio.gather(read(), read())
            await asyncio.sleep(pause_s)


READERS = {"obstore": obstore_reader, "primp": primp_reader}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extension", choices=sorted(READERS))
    parser.add_argument("--truth", metavar="FILE", help="where to write down what held up the loop")
    options = parser.parse_args()
    asyncio.run(serve(READERS[options.extension], Truth(options.truth)))


main()
