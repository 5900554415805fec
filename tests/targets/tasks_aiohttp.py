"""An aiohttp application below middleware of its own, whose handler freezes the loop and writes down whose turn it
was.

Prints `ready PORT PID`; the file to write to is in TASK_TRUTH.
"""

import asyncio
import os
import sys

from aiohttp import web

from task_truth import freeze


@web.middleware
async def count(request, handler):
    return await handler(request)


class Authenticate:
    __middleware_version__ = 1

    @web.middleware
    async def __call__(self, request, handler):
        response = await handler(request)
        return response


def charge(ms, handler):
    freeze("handler", ms, handler)


async def pay(request):
    charge(int(request.query.get("ms", 200)), sys._getframe())
    return web.Response(text="paid")


async def orders(request):
    return web.Response(text="none")


async def main():
    app = web.Application(middlewares=[count, Authenticate()])
    app.router.add_get("/pay", pay)
    app.router.add_get("/", orders)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print("ready", runner.addresses[0][1], os.getpid(), flush=True)
    await asyncio.Event().wait()


asyncio.run(main())
