"""Event loops that come and go: closed, replaced, one for each call, in a thread that ends, after we attached.

usage: ends_of_loops.py KIND --truth FILE. Prints `ready 0`; SIGUSR1 starts it (but for `pool-for-ever`, which has
begun), and when it is over it prints `over` and keeps still. Where no loop is there, or none is running, nothing is
late however long its thread blocks. What blocks while a loop is running is written down.
"""

import argparse
import asyncio
import os
import select
import signal
import socket
import threading
import time

from truth import Truth

ROUNDS = 4
# Between two loops, well past every threshold.
APART_S = 0.45


async def convert():
    await asyncio.sleep(0.02)


def one_call_each():
    """Synchronous work with a loop of its own for each single call."""
    for _ in range(ROUNDS):
        asyncio.run(convert())
        time.sleep(APART_S)


def pool(truth):
    """In the threads of a healthy server's pool; the server's own heartbeat is the witness."""

    async def serve():
        heartbeat = asyncio.create_task(truth.heartbeat())
        await asyncio.gather(*(asyncio.to_thread(one_call_each) for _ in range(2)))
        heartbeat.cancel()

    asyncio.run(serve())


def pool_for_ever(truth):
    """The same without an end."""
    while True:
        pool(truth)


def main_thread(truth):
    """In the main thread, as a job queue's child does."""
    one_call_each()


def own_thread(truth):
    """In a thread of the program's own, which ends then."""
    thread = threading.Thread(target=one_call_each, name="convert")
    thread.start()
    thread.join()


def once(truth):
    """In a thread whose first job needs a loop, and which waits for the next job from then on."""
    reader, writer = os.pipe()

    def serve():
        while os.read(reader, 1):
            asyncio.run(convert())

    threading.Thread(target=serve, daemon=True).start()
    os.write(writer, b"x")
    time.sleep(1.5)


def blocked_before_closed(truth):
    """The last thing that each loop runs holds it up."""

    async def convert_slowly():
        await asyncio.sleep(0.02)
        with truth.stall("sleep"):
            time.sleep(0.3)

    for _ in range(ROUNDS):
        asyncio.run(convert_slowly())
        time.sleep(APART_S)


def turn(loop, pair):
    """Has the loop wait once, and return with an event."""
    pair[0].send(b"x")
    assert loop.poll(1)
    pair[1].recv(1)


def new_loop(pair):
    loop = select.epoll()
    loop.register(pair[1], select.EPOLLIN)
    return loop


def replaced(truth):
    """One epoll instance after the other has the same number."""
    pair = socket.socketpair()
    loop = new_loop(pair)
    number = loop.fileno()
    for _ in range(ROUNDS):
        turn(loop, pair)
        loop.close()
        time.sleep(APART_S)
        loop = new_loop(pair)
        assert loop.fileno() == number
    turn(loop, pair)
    # Held up for real, and only then replaced.
    with truth.stall("sleep"):
        time.sleep(0.3)
    loop.close()
    time.sleep(APART_S)
    loop = new_loop(pair)
    assert loop.fileno() == number
    turn(loop, pair)
    loop.close()


def replaced_at_once(truth):
    """The next one has the number before anything else happens; then its thread works without it for long."""
    pair = socket.socketpair()
    loop = new_loop(pair)
    number = loop.fileno()
    for _ in range(ROUNDS):
        turn(loop, pair)
        loop.close()
        loop = new_loop(pair)
        assert loop.fileno() == number
        time.sleep(APART_S)
    loop.close()


def number_reused(truth):
    """A file has the number of the loop that was, and its thread never waits again."""
    pair = socket.socketpair()
    loop = new_loop(pair)
    number = loop.fileno()
    turn(loop, pair)
    loop.close()
    file = os.open("/dev/zero", os.O_RDONLY)
    assert file == number
    for _ in range(ROUNDS):
        os.read(file, 1)
        time.sleep(APART_S)


def thread_ends(truth):
    """A thread ends in the middle of a turn, and leaves its loop open."""
    left = []

    def run():
        pair = socket.socketpair()
        loop = new_loop(pair)
        left.append((loop, pair))
        turn(loop, pair)

    for _ in range(ROUNDS):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        time.sleep(APART_S)


def blocked_before_thread_ends(truth):
    """The same, held up before it ends."""
    left = []

    def run():
        pair = socket.socketpair()
        loop = new_loop(pair)
        left.append((loop, pair))
        turn(loop, pair)
        with truth.stall("sleep"):
            time.sleep(0.3)

    for _ in range(ROUNDS):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        time.sleep(APART_S)


def later(truth):
    """There is no loop until now. The first one is held up after its first wait."""
    time.sleep(APART_S)

    async def hold_up():
        await asyncio.sleep(0.02)
        with truth.stall("sleep"):
            time.sleep(0.3)
        await asyncio.sleep(0.2)

    asyncio.run(hold_up())


def later_in_thread(truth):
    """The same in a thread that was born since."""
    thread = threading.Thread(target=later, args=(truth,))
    thread.start()
    thread.join()


KINDS = {
    "pool": pool,
    "pool-for-ever": pool_for_ever,
    "main": main_thread,
    "thread": own_thread,
    "once": once,
    "blocked-before-closed": blocked_before_closed,
    "replaced": replaced,
    "replaced-at-once": replaced_at_once,
    "number-reused": number_reused,
    "thread-ends": thread_ends,
    "blocked-before-thread-ends": blocked_before_thread_ends,
    "later": later,
    "later-in-thread": later_in_thread,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--truth", metavar="FILE", help="where to write down what blocks a loop")
    options = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    # Of a library, in no thread's use: there is something to attach to.
    kept = None if options.kind.startswith("later") else select.epoll()
    print("ready 0", flush=True)
    if not options.kind.endswith("for-ever"):
        signal.sigwait([signal.SIGUSR1])
    KINDS[options.kind](Truth(options.truth))
    print("over", flush=True)
    threading.Event().wait()
    del kept


main()
