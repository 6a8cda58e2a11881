"""Exit status 0 if HTTP on this container answers 200: ``healthcheck.py 9102/healthz``.

Run every few seconds in every container, so it imports next to nothing.
"""

import socket
import sys

port, _, path = sys.argv[1].partition("/")
with socket.create_connection(("127.0.0.1", int(port)), 4) as connection:
    connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    answer = b""
    while part := connection.recv(65536):
        answer += part
if answer.split(b" ", 2)[1:2] != [b"200"]:
    sys.exit(answer.decode(errors="replace"))
