"""Who may come in: API keys with an HMAC secret or an Ed25519 public key, signatures and their time window.

Keys are those of the simulator's one account, published constants or a test's own; nobody's secret.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from marketflow_simulator.errors import ApiError, missing
from marketflow_simulator.gate import Call, Handler
from marketflow_simulator.params import Params

_MICROSECONDS_FROM: Final = 100_000_000_000_000


class PublicKeyError(ValueError):
    """A public key cannot be read; the message says why."""


def unsigned(text: str) -> str:
    """Parameters as they were sent, but for the signature itself."""
    return "&".join(part for part in text.split("&") if not part.startswith("signature="))


def signature(secret: bytes, query: str, body: str) -> str:
    """HMAC-SHA256 over query string and form body, one after the other, as sent but for the signature itself."""
    return hmac.new(secret, (unsigned(query) + unsigned(body)).encode(), hashlib.sha256).hexdigest()


def read_public_key(text: str) -> Ed25519PublicKey:
    """An Ed25519 public key from its PEM or from the file that holds it; PublicKeyError if it is none."""
    pem = text.encode().replace(b"\\n", b"\n")
    if b"-----BEGIN" not in pem:
        try:
            pem = Path(text).read_bytes()
        except OSError as error:
            raise PublicKeyError(f"cannot read the public key {text}: {error.strerror}") from error
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise PublicKeyError("the public key is no PEM") from error
    if not isinstance(key, Ed25519PublicKey):
        raise PublicKeyError(f"the public key is a {type(key).__name__}, it has to be an Ed25519 key")
    return key


class Security:
    """Checks signed requests against the keys of the one account."""

    def __init__(self, now_ms: Callable[[], int], api_key: str, secret: str) -> None:
        self._now_ms = now_ms
        self._secrets: dict[str, bytes] = {api_key: secret.encode()}
        self._public: dict[str, Ed25519PublicKey] = {}

    def trust(self, api_key: str, public: Ed25519PublicKey) -> None:
        """Let in who signs with this key pair."""
        self._public[api_key] = public

    def signed(self, handler: Handler) -> Handler:
        """The handler behind the check of a REST request."""

        async def check(call: Call) -> Any:
            key = self._known(call.key)
            given = call.params.required("signature")
            self._check(key, unsigned(call.query) + unsigned(call.body), given)
            self.check_time(call.params)
            return await handler(call)

        return check

    def check_message(self, params: Params) -> str:
        """Check a request of the WebSocket API, which names its key itself, and give that key."""
        key = self._known(params.text("apiKey"))
        given = params.required("signature")
        names = sorted(params.names() - {"signature"})
        self._check(key, "&".join(f"{name}={params.text(name)}" for name in names), given)
        self.check_time(params)
        return key

    def is_ed25519(self, api_key: str) -> bool:
        return api_key in self._public

    def _known(self, key: str | None) -> str:
        if not key:
            raise ApiError(-2014, "API-key format invalid.", 401)
        if key not in self._secrets and key not in self._public:
            raise ApiError(-2015, "Invalid API-key, IP, or permissions for action.", 401)
        return key

    def _check(self, key: str, payload: str, given: str) -> None:
        wrong = ApiError(-1022, "Signature for this request is not valid.")
        public = self._public.get(key)
        if public is None:
            expected = hmac.new(self._secrets[key], payload.encode(), hashlib.sha256).hexdigest()
            if not hmac.compare_digest(given.lower().encode(), expected.encode()):
                raise wrong
            return
        try:
            # a plus sign that was not percent-encoded has become a space
            public.verify(base64.b64decode(given.replace(" ", "+"), validate=True), payload.encode())
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise wrong from error

    def check_time(self, params: Params) -> None:
        """ApiError if the request comes too late or from the future."""
        stamp = params.integer("timestamp")
        if stamp is None:
            raise missing("timestamp")
        sent_ms = stamp / 1000 if stamp >= _MICROSECONDS_FROM else stamp
        window = params.decimal("recvWindow")
        if window is not None and window > 60_000:
            raise ApiError(-1131, "recvWindow must be less than 60000.")
        now_ms = self._now_ms()
        if sent_ms >= now_ms + 1000:
            raise ApiError(-1021, "Timestamp for this request was 1000ms ahead of the server's time.")
        if now_ms - sent_ms > (5000 if window is None else window):
            raise ApiError(-1021, "Timestamp for this request is outside of the recvWindow.")
