"""A loop that calls a gRPC server, or, with `--serve`, that server.

The loop prints `ready 0 PID`, and after SIGUSR1 for every call `waited JSON`: its kind, from when until when, and the
server's address and process. Each kind is a call that blocks the loop, but `healthy`, which the loop waits for. Ends by
itself.
"""

import asyncio
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time

import grpc
import grpc.aio

# gRPC waits for at most 100 or 200 ms at a time: the last of its waits is to be ended by the answer.
WAIT = b"0.45"
METHOD = "/shop.Payments/Charge"


class Payments(grpc.GenericRpcHandler):
    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(self.charge)

    def charge(self, seconds, _):
        time.sleep(float(seconds))
        return b"done"


def serve():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers([Payments()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None)


class Calls:
    """Each method is one kind."""

    def __init__(self, address):
        channel = grpc.insecure_channel(address)
        self.pay = channel.unary_unary(METHOD)
        self.address = address
        # The connection is there from now on.
        self.pay(b"0")

    async def blocking(self):
        self.pay(WAIT)

    async def with_deadline(self):
        self.pay(WAIT, timeout=60)

    async def of_a_future(self):
        self.pay.future(WAIT).result()

    async def healthy(self):
        # It has a thread of its own, for as long as it is there.
        self.later = grpc.aio.insecure_channel(self.address).unary_unary(METHOD)
        await self.later(WAIT)

    async def beside_aio(self):
        """That thread waits at the queue, and this one for that."""
        self.pay(WAIT)


async def play(address, server):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    calls = Calls(address)
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    for kind in [calls.blocking, calls.with_deadline, calls.of_a_future, calls.healthy, calls.beside_aio]:
        await asyncio.sleep(0.3)
        start_ns = time.monotonic_ns()
        await kind()
        told = dict(kind=kind.__name__, start_ns=start_ns, end_ns=time.monotonic_ns())
        print("waited", json.dumps(told | dict(address=address, server=server)), flush=True)
    await asyncio.sleep(0.3)


def main():
    if sys.argv[1:] == ["--serve"]:
        serve()
        return
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        port = server.stdout.readline().strip()
        asyncio.run(play(f"127.0.0.1:{port}", server.pid))
        server.stdin.close()


main()
