"""A sample FastAPI application whose routes stall its event loop in known ways, and write down when.

`uvicorn fastapi_app:app`, with the file to write to in TARGET_TRUTH.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import tempfile
import time

# The slow server is on this machine, whatever proxy leads out of it.
os.environ["NO_PROXY"] = "127.0.0.1"

import requests
from fastapi import Depends, FastAPI, Request

from backends import HardDocument, Inventory, LateFile, SlowServer
from truth import Truth

SHORT_S = 0.03
TRUTH_FILE = os.environ.get("TARGET_TRUTH")
TRUTH = Truth(TRUTH_FILE)
# Beside the truth: whoever asked for that also clears up after a service that was killed.
BESIDE = os.path.dirname(os.path.abspath(TRUTH_FILE)) if TRUTH_FILE else None


@contextlib.asynccontextmanager
async def lifespan(app):
    heartbeat = asyncio.get_running_loop().create_task(TRUTH.heartbeat())
    with tempfile.TemporaryDirectory(prefix="fastapi-", dir=BESIDE) as folder:
        app.state.documents = HardDocument()
        app.state.payments = SlowServer()
        app.state.pricing = LateFile(folder)
        app.state.inventory = Inventory()
        yield
    heartbeat.cancel()


app = FastAPI(lifespan=lifespan)


@app.middleware("http")
async def add_timing(request: Request, call_next):
    start_ns = time.monotonic_ns()
    response = await call_next(request)
    response.headers["Server-Timing"] = "app;dur=%.1f" % ((time.monotonic_ns() - start_ns) / 1e6)
    return response


async def current_customer(request: Request):
    await asyncio.sleep(0)
    return request.headers.get("x-customer", "anonymous")


async def verify_token(ms: int = 200):
    with TRUTH.stall("dependency"):
        time.sleep(ms / 1000)
    return "verified"


def charge_payment(url):
    with TRUTH.stall("upstream"):
        reply = requests.get(url)
    return reply.json()


def quote_shipping(url):
    with TRUTH.stall("upstream-timeout"):
        reply = requests.get(url, timeout=60)
    return reply.json()


def load_config(path):
    with open(path, encoding="utf-8") as file:
        with TRUTH.stall("file"):
            text = file.read()
    return json.loads(text)


def reserve_seat(inventory):
    with TRUTH.stall("lock"):
        inventory.lock.acquire()
    inventory.seats -= 1
    inventory.lock.release()
    return inventory.seats


@app.get("/regex")
async def validate_document(request: Request, ms: int = 200, customer: str = Depends(current_customer)):
    document = request.app.state.documents.taking(ms)
    with TRUTH.stall("regex"):
        dangling = request.app.state.documents.pattern.search(document)
    return {"valid": dangling is None, "customer": customer}


@app.get("/upstream")
async def checkout(request: Request, ms: int = 200, customer: str = Depends(current_customer)):
    return {"payment": charge_payment(request.app.state.payments.url(ms)), "customer": customer}


@app.get("/upstream-timeout")
async def shipping(request: Request, ms: int = 200):
    return quote_shipping(request.app.state.payments.url(ms))


@app.get("/file")
async def prices(request: Request, ms: int = 200):
    request.app.state.pricing.arrives_after(ms)
    return load_config(request.app.state.pricing.path)


@app.get("/lock")
async def booking(request: Request, ms: int = 200):
    await request.app.state.inventory.being_synced(ms)
    return {"seats": reserve_seat(request.app.state.inventory)}


@app.get("/sleep")
async def retry_delivery(ms: int = 200, customer: str = Depends(current_customer)):
    with TRUTH.stall("sleep"):
        time.sleep(ms / 1000)
    return {"delivered": True, "customer": customer}


@app.get("/dependency")
async def account(token: str = Depends(verify_token)):
    return {"token": token}


@app.get("/subprocess")
async def render_invoice(ms: int = 200):
    with TRUTH.stall("subprocess"):
        subprocess.run(["sleep", "%.3f" % (ms / 1000)], check=True)
    return {"invoice": "F-2041"}


@app.get("/cpu")
async def score_risk(ms: int = 200):
    until_ns = time.monotonic_ns() + int(ms * 1e6)
    score = 0
    with TRUTH.stall("cpu", lines=2):
        while time.monotonic_ns() < until_ns:
            score = (score * 31 + 7) % 1_000_003
    return {"score": score}


@app.get("/")
async def list_orders(customer: str = Depends(current_customer)):
    return {"orders": [2041, 2042], "customer": customer}


@app.get("/async-sleep")
async def track_shipment(ms: int = 50):
    await asyncio.sleep(ms / 1000)
    return {"shipped": True}


@app.get("/to-thread")
def resize_image(ms: int = 200):
    time.sleep(ms / 1000)
    return {"resized": True}


@app.get("/short")
async def warm_template():
    with TRUTH.stall("short"):
        time.sleep(SHORT_S)
    return {"warm": True}
