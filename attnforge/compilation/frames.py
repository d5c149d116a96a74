"""Length-prefixed messages between a parent and its worker processes: JSON, never pickle, on a socket of their own."""

from __future__ import annotations

import socket
import struct
import time

_LENGTH = struct.Struct(">I")
LARGEST_FRAME = 64 * 2**20
"""Bytes; a length beyond it means that something else wrote to the socket."""


class FrameError(Exception):
    """What arrived is no frame."""


class ConnectionEndedError(FrameError):
    """The other side closed the socket, or died."""

    def __init__(self) -> None:
        super().__init__("the other side closed the connection")


def send_frame(connection: socket.socket, payload: bytes) -> None:
    """Send one message; OSError when the other side is gone."""
    connection.settimeout(None)
    connection.sendall(_LENGTH.pack(len(payload)) + payload)


def receive_frame(connection: socket.socket, deadline_s: float | None = None) -> bytes:
    """The next message. Raises TimeoutError after ``deadline_s`` seconds, ConnectionEndedError, or FrameError."""
    until = None if deadline_s is None else time.monotonic() + deadline_s
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, until))
    if length > LARGEST_FRAME:
        raise FrameError(f"a frame of {length} bytes; the most is {LARGEST_FRAME}")
    return _receive(connection, length, until)


def _receive(connection: socket.socket, size: int, until: float | None) -> bytes:
    received = bytearray()
    while len(received) < size:
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        try:
            piece = connection.recv(size - len(received))
        except ConnectionResetError:
            piece = b""
        if not piece:
            raise ConnectionEndedError
        received += piece
    return bytes(received)
