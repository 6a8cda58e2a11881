"""Yardstick: a signed market order over a warm connection, again and again, and nothing else.

python bare_post.py URL SYMBOL ORDERS. Same HTTP client and settings as the executor's. Prints one line of JSON: the
milliseconds from before each request to its whole answer.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import time
from urllib.parse import urlencode

import httpx


def main(url: str, symbol: str, orders: int) -> None:
    client = httpx.Client(base_url=url, timeout=10, limits=httpx.Limits(max_connections=1, keepalive_expiry=30.0))
    client.get("/api/v3/time").raise_for_status()
    took = []
    for number in range(orders):
        query = urlencode(
            {
                "symbol": symbol,
                "side": "SELL" if number % 2 else "BUY",
                "type": "MARKET",
                "quantity": "0.01",
                "newOrderRespType": "FULL",
                "recvWindow": 5000,
                "timestamp": time.time_ns() // 1_000_000,
            }
        )
        signature = hmac.new(b"simulator-secret", query.encode(), hashlib.sha256).hexdigest()
        begun = time.perf_counter()
        answer = client.post(f"/api/v3/order?{query}&signature={signature}", headers={"X-MBX-APIKEY": "simulator"})
        took.append((time.perf_counter() - begun) * 1_000)
        answer.raise_for_status()
        time.sleep(0.02)  # as the executor's orders, each on its own
    sys.stdout.write(json.dumps({"ms": took}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
