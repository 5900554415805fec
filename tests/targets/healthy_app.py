"""A FastAPI application that never stalls its event loop: what the benchmark measures against.

`uvicorn healthy_app:app`
"""

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def list_orders():
    return {"orders": [2041, 2042]}
