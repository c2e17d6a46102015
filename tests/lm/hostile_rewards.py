"""Reward functions that misbehave, for workers to import."""

import contextlib
import ctypes
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time


def behave(prompt, completion, where=None):
    """Does what the completion says; a number is returned."""
    action = globals().get(f"do_{completion}")
    return float(completion) if action is None else action(where)


def first_word(prompt, completion):
    return float(completion.split()[0])


def process(prompt, completion):
    return os.getpid()


def hash_of(prompt, completion):
    return hash(completion) % 1000


def pause(prompt, completion):
    time.sleep(random.random() / 50)
    return float(completion)


def heavy_modules(prompt, completion):
    """How many packages were loaded that workers have no use for."""
    import jrl.lm.rewards  # noqa: F401

    return sum(name in sys.modules for name in ("jax", "numpy", "flax", "transformers"))


def do_hang(where):
    while True:
        pass


def do_sleep(where):
    time.sleep(1000)


def do_deaf(where):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(1000)


def do_regex(where):
    # A loop in C that never lets another thread of the interpreter run.
    return re.match(r"(a+)+$", "a" * 60 + "b")


def do_stopped(where):
    os.kill(os.getpid(), signal.SIGSTOP)


def do_raise(where):
    raise KeyError("no such thing")


def do_leave(where):
    sys.exit(3)


def do_exit(where):
    os._exit(3)


def do_segfault(where):
    ctypes.string_at(0)


def do_none(where):
    return None


def do_nan(where):
    return float("nan")


def do_text(where):
    return "much"


def do_children(where):
    """Hangs, and leaves a program and a fork that hang too."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    fork = os.fork()
    if not fork:
        time.sleep(1000)
        os._exit(0)
    note = pathlib.Path(where)
    note.with_suffix(".new").write_text(f"{os.getpid()} {program.pid} {fork}")
    note.with_suffix(".new").rename(note)
    time.sleep(1000)
