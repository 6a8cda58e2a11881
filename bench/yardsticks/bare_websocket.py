"""Yardstick: a bare websockets client that decodes each message's JSON and does nothing else.

python bare_websocket.py URL TRADES: prints "ready" once connected, then one line of JSON: trades, processor seconds
(user and system) from the first message to the last, wall seconds. Same library and settings as the ingestor's socket.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import msgspec
from websockets.asyncio.client import connect


async def main(url: str, trades: int) -> None:
    decode = msgspec.json.Decoder().decode
    async with connect(url, compression=None, max_queue=1_024, close_timeout=1, ping_interval=None) as socket:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        message = decode(await socket.recv(decode=False))
        cpu, wall, seen = time.process_time(), time.monotonic(), 0
        while True:
            seen += message["data"]["e"] == "trade"
            if seen >= trades:
                break
            message = decode(await socket.recv(decode=False))
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        sys.stdout.write(json.dumps({"trades": seen, "cpu": cpu, "wall": wall}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
