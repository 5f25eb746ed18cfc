"""A process with torch imported that forks a child a request, so that a start costs milliseconds instead of seconds.

Requests are lines of JSON on stdin: ``{"function": "module:name", "arguments": {...}, "log": PATH}`` starts a child in
a session of its own and answers with its process id; ``{"poll": ID}`` answers with its exit code (negative: the signal
that ended it), or null while it runs.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

PRELOADED = (
    *(
        "torch",
        "torch._dynamo",
        "tokenizers",
        "safetensors.torch",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "rich.table",
    ),
    *("grrcoca_cli.cli", "grrcoca_cli.commands.caption", "grrcoca_cli.commands.evaluate", "grrcoca_cli.commands.train"),
    *("grrcoca_cli.commands.datasets", "grrcoca_cli.commands.modelside", "grrcoca_cli.training.loop", "medical"),
)


def become(request: dict[str, Any]) -> None:
    """In the child: leave the parent's streams and signals, then do what was asked for."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, f"{request['log']}.out", flags),
        (2, f"{request['log']}.err", flags),
    ):
        os.dup2(os.open(path, mode, 0o666), descriptor)
    module, _, name = request["function"].partition(":")
    code: object = 0
    try:
        getattr(importlib.import_module(module), name)(**request["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for taking apart all that the parent imported, which takes a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def poll(process: int) -> int | None:
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tests' own Ctrl-C ends them, and by that this process's stdin
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # a child's collector leaves it alone: no page of it is copied
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            print(json.dumps(poll(request["poll"])), flush=True)
            continue
        child = os.fork()
        if child == 0:
            become(request)
        print(child, flush=True)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
