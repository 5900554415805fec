"""An event loop that idles beside as many sleeping threads as asked for; with `--busy` one that turns all the time,
with `--loops` as many loops as threads.
"""

import asyncio
import socket
import sys
import threading
import time

SMALL_STACK = 64 * 1024


async def idle():
    print("ready", flush=True)
    await turn()


async def turn():
    while True:
        await asyncio.sleep(0.05)


async def busy():
    """Two ends of a connection throw a byte to and fro: thousands of turns a second, each with a wait."""
    here, there = socket.socketpair()
    for end in (here, there):
        end.setblocking(False)
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while True:
        await loop.sock_sendall(here, b"x")
        await loop.sock_recv(there, 1)
        await asyncio.sleep(0.0002)


def main():
    if "--loops" not in sys.argv:
        threading.stack_size(SMALL_STACK)
    target, args = time.sleep, (3600,)
    if "--loops" in sys.argv:
        target, args = lambda: asyncio.run(turn()), ()
    for number in range(int(sys.argv[1]) - 1):
        threading.Thread(target=target, args=args, daemon=True, name=f"reader-{number}").start()
    asyncio.run(busy() if "--busy" in sys.argv else idle())


main()
