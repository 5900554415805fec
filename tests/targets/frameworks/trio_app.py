"""The sample application on trio alone: `trio_app.py PORT`."""

import sys
from functools import partial

import trio

import plain_http
import shop


async def count_item(recount):
    shop.count_item(recount)


async def price_item(recount):
    shop.price_item(recount)


async def render_item(recount):
    shop.render_item(recount)


async def reserve_item(recount):
    shop.reserve_item(recount)


async def announce_item(recount):
    shop.announce_item(recount)


TASKS = {
    shop.count_item: count_item,
    shop.price_item: price_item,
    shop.render_item: render_item,
    shop.reserve_item: reserve_item,
    shop.announce_item: announce_item,
}


async def handle(name, ms):
    if name in shop.STALLS:
        shop.STALLS[name](ms)
    elif name == "wait":
        await trio.sleep(ms / 1000)
    elif name == "to-thread":
        await trio.to_thread.run_sync(shop.sleep, ms / 1000)
    elif name == "saturated":
        recount = shop.Recount(ms)
        for callback in recount.callbacks:
            trio.lowlevel.spawn_system_task(TASKS[callback], recount)


async def serve(stream):
    await plain_http.converse(stream.receive_some, stream.send_all, handle)


async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.TRUTH.heartbeat, trio.sleep)
        await nursery.start(partial(trio.serve_tcp, serve, int(sys.argv[1]), host="127.0.0.1"))
        shop.announce()


if __name__ == "__main__":
    trio.run(main)
