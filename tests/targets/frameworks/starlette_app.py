"""The sample application on Starlette, for servers of ASGI: `hypercorn starlette_app:app`.

Runs on asyncio and on trio, as anyio does, on which Starlette is built.
"""

import contextlib

import anyio
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

import shop


async def stall(request):
    shop.STALLS[request.path_params["kind"]](int(request.query_params["ms"]))
    return JSONResponse({})


async def wait(request):
    await anyio.sleep(int(request.query_params["ms"]) / 1000)
    return JSONResponse({})


def to_thread(request):
    shop.sleep(int(request.query_params["ms"]) / 1000)
    return JSONResponse({})


async def list_orders(request):
    return JSONResponse({"orders": [2041, 2042]})


@contextlib.asynccontextmanager
async def lifespan(app):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shop.TRUTH.heartbeat, anyio.sleep)
        shop.announce()
        yield
        tasks.cancel_scope.cancel()


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", list_orders),
        Route("/wait", wait),
        Route("/to-thread", to_thread),
        Route("/{kind}", stall),
    ],
)
