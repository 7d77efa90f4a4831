"""Sends back what comes, for one connection: 8 bytes of length, then so many bytes. Standard library alone."""

from __future__ import annotations

import socket


def main() -> None:
    """Say the port, and serve until the connection ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while size := int.from_bytes(_take(connection, memoryview(bytearray(8))), "big"):
            connection.sendall(_take(connection, memoryview(bytearray(size))))


def _take(connection: socket.socket, buffer: memoryview) -> memoryview:
    """Fill the buffer; zeros where the connection ends first."""
    got = 0
    while got < len(buffer):
        count = connection.recv_into(buffer[got:])
        if not count:
            return memoryview(bytes(len(buffer)))
        got += count
    return buffer


if __name__ == "__main__":
    main()
