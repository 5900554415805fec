"""The sample application on anyio: `anyio_app.py PORT asyncio|trio`."""

import sys

import anyio
import anyio.to_thread

import plain_http
import shop


async def handle(name, ms):
    if name in shop.STALLS:
        shop.STALLS[name](ms)
    elif name == "wait":
        await anyio.sleep(ms / 1000)
    elif name == "to-thread":
        await anyio.to_thread.run_sync(shop.sleep, ms / 1000)


async def serve(stream):
    async with stream:
        try:
            await plain_http.converse(stream.receive, stream.send, handle)
        except anyio.EndOfStream:
            pass


async def main():
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=int(sys.argv[1]))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shop.TRUTH.heartbeat, anyio.sleep)
        shop.announce()
        await listener.serve(serve)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[2])
