"""Blocks in one of several call shapes and prints its own true stack, as JSON, once it does."""
import asyncio
import contextlib
import functools
import json
import sys
import threading
import time


def block():
    time.sleep(1000)


def nested():
    def inner():
        try:
            block()
        finally:
            pass

    def middle():
        with contextlib.suppress(ValueError):
            inner()

    middle()


def key(value):
    block()
    return value


def builtin_sorted():
    sorted([1], key=key)


def builtin_map():
    return list(
        map(
            lambda value: key(value),
            [1],
        )
    )


def coroutine():
    async def leaf():
        block()

    async def handler():
        await leaf()

    async def serve():
        await asyncio.gather(handler())

    asyncio.run(serve())


def async_generator():
    async def numbers():
        yield 1
        block()
        yield 2

    async def serve():
        async for _ in numbers():
            pass

    asyncio.run(serve())


def traced(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@traced
@functools.lru_cache(maxsize=None)
def decorated():
    block()


def recursion(depth):
    if depth == 0:
        block()
    else:
        recursion(depth - 1)


def recursion_100():
    recursion(100)


def recursion_300():
    recursion(300)


class Größe:
    def __getattr__(self, name):
        return self.本語(name)

    def 本語(self, name):
        def 𠀀():
            block()

        𠀀()
        return name


def non_ascii():
    code = compile("\n\n" + "def äußere():\n    Größe().fehlt\n\n\näußere()\n", "größe/本/𠀀.py", "exec")
    exec(code, {"Größe": Größe})


def generators():
    def leaf():
        yield block()

    def delegating():
        yield from leaf()

    class Body:
        values = [[value for value in delegating()] for _ in range(1)]


def in_a_thread():
    thread = threading.Thread(target=block, name="blocked")
    thread.start()
    return thread


def long_module():
    # Lines and instructions beyond what one byte of a line table can step over.
    body = "    value = 1\n" * 400 + "\n" * 300 + "    block()\n" + "\n" * 300 + "    value = 2\n"
    exec(compile("def long():\n" + body + "\n" * 300 + "long()\n", "long.py", "exec"), {"block": block})


def stack_of(frame):
    stack = []
    while frame is not None:
        code = frame.f_code
        stack.append(
            {
                "function": getattr(code, "co_qualname", code.co_name),
                "file": code.co_filename,
                "line": frame.f_lineno,
                "first_line": code.co_firstlineno,
                "is_coroutine": bool(code.co_flags & 0x380),
            }
        )
        frame = frame.f_back
    return stack


def report(ident, native_id):
    """Runs in a thread of its own: the blocked one cannot speak."""
    while sys._current_frames()[ident].f_code is not block.__code__:
        time.sleep(0.005)
    # Between entering the function and blocking in it.
    time.sleep(0.05)
    truth = {
        "version": "%d.%d.%d" % sys.version_info[:3],
        "ident": ident,
        "native_id": native_id,
        "reporter_ident": threading.get_ident(),
        "reporter_native_id": threading.get_native_id(),
        "stack": stack_of(sys._current_frames()[ident]),
    }
    print(json.dumps(truth), flush=True)
    time.sleep(1000)


def main(shape):
    if shape == "in_a_thread":
        thread = in_a_thread()
        threading.Thread(target=report, args=(thread.ident, thread.native_id)).start()
    else:
        reporter = (threading.get_ident(), threading.get_native_id())
        threading.Thread(target=report, args=reporter, daemon=True).start()
        globals()[shape]()


main(sys.argv[1])
