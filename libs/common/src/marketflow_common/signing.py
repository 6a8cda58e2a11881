"""Signatures of Binance's requests: HMAC-SHA256 with a secret, or Ed25519 with a private key.

Must never put a key, or any part of it, into a text.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from urllib.parse import quote_plus

from pydantic import SecretStr

__all__ = ["Sign", "ed25519", "hmac_sha256"]

Sign = Callable[[str], str]
"""The signature of a query, ready to stand behind ``&signature=``."""


def hmac_sha256(secret: SecretStr) -> Sign:
    """Signs with the secret of an HMAC key."""

    def sign(text: str) -> str:
        return hmac.new(secret.get_secret_value().encode(), text.encode(), hashlib.sha256).hexdigest()

    return sign


def ed25519(pem: SecretStr) -> Sign:
    """Signs with an Ed25519 private key (PEM, PKCS#8, not encrypted). Raises ValueError if it is none."""
    # Only who signs so needs the library.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem.get_secret_value().encode(), None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("it is no unencrypted Ed25519 private key in PEM (openssl genpkey -algorithm ed25519)")

    def sign(text: str) -> str:
        return quote_plus(base64.b64encode(key.sign(text.encode())).decode())

    return sign
