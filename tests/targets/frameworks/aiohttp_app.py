"""The sample application on aiohttp: `aiohttp_app.py PORT asyncio|uvloop`."""

import asyncio
import sys

import uvloop
from aiohttp import web

import shop


async def stall(request):
    shop.STALLS[request.match_info["kind"]](int(request.query["ms"]))
    return web.json_response({})


async def wait(request):
    await asyncio.sleep(int(request.query["ms"]) / 1000)
    return web.json_response({})


async def to_thread(request):
    await asyncio.to_thread(shop.sleep, int(request.query["ms"]) / 1000)
    return web.json_response({})


async def recount(request):
    recount = shop.Recount(int(request.query["ms"]))
    for callback in recount.callbacks:
        asyncio.get_running_loop().call_soon(callback, recount)
    return web.json_response({})


async def list_orders(request):
    return web.json_response({"orders": [2041, 2042]})


async def start(app):
    app["heartbeat"] = asyncio.create_task(shop.TRUTH.heartbeat())
    shop.announce()


if __name__ == "__main__":
    app = web.Application()
    app.on_startup.append(start)
    app.add_routes(
        [
            web.get("/", list_orders),
            web.get("/wait", wait),
            web.get("/to-thread", to_thread),
            web.get("/saturated", recount),
            web.get("/{kind}", stall),
        ]
    )
    loop = uvloop.new_event_loop() if sys.argv[2] == "uvloop" else asyncio.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None, loop=loop)
