#!/usr/bin/env python3
"""Pairs two processes through an amesh relay. Python's standard library alone, written from PROTOCOL.md.

    python3 pair.py listen ws://127.0.0.1:3001/ws             shows a code, waits for the other
    python3 pair.py connect ws://127.0.0.1:3001/ws 482916     on the other device

What it says to the other side is neither encrypted nor authenticated: secure.py, beside it, does both.
"""

import base64
import hashlib
import json
import os
import secrets
import socket
import ssl
import struct
import sys
from urllib.parse import urlsplit

DEADLINE = 35  # seconds: a stage of a pairing lasts 30
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


class RelayError(Exception):
    """Its text is an error code of the protocol, or the reason of a close."""


class Socket:
    """As much of RFC 6455 as the relay needs: it never fragments, and sends text."""

    def __init__(self, url):
        parts = urlsplit(url)
        secure = parts.scheme == "wss"
        self.tcp = socket.create_connection((parts.hostname, parts.port or (443 if secure else 80)), DEADLINE)
        if secure:
            self.tcp = ssl.create_default_context().wrap_socket(self.tcp, server_hostname=parts.hostname)
        self.reader = self.tcp.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        self.tcp.sendall(
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b"".join(iter(self.reader.readline, b"\r\n")).decode()
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
        if " 101 " not in head.split("\r\n")[0] or accept.decode() not in head:
            raise RelayError(f"no WebSocket here: {head.splitlines()[:1]}")

    def write(self, opcode, payload):
        mask, size = os.urandom(4), len(payload)
        length = bytes([0x80 | size]) if size < 126 else struct.pack(">BH", 0x80 | 126, size)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self.tcp.sendall(bytes([0x80 | opcode]) + length + mask + masked)

    def read(self):
        """The next text, whatever else comes in between."""
        while True:
            opcode, size = self.exactly(2)
            if size == 126:
                (size,) = struct.unpack(">H", self.exactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self.exactly(8))
            payload = self.exactly(size)
            if opcode & 15 == PING:
                self.write(10, payload)
            elif opcode & 15 == CLOSE:
                raise RelayError(payload[2:].decode() or "closed")
            elif opcode & 15 in (TEXT, BINARY):
                return payload.decode()

    def exactly(self, size):
        data = self.reader.read(size)
        if len(data) < size:
            raise RelayError("the connection broke")
        return data


class Relay:
    def __init__(self, url):
        self.socket = Socket(url)

    def send(self, **message):
        self.socket.write(TEXT, json.dumps(message).encode())

    def expect(self, kind):
        """The next message, which is to be of this kind; TCP keeps those that come early."""
        message = json.loads(self.socket.read())
        if message["type"] == kind:
            return message
        raise RelayError(message.get("code", f"unexpected {message['type']}"))

    def close(self):
        self.socket.write(CLOSE, struct.pack(">H", 1000))
        self.socket.tcp.close()


def wait_for_peer(url, show):
    for _ in range(5):  # a sixth code that is taken would be rate limited
        relay, code = Relay(url), f"{secrets.randbelow(1_000_000):06}"
        relay.send(type="listen", otc=code)
        try:
            relay.expect("ack")
        except RelayError as error:
            relay.close()
            if str(error) != "otc_in_use":
                raise
            continue
        show(code)
        relay.expect("peer_found")
        return relay, code
    raise RelayError("otc_in_use")


def main(role, url, code=None):
    if role == "listen":
        relay, _ = wait_for_peer(url, lambda code: print("code", code, flush=True))
        relay.send(type="data", payload="hello from the target")
        print("received", relay.expect("data")["payload"])
        relay.send(type="done")
    else:
        relay = Relay(url)
        relay.send(type="connect", otc=code)
        relay.expect("peer_found")
        print("received", relay.expect("data")["payload"])
        relay.send(type="data", payload="hello from the controller")
        relay.expect("done")
    relay.close()


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("listen", "connect") or (sys.argv[1] == "connect") != (len(sys.argv) == 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except (RelayError, OSError) as error:
        sys.exit(f"pair.py: {error}")
