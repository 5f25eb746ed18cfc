"""A process that cannot reach anything, and in which every attempt is counted."""

import atexit
import contextlib
import ctypes
import errno
import os
import socket
from pathlib import Path
from typing import Any


def no_network(report: str, site: str) -> None:
    """Refuse every connection and look-up beyond the machine's own sockets, and write each attempt into a file.

    Processes that this one starts find a ``sitecustomize`` in the folder ``site`` that does the same. Where the
    machine allows it, all of them live in a network name space without a network, whose own counters are added at the
    end: they see what native code tries.
    """
    Path(site, "sitecustomize.py").write_text(
        f"from tests.survival.network_faults import refuse_connections\nrefuse_connections({report!r})\n"
    )
    os.environ["PYTHONPATH"] = f"{site}:{os.environ['PYTHONPATH']}"
    refuse_connections(report)
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:  # CLONE_NEWNET
        atexit.register(_report_counters, report)


def refuse_connections(report: str) -> None:
    """The part of `no_network` that is of one process."""

    def refuse(what: str) -> None:
        with Path(report).open("a") as file:
            file.write(f"{what}\n")
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            if self.family != socket.AF_UNIX:
                refuse(f"connect {address}")
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            self.connect(address)
            return 0

        def sendto(self, *args: Any) -> int:
            if self.family != socket.AF_UNIX:
                refuse(f"sendto {args[-1]}")
            return super().sendto(*args)

    socket.socket = Socket  # type: ignore[misc]
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, lambda *args, **_: refuse(f"look-up {args[:1]}"))


def _report_counters(report: str) -> None:
    """What the kernel counted: connections begun, packets without a route, datagrams sent."""
    lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
    counters = {names[0] + name: int(value) for names, values in zip(lines[::2], lines[1::2], strict=True)
                for name, value in zip(names[1:], values[1:], strict=True)}  # fmt: skip
    tried = {name: counters[name] for name in ("Tcp:ActiveOpens", "Ip:OutNoRoutes", "Udp:OutDatagrams")}
    if any(tried.values()):
        with Path(report).open("a") as file:
            file.write(f"kernel {tried}\n")


def call_home(native: bool = False) -> None:
    """Try to connect somewhere, to see whether that is noticed; ``native`` is not by way of Python's sockets' class."""
    import _socket

    kind = _socket.socket if native else socket.socket
    with contextlib.suppress(OSError):
        kind(socket.AF_INET, socket.SOCK_STREAM).connect(("192.0.2.1", 9))
