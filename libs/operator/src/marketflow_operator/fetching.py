"""Where dumps come from: a folder that has them, or Binance's public files by HTTP; either way proved by checksum.

Must never hand out a file whose bytes are not the published ones, nor begin anew a download that can go on.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import httpx

from .audit.topics import CannotRead
from .dumps import BadDump, Dump

__all__ = ["BASE", "Folder", "NoDump", "Site", "Source"]

BASE: Final = "https://data.binance.vision"
TRIES: Final = 5
"""How often a download that breaks off is gone on with."""
PAUSE: Final = 1.0
"""Seconds before it is."""
Say = Callable[[str], None]
_CHECKSUM: Final = re.compile(r"([0-9a-fA-F]{64})\s+\*?(\S+)\s*", re.ASCII)


class NoDump(Exception):
    """There is no such file; the text says where it was looked for."""


class Source(Protocol):
    """Gives dumps as files."""

    def fetch(self, dump: Dump, say: Say) -> tuple[Path, str]:
        """The dump as a file, and what is to be said of it, if anything. Raises NoDump, BadDump, CannotRead."""

    def done(self, path: Path) -> None:
        """The file is needed no more."""


class Folder:
    """A folder of dumps; each is proved by the .CHECKSUM beside it, where there is one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def fetch(self, dump: Dump, say: Say) -> tuple[Path, str]:
        """See Source. A file without a .CHECKSUM is taken, and that is said."""
        path = self._folder / dump.name
        try:
            if not path.is_file():
                raise NoDump(f"{dump.name} is not in {self._folder}")
            proof = path.with_name(f"{path.name}.CHECKSUM")
            if not proof.is_file():
                return path, f"no {proof.name} beside it: its bytes are not proved"
            say(f"{dump.name}: checking")
            wanted, found = checksum(proof.read_text(errors="replace"), str(proof), dump.name), sha256(path)
        except OSError as error:
            raise CannotRead(f"cannot read {error.filename or path}: {error.strerror}") from None
        if found != wanted:
            raise BadDump(f"{path}: its SHA-256 is {found}, and its .CHECKSUM says {wanted}; fetch it again")
        return path, ""

    def done(self, path: Path) -> None:
        """It is the user's."""


class Site:
    """Binance's public files, or a mirror with the same paths. What is fetched lies in ``folder`` until it is done."""

    def __init__(self, base: str, folder: Path, pause: float = PAUSE) -> None:
        self._base, self._folder, self._pause = base.rstrip("/"), folder, pause
        # The environment's proxy is used for what lies outside of this machine only.
        local = httpx.URL(self._base).host in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(timeout=30, trust_env=not local, follow_redirects=True)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def fetch(self, dump: Dump, say: Say) -> tuple[Path, str]:
        """See Source. A download that broke off is gone on with, in a later run too."""
        url = f"{self._base}/{dump.path}"
        wanted = checksum(self._text(f"{url}.CHECKSUM"), f"{url}.CHECKSUM", dump.name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / dump.name
            part = path.with_name(f"{path.name}.part")
            if path.is_file() and sha256(path) == wanted:
                return path, ""
            for again in (False, True):
                self._download(url, part, lambda text: say(f"{dump.name}: {text}"))
                found = sha256(part)
                if found == wanted:
                    part.replace(path)
                    return path, ""
                part.unlink()  # what was there of an earlier run may have been of another version of the file
                if again:
                    break
        except OSError as error:
            raise CannotRead(f"cannot write {error.filename or self._folder}: {error.strerror}") from None
        raise BadDump(f"{url}: its SHA-256 is {found}, and its .CHECKSUM says {wanted}, twice; try again later")

    def done(self, path: Path) -> None:
        """Remove it."""
        path.unlink(missing_ok=True)

    def _text(self, url: str) -> str:
        try:
            answer = self._http.get(url)
            self._look(answer, url)
            return answer.text
        except httpx.HTTPError as error:
            raise self._away(url, error) from None

    def _download(self, url: str, part: Path, say: Say) -> None:
        for left in reversed(range(TRIES)):
            try:
                return self._go_on(url, part, say)
            except httpx.HTTPError as error:
                if not left:
                    there = part.stat().st_size if part.exists() else 0
                    away = self._away(url, error)
                    raise CannotRead(f"{away}; {there:,} bytes are here, run it again to go on from there") from None
                time.sleep(self._pause)

    def _go_on(self, url: str, part: Path, say: Say) -> None:
        there = part.stat().st_size if part.exists() else 0
        with self._http.stream("GET", url, headers={"Range": f"bytes={there}-"} if there else {}) as answer:
            if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # All of it is here; its checksum tells.
            self._look(answer, url)
            goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
            if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
                raise httpx.RemoteProtocolError(f"asked for bytes from {there}, got {answer.headers['Content-Range']}")
            have = there if goes_on else 0
            length = int(answer.headers.get("Content-Length", 0)) + have
            with part.open("ab" if goes_on else "wb") as out:
                for data in answer.iter_raw():  # as it comes: what is held back would be lost with the connection
                    out.write(data)
                    have += len(data)
                    say(f"{have / 1e6:,.1f} of {length / 1e6:,.1f} MB fetched")

    def _look(self, answer: httpx.Response, url: str) -> None:
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise NoDump(
                f"{url} does not exist: is the symbol right, and was it traded then? The dump of a day comes on the "
                "next one, that of a month with the next month"
            )
        answer.raise_for_status()

    def _away(self, url: str, error: httpx.HTTPError) -> CannotRead:
        return CannotRead(f"cannot fetch {url} ({str(error) or type(error).__name__})")


def checksum(text: str, where: str, name: str) -> str:
    """The SHA-256 that a .CHECKSUM says a file has. Raises BadDump."""
    found = _CHECKSUM.fullmatch(text)
    if found is None or found[2] != name:
        raise BadDump(f"{where}: it says {text.strip()[:100]!r}; expected a SHA-256 and {name}")
    return found[1].lower()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as lower-case hex digits."""
    with path.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
