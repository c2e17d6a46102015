"""What a worker process runs, started as a file: the standard library and what rewards import.

It answers each pickled call with one line of JSON, `[value, None]` or `[null, traceback]`. What
comes instead of a line are its last words: when a call takes too long, `faulthandler` writes where
it hangs and ends the process from a thread of its own, which needs no interpreter. So does a
segmentation fault.
"""

import faulthandler
import fcntl
import json
import math
import os
import pickle
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types

__all__ = ["main"]


class _Unpickler(pickle.Unpickler):
    """Finds what files define that no import finds: there `__main__` was a script, here it is not.

    `scripts` maps the names of such modules to their files.
    """

    def __init__(self, file, scripts):
        super().__init__(file)
        self.scripts = scripts

    def find_class(self, module, name):
        if module in self.scripts:
            module = _import_script(module, self.scripts[module])
        return super().find_class(module, name)


def _import_script(module, path):
    # The name that multiprocessing gives it: `if __name__ == "__main__"` is not entered.
    name = "__mp_main__" if module == "__main__" else module
    if name not in sys.modules:
        if path is None:
            raise ImportError("a function of an interactive session, put it into a module")
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(runpy.run_path(path, run_name=name))
    return name


def _end_with_parent():
    """Sees to it that this process, and all that it starts, ends when the parent does.

    The parent holds the other end of the standard input and never writes to it.
    """
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def wait():
        hung_up = select.poll()
        hung_up.register(lifeline, 0)
        hung_up.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()
    # A thread waits in vain for code in C that keeps the interpreter to itself. Linux can send
    # the signal on its own.
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)


def _call(function, arguments, columns):
    value = function(*arguments, **columns)
    if value is None or not math.isfinite(value := float(value)):
        raise ValueError(f"a reward must be a finite number, got {value}")
    return value


def main() -> None:
    """Serves calls until the parent closes its end of the socket, whose number is argv[1]."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    # Not for processes that a reward function starts.
    channel.set_inheritable(False)
    _end_with_parent()
    faulthandler.enable(channel.fileno())
    calls = channel.makefile("rb")

    def answer(work):
        try:
            reply = [work(), None]
        except BaseException:
            # Of what a reward raises, be it SystemExit, nothing ends the worker.
            reply = [None, traceback.format_exc()]
        faulthandler.cancel_dump_traceback_later()
        channel.sendall(json.dumps(reply).encode() + b"\n")

    functions = []
    sys.path, sys.argv, scripts, timeout = pickle.load(calls)

    def load():
        functions.extend(_Unpickler(calls, scripts).load())

    def call():
        which, arguments, columns = _Unpickler(calls, scripts).load()
        faulthandler.dump_traceback_later(timeout, exit=True, file=channel.fileno())
        return _call(functions[which], arguments, columns)

    answer(load)
    while calls.peek(1):
        answer(call)


if __name__ == "__main__":
    main()
