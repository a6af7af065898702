"""How fast one node reaches another: round trips and a stream of bytes over a plain TCP connection."""

import socket
import statistics
import threading
import time
from dataclasses import dataclass

ROUND_TRIPS = 20
STREAM = 1.0
"""Seconds in which bytes are sent."""
CHUNK = bytes(2**18)
PATIENCE = 5.0
"""Seconds after which a connection that gives no sign is given up."""


@dataclass(frozen=True)
class Link:
    """What was measured from one node to another."""

    latency: float
    """Seconds of a round trip, the median."""
    bandwidth: float
    """Bytes a second of one connection."""


def listen(address: str) -> int:
    """Takes one connection at an address of this machine, in the background; returns the port.

    What is sent is sent back byte by byte for the round trips, and then counted.
    """
    server = socket.create_server((address, 0), family=_family(address))
    server.settimeout(12 * PATIENCE)  # the others begin when all of them listen
    threading.Thread(target=_serve, args=(server,), daemon=True, name="distmeta-link").start()
    return int(server.getsockname()[1])


def measure(address: str, port: int) -> Link:
    """Measures the way to where another node listens.

    Raises:
        OSError: there is no way, or it breaks off.
    """
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(ROUND_TRIPS):
            since = time.perf_counter()
            connection.sendall(b"?")
            if not connection.recv(1):
                raise ConnectionResetError("the other side closed it")
            trips.append(time.perf_counter() - since)
        since, sent = time.perf_counter(), 0
        while time.perf_counter() - since < STREAM:
            connection.sendall(CHUNK)
            sent += len(CHUNK)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(4 * PATIENCE)  # a slow way has a lot on it still
        if connection.recv(1) != b"!":  # when all of it has come
            raise ConnectionResetError("the other side closed it")
        return Link(statistics.median(trips), sent / (time.perf_counter() - since))


def _serve(server: socket.socket) -> None:
    try:
        with server:
            connection, _ = server.accept()
        with connection:
            connection.settimeout(PATIENCE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUND_TRIPS):
                connection.sendall(connection.recv(1))
            while connection.recv(len(CHUNK)):
                pass
            connection.sendall(b"!")
    except OSError:
        return  # told by the other side


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
