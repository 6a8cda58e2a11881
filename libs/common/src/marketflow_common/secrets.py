"""Secrets from a file, as container platforms hand them out, or from the environment.

Must never put a secret, or any part of its file, into a text.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

__all__ = ["from_file", "secret"]


def from_file(path: str) -> SecretStr:
    """What a file holds, without white space around it. Raises ValueError, naming the file and the remedy."""
    try:
        text = Path(path).expanduser().read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"the file {path} is no text; name the file with the secret") from None
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read ({error.strerror}); name a file that can") from None
    if not text:
        raise ValueError(f"the file {path} is empty; write the secret into it")
    return SecretStr(text)


def secret(value: SecretStr, path: str) -> SecretStr:
    """The secret of the file if one is named, else the value as it is. Raises ValueError as ``from_file``."""
    return from_file(path) if path else value
