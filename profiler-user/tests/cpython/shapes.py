"""Blocks in one call shape after the other and prints its own true stack, as JSON, whenever it does.

A byte on standard input lets it go on with the next shape that its arguments name.
"""
import asyncio
import contextlib
import contextvars
import functools
import json
import os
import re
import sys
import tempfile
import threading
import time


def block():
    os.read(0, 1)


def nested():
    def inner():
        try:
            block()
        finally:
            pass

    def cleaning():
        try:
            raise ValueError
        except ValueError:
            try:
                raise KeyError
            except KeyError:
                inner()

    def middle():
        with contextlib.suppress(ValueError):
            try:
                pass
            finally:
                cleaning()

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


def regex():
    def replacement(found):
        block()
        return found.group()

    re.sub(
        "b+",
        replacement,
        "abba",
    )


def yield_from():
    def leaf():
        yield 1
        block()

    def middle():
        yield from leaf()

    def outer():
        yield 0
        yield from middle()

    for _ in outer():
        pass


def generator_expression():
    return sum(key(value) for value in (other for other in [1]))


def comprehensions():
    return {
        value: {
            inner
            for inner in [
                key(deep)
                for deep in [value]
            ]
        }
        for value in [1]
    }


def class_body():
    class Outer:
        class Inner:
            value = (lambda: block())()


def executed():
    exec("value = 1\n\neval('block()')", {"block": block})


def exit_stack():
    @contextlib.contextmanager
    def managed():
        try:
            yield
        finally:
            block()

    with contextlib.ExitStack() as stack:
        stack.callback(int)
        stack.enter_context(managed())


def context():
    contextvars.copy_context().run(functools.partial(key, 1))


def attributes():
    class Lazy:
        @property
        def here(self):
            return self.missing

        def __getattr__(self, name):
            block()
            return name

    return Lazy().here


def gathered_generators():
    async def numbers(count):
        try:
            for number in range(count):
                await asyncio.sleep(0)
                if number == 2:
                    block()
                yield number
        finally:
            pass

    async def consume():
        return [number async for number in numbers(3)]

    async def serve():
        await asyncio.gather(asyncio.sleep(0), consume())

    asyncio.run(serve())


def cancelled():
    async def leaf():
        try:
            await asyncio.sleep(1000)
        finally:
            block()

    async def middle():
        await leaf()

    async def handler():
        await middle()

    async def serve():
        task = asyncio.ensure_future(handler())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(serve())


def import_of_a_module():
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "imported.py"), "w") as module:
            module.write("import __main__\n\n\nclass Body:\n    __main__.block()\n")
        sys.path.insert(0, folder)
        try:
            import imported  # noqa: F401
        finally:
            sys.path.remove(folder)


def constructors():
    class Base:
        def __init__(self, value):
            self.value = key(value)

    class Derived(Base):
        def __init__(self, *values):
            super().__init__(*values)

    class Made(Derived):
        def __new__(cls, *values):
            return super().__new__(cls)

    Made(1)


def keyword_calls():
    def inner(first, *, second, **others):
        block()

    def outer(*values, **named):
        inner(
            *values,
            second=2,
            **named,
        )

    outer(1, third=3)


def iter_of_a_callable():
    def produce():
        block()

    list(iter(produce, None))


def hand_driven_coroutine():
    class Future:
        def __await__(self):
            yield 1
            block()

    async def inner():
        await Future()

    async def outer():
        await inner()

    driven = outer()
    driven.send(None)
    with contextlib.suppress(StopIteration):
        driven.send(None)


def in_a_thread():
    thread = threading.Thread(target=block, name="blocked")
    thread.start()
    return thread.ident, thread.native_id


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


def report(shape, ident, native_id):
    """Runs in a thread of its own: the blocked one cannot speak."""
    while sys._current_frames()[ident].f_code is not block.__code__:
        time.sleep(0.002)
    # Between entering the function and blocking in it.
    time.sleep(0.05)
    truth = {
        "shape": shape,
        "version": "%d.%d.%d" % sys.version_info[:3],
        "ident": ident,
        "native_id": native_id,
        "reporter_ident": threading.get_ident(),
        "reporter_native_id": threading.get_native_id(),
        "stack": stack_of(sys._current_frames()[ident]),
    }
    print(json.dumps(truth), flush=True)


def report_when_begun(shapes, begun):
    blocked = (threading.main_thread().ident, threading.main_thread().native_id)
    for shape in shapes:
        begun.acquire()
        report(shape, *blocked)


def main(functions, shapes):
    if shapes == ["in_a_thread"]:
        report(shapes[0], *in_a_thread())
        return
    begun = threading.Semaphore(0)
    threading.Thread(target=report_when_begun, args=(shapes, begun), daemon=True).start()
    for shape in shapes:
        begun.release()
        functions[shape]()


if __name__ == "__main__":
    main(globals(), sys.argv[1:])
