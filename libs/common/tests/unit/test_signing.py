"""Signatures are those of Binance's documentation, and a wrong key is told without showing it."""

from __future__ import annotations

import base64
from urllib.parse import unquote_plus

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from marketflow_common.signing import ed25519, hmac_sha256
from pydantic import SecretStr


def test_hmac_is_that_of_the_documentations_example() -> None:
    # Binance, "SIGNED Endpoint Examples for POST /api/v3/order", example 1.
    secret = SecretStr("NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j")
    query = (
        "symbol=LTCBTC&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559"
    )
    assert hmac_sha256(secret)(query) == "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"


def test_ed25519_is_base64_as_a_query_holds_it_and_is_verified_by_the_public_key() -> None:
    key = Ed25519PrivateKey.generate()
    sign = ed25519(SecretStr(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()))
    for number in range(20):
        text = f"symbol=BTCUSDT&timestamp={number}"
        signature = sign(text)
        assert not set("+/=") & set(signature)
        key.public_key().verify(base64.b64decode(unquote_plus(signature)), text.encode())


def test_what_is_no_private_key_is_not_shown() -> None:
    with pytest.raises(ValueError, match="no unencrypted Ed25519 private key") as raised:
        ed25519(SecretStr("hidden"))
    assert "hidden" not in str(raised.value)
