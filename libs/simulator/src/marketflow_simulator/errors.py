"""Binance's documented errors: code, text and HTTP status."""

from typing import Final


class ApiError(Exception):
    """A request is refused as Binance refuses it."""

    def __init__(self, code: int, message: str, status: int = 400, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.retry_after = retry_after


_FOR_STATUS: Final = {
    429: (-1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE. "
          "Please use WebSocket Streams for live updates to avoid polling the API."),
    418: (-1003, "Way too much request weight used; IP banned. "
          "Please use WebSocket Streams for live updates to avoid bans."),
    500: (-1000, "An unknown error occurred while processing the request."),
    502: (-1001, "Internal error; unable to process your request. Please try again."),
    503: (-1008, "Server is currently overloaded with other requests. Please try again in a few minutes."),
    504: (-1007, "Timeout waiting for response from backend server. Send status unknown; "
          "execution status unknown."),
}  # fmt: skip


def for_status(status: int, code: int | None = None) -> tuple[int, str]:
    """The code and text that go with an HTTP status, for errors on demand."""
    usual, message = _FOR_STATUS.get(status, (-1000, "An unknown error occurred while processing the request."))
    return (usual, message) if code is None else (code, message)


def missing(name: str) -> ApiError:
    """A mandatory parameter is not there or cannot be read."""
    return ApiError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def illegal(name: str, legal: str) -> ApiError:
    """A parameter has characters that it must not have."""
    return ApiError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
