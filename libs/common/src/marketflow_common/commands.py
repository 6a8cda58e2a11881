"""An operator's command and its signature: HMAC-SHA256 with a secret that the operator and the executor share.

Pure. Must never hold the secret longer than a call, nor put it into a text.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from .events import Command

__all__ = ["genuine", "signature", "signed"]


def signature(command: Command, secret: str) -> str:
    """Hex of the HMAC over all fields but the signature itself, as JSON with sorted names."""
    unsigned = msgspec.structs.replace(command, signature="")
    text = msgspec.json.encode(unsigned, order="sorted")
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def signed(command: Command, secret: str) -> Command:
    """The command with its signature; without a secret, as it is."""
    return msgspec.structs.replace(command, signature=signature(command, secret)) if secret else command


def genuine(command: Command, secret: str) -> bool:
    """Whether the command was signed with the secret, as it is here; never with an empty one."""
    return bool(secret) and hmac.compare_digest(signature(command, secret).encode(), command.signature.encode())
