"""Subscribes to a NATS subject in plain text over TLS, with nothing but Python's standard library.

Speaks the protocol of https://docs.nats.io/reference/reference-protocols/nats-protocol: INFO, TLS, CONNECT, SUB, then
MSG and HMSG. The server's nonce is printed as `nonce ...`, and its signature by an nkey is read from stdin. After that
each message is a line of JSON: its subject, its headers, and its body, which must be JSON itself.

Arguments: address, port, the authority's certificate, the nkey's public part, the subject.
"""

import json
import socket
import ssl
import sys

HEADERS_BEGIN = "NATS/1.0"


def headers(block):
    lines = block.decode().split("\r\n")
    assert lines[0].startswith(HEADERS_BEGIN), lines
    return dict(line.split(": ", 1) if ": " in line else line.split(":", 1) for line in lines[1:] if line)


def main():
    address, port, authority, public_key, subject = sys.argv[1:]
    plain = socket.create_connection((address, int(port)), timeout=20)
    greeting = b""
    while not greeting.endswith(b"\r\n"):
        greeting += plain.recv(1)
    info = json.loads(greeting.split(b" ", 1)[1])
    secure = ssl.create_default_context(cafile=authority).wrap_socket(plain, server_hostname=address)
    print("nonce", info["nonce"], flush=True)
    options = {
        "verbose": False, "pedantic": True, "tls_required": True, "lang": "python", "version": "1", "protocol": 1,
        "headers": True, "nkey": public_key, "sig": sys.stdin.readline().strip(),
    }
    secure.sendall(f"CONNECT {json.dumps(options)}\r\nSUB {subject} 1\r\nPING\r\n".encode())
    secure.settimeout(None)
    stream = secure.makefile("rb")
    while line := stream.readline():
        words = line.decode().split()
        if words[0] == "PING":
            secure.sendall(b"PONG\r\n")
        elif words[0] == "PONG":
            print("subscribed", flush=True)
        elif words[0] == "-ERR":
            sys.exit(line.decode())
        elif words[0] in ("MSG", "HMSG"):
            total = int(words[-1])
            head = int(words[-2]) if words[0] == "HMSG" else 0
            content = stream.read(total + 2)
            message = {"subject": words[1], "headers": headers(content[:head]) if head else {},
                       "body": json.loads(content[head:total])}
            print(json.dumps(message), flush=True)


main()
