"""Blocks below C functions that call back into Python, as `shapes.py` blocks below Python ones."""
import collections
import ctypes
import functools
import gc
import itertools
import re
import sqlite3
import sys

from shapes import block, main


def libc_qsort():
    def compare(left, right):
        block()
        return 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(compare)
    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(2, 1), ctypes.c_size_t(2), ctypes.c_size_t(4), function)


def sqlite_function():
    def twice(value):
        block()
        return 2 * value

    with sqlite3.connect(":memory:") as connection:
        connection.create_function("twice", 1, twice)
        connection.execute("SELECT twice(1)").fetchall()


def sorted_key():
    def key(value):
        block()
        return value

    sorted([1], key=key)


def regex_callback():
    def replacement(found):
        block()
        return ""

    re.sub("b+", replacement, "abba")


def reduced():
    def add(left, right):
        block()
        return left + right

    functools.reduce(add, [1, 2])


def cached():
    @functools.lru_cache(maxsize=2)
    def slow(value):
        block()
        return value

    slow(1)


class Finalised:
    def __del__(self):
        block()


def finaliser():
    value = Finalised()
    del value


def finaliser_at_return():
    value = Finalised()  # noqa: F841


def finaliser_of_a_cycle():
    value = Finalised()
    value.itself = value
    del value
    gc.collect()


def finaliser_while_raising():
    def raising():
        value = Finalised()
        value.missing.also

    try:
        raising()
    except AttributeError:
        pass


class Operators:
    def __init__(self, action):
        self.action = action

    def __getattr__(self, name):
        if self.action == "getattr":
            block()
        raise AttributeError(name)

    def __add__(self, other):
        block()
        return self

    def __getitem__(self, index):
        block()
        return self

    def __iter__(self):
        return iter([1, 2])

    def __eq__(self, other):
        block()
        return True

    def __hash__(self):
        return 1

    def __bool__(self):
        block()
        return True

    def __contains__(self, item):
        block()
        return True

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        block()
        return True

    def __call__(self):
        block()

    def __format__(self, spec):
        block()
        return ""

    def __setattr__(self, name, value):
        if name == "blocking":
            block()
        object.__setattr__(self, name, value)


def op_add():
    Operators("") + 1


def op_getitem():
    Operators("")[1]


def op_missing_attribute():
    try:
        Operators("getattr").missing
    except AttributeError:
        pass


def op_hasattr():
    hasattr(Operators("getattr"), "missing")


def op_equal_in_a_dict():
    {Operators(""): 1}[Operators("")]


def op_truth():
    if Operators(""):
        pass


def op_in():
    1 in Operators("")


def op_exit():
    with Operators(""):
        pass


def op_exit_raising():
    with Operators(""):
        raise ValueError


def op_call():
    Operators("")()


def op_format():
    f"{Operators('')}"


def op_setattr():
    Operators("").blocking = 1


def unpacked():
    def values():
        yield 1
        block()
        yield 2

    left, right = values()


def starred():
    def values():
        block()
        yield 1

    (lambda *words: words)(*values())


def list_extended():
    def values():
        block()
        yield 1

    [*values()]


def for_over_a_map():
    for value in map(lambda value: block(), [1]):
        pass


def for_over_a_generator():
    def values():
        block()
        yield 1

    for value in values():
        pass


def generator_closed():
    def values():
        try:
            yield 1
        finally:
            block()

    generator = values()
    next(generator)
    generator.close()


def generator_dropped():
    def values():
        try:
            yield 1
        finally:
            block()

    next(values())


def generator_thrown_into():
    def inner():
        try:
            yield 1
        except ValueError:
            block()
            yield 2

    def outer():
        yield from inner()

    generator = outer()
    next(generator)
    generator.throw(ValueError)


def metaclass():
    class Meta(type):
        def __new__(mcs, *words):
            block()
            return super().__new__(mcs, *words)

    class Made(metaclass=Meta):
        pass


def descriptor_name():
    class Field:
        def __set_name__(self, owner, name):
            block()

    try:

        class Made:
            field = Field()
    finally:
        pass


def exception_made():
    class Odd(Exception):
        def __init__(self):
            block()

    try:
        raise Odd
    except Odd:
        pass


def exception_matched():
    class Meta(type):
        def __instancecheck__(cls, other):
            block()
            return False

    class Odd(metaclass=Meta):
        pass

    isinstance(1, Odd)


def default_factory():
    def make():
        block()

    collections.defaultdict(make)[1]


def traced():
    def trace(frame, event, argument):
        if frame.f_code is watched.__code__ and event == "line":
            sys.settrace(None)
            block()
        return trace

    def watched():
        pass

    sys.settrace(trace)
    watched()


def profiled():
    def profile(frame, event, argument):
        if frame.f_code is watched.__code__ and event == "call":
            sys.setprofile(None)
            block()

    def watched():
        pass

    sys.setprofile(profile)
    watched()


def one_below_the_other():
    def innermost(left, right):
        block()
        return 0

    def sort(found):
        function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(innermost)
        values = (ctypes.c_int * 2)(2, 1)
        ctypes.CDLL(None).qsort(values, ctypes.c_size_t(2), ctypes.c_size_t(4), function)
        return ""

    def key(value):
        re.sub("b+", sort, "abba")
        return value

    def add(left, right):
        return sorted([left, right], key=key)[0]

    def twice(value):
        return sum(itertools.starmap(add, [(value, 1)]))

    with sqlite3.connect(":memory:") as connection:
        connection.create_function("twice", 1, twice)
        connection.execute("SELECT twice(1)").fetchall()


if __name__ == "__main__":
    main(globals(), sys.argv[1:])
