"""A FastAPI application below middleware of every kind, whose handlers freeze the loop and write down whose turn
it was.

`uvicorn tasks_app:app`, with the file to write to in TASK_TRUTH.
"""

import sys
import time

from fastapi import Depends, FastAPI, Request

from task_truth import freeze

app = FastAPI()


class CountRequests:
    """Middleware that calls the application in its own task."""

    def __init__(self, app):
        self.app = app
        self.requests = 0

    async def __call__(self, scope, receive, send):
        self.requests += 1
        await self.app(scope, receive, send)


app.add_middleware(CountRequests)


@app.middleware("http")
async def add_timing(request: Request, call_next):
    start_ns = time.monotonic_ns()
    response = await call_next(request)
    response.headers["Server-Timing"] = "app;dur=%.1f" % ((time.monotonic_ns() - start_ns) / 1e6)
    return response


app.add_middleware(CountRequests)


async def customer(ms: int = 200):
    freeze("dependency", ms, sys._getframe())
    return "anonymous"


def charge(ms, handler):
    freeze("handler", ms, handler)


async def confirm(ms, handler):
    charge(ms, handler)


@app.get("/pay")
async def pay(ms: int = 200):
    await confirm(ms, sys._getframe())
    return {"paid": True}


@app.get("/account")
async def account(customer: str = Depends(customer)):
    return {"customer": customer}


@app.get("/")
async def orders():
    return {"orders": [2041, 2042]}
