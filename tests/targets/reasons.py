"""A loop whose handler waits for another thread, once for each reason that such a wait can have.

Prints `ready 0 PID`, and after SIGUSR1 for every wait `waited JSON`: its kind, from when until when, and the name of
the thread that was to end it, where there is one. Ends by itself; but with the name of a deadlock for an argument it
stays in that.
"""

import asyncio
import concurrent.futures
import ctypes
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time

WAIT_S = 0.4

pool = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="db-pool")
# A driver that forgets to let go of the interpreter's lock.
rude = ctypes.PyDLL(None)
libc = ctypes.CDLL(None)


def answered_late():
    """A socket that another process writes to."""
    here, there = socket.socketpair()
    if os.fork() == 0:
        time.sleep(WAIT_S)
        os.write(there.fileno(), b"row")
        os._exit(0)
    return here


def start(name, work, *options):
    thread = threading.Thread(target=work, args=options, name=name, daemon=True)
    thread.start()
    return thread


def ran_out():
    event = threading.Event()
    for delay in (WAIT_S / 2, WAIT_S):
        event.wait(delay)


def is_set():
    event = threading.Event()

    def release():
        time.sleep(WAIT_S)
        event.set()

    start("setter", release)
    event.wait(60)
    return "setter"


def result():
    here = answered_late()

    def run_query():
        return here.recv(16)

    pool.submit(run_query).result()
    return "db-pool_0"


def joined():
    here = answered_late()

    def flush_metrics():
        here.recv(16)

    start("flusher", flush_metrics).join()
    return "flusher"


def queued():
    items, here = queue.Queue(), answered_late()

    def produce():
        items.put(here.recv(16))

    start("producer", produce)
    items.get()
    return "producer"


def locked():
    lock, taken = threading.RLock(), threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writer, True)
    if os.fork() == 0:
        time.sleep(WAIT_S)
        os.read(reader, 1 << 16)
        os._exit(0)

    def write_log():
        with lock:
            taken.set()
            os.write(writer, b"x" * 4096)

    start("log-writer", write_log)
    taken.wait()
    with lock:
        return "log-writer"


def request():
    """Reads what a client is slow to send; in a thread server each thread does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if os.fork() == 0:
            client = socket.create_connection(server.getsockname())
            time.sleep(WAIT_S)
            client.send(b"GET /")
            os._exit(0)
        connection, _ = server.accept()
    with connection:
        connection.recv(16)


def chained():
    """Waits for a thread that waits for another, which the database answers late."""
    orders, stock, taken = threading.RLock(), threading.RLock(), threading.Event()
    here = answered_late()

    def keep_stock():
        with stock:
            taken.set()
            here.recv(16)

    def keep_orders():
        with orders:
            taken.set()
            with stock:
                pass

    for thread in [("stock-keeper", keep_stock), ("order-keeper", keep_orders)]:
        taken.clear()
        start(*thread)
        taken.wait()
    with orders:
        return "order-keeper"


def rude_call():
    here = answered_late()
    buffer = ctypes.create_string_buffer(16)

    def poll_device():
        rude.recv(here.fileno(), buffer, 16, 0)

    start("device-poller", poll_device)
    # Lets go of the lock, and cannot have it back.
    time.sleep(0.01)
    return "device-poller"


def collected(heap):
    def push_updates():
        gc.collect()

    start("pusher", push_updates)
    time.sleep(0.01)
    return "pusher"


def of_itself():
    async def device_id():
        return 7

    asyncio.run_coroutine_threadsafe(device_id(), asyncio.get_running_loop()).result()


def of_idle_threads():
    # They wait for work ever after.
    pool.submit(int).result()
    of_itself()


def of_a_cycle():
    mutex, taken = ctypes.create_string_buffer(40), threading.Event()

    def keep_mutex():
        libc.pthread_mutex_lock(mutex)
        taken.set()
        while True:
            sum(range(1000))

    start("mutex-keeper", keep_mutex)
    taken.wait()
    rude.pthread_mutex_lock(mutex)


DEADLOCKS = {"itself": of_itself, "idle-threads": of_idle_threads, "cycle": of_a_cycle}


def heap_to_collect():
    heap = []
    while True:
        heap.extend([n] for n in range(200_000))
        start_ns = time.thread_time_ns()
        gc.collect()
        if time.thread_time_ns() - start_ns >= WAIT_S * 1e9:
            return heap


async def serve(deadlock):
    watched = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, watched.set)
    heap = None if deadlock else heap_to_collect()
    print("ready 0", os.getpid(), flush=True)
    await watched.wait()
    await asyncio.sleep(0.3)
    if deadlock:
        DEADLOCKS[deadlock]()
    for wait in [ran_out, is_set, result, joined, queued, locked, request, chained, rude_call, collected]:
        start_ns = time.monotonic_ns()
        thread = wait(heap) if wait is collected else wait()
        told = dict(kind=wait.__name__, start_ns=start_ns, end_ns=time.monotonic_ns(), thread=thread)
        print("waited", json.dumps(told), flush=True)
        await asyncio.sleep(0.3)


asyncio.run(serve(sys.argv[1] if len(sys.argv) > 1 else None))
