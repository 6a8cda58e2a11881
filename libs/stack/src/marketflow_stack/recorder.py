"""The stand-in for Telegram's Bot API and Discord's webhooks: it answers as they do and writes down what came.

A message is on the disk before it is answered, so the recording can be held against what should have been
sent. It must never forward anything. Run as `python -m marketflow_stack.recorder --port P --file F.jsonl`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from marketflow_stack.errors import StackError
from marketflow_stack.processes import port_is_free, who_holds

TELEGRAM_LIMIT = 4096  # characters, https://core.telegram.org/bots/api#sendmessage
DISCORD_LIMIT = 2000  # characters, https://discord.com/developers/docs/resources/webhook#execute-webhook
LONGEST_POLL = 50.0  # seconds that one getUpdates may wait
UPDATES_KEPT = 1000  # Telegram keeps updates for a day; nobody injects so many here

FAULTS = ("error", "retry_after", "lost_answer")
CHANNELS = ("telegram", "discord")


class Recording:
    """The file of messages, one JSON object per line; only one process at a time may have it open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StackError(f"another recorder writes to {path}", "stop it, or name another --file") from None
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            # A crash inside a write: that message was never answered, so its sender sends it again.
            self._file.truncate(whole)
        try:
            self.messages: list[dict[str, Any]] = [json.loads(line) for line in content[:whole].splitlines()]
        except ValueError as error:
            self._file.close()
            raise StackError(f"{path} is not a recording: {error}", "move it away or name another --file") from None
        self.next_id = 1 + max((message["message_id"] for message in self.messages), default=0)

    def append(self, channel: str, chat: str, text: str, **more: Any) -> dict[str, Any]:
        """Write one message to the disk, then return it as recorded."""
        message = {
            "channel": channel,
            "chat": chat,
            "text": text,
            "received_us": time.time_ns() // 1000,
            "message_id": self.next_id,
            **more,
        }
        self._file.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.next_id += 1
        self.messages.append(message)
        return message

    def close(self) -> None:
        self._file.close()


@dataclass
class Fault:
    """What happens to the next `count` deliveries (of one channel, or of both)."""

    kind: str
    count: int
    status: int
    seconds: float
    channel: str | None


class Recorder:
    """The HTTP side: both services' paths, and the recorder's own (/recorded, /updates, /faults, /health)."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.faults: list[Fault] = []
        self.updates: list[dict[str, Any]] = []
        self.commands: list[Any] = []
        # Ids go on growing over a restart, as a bot's stored offset expects.
        self._next_update = int(time.time())
        self._news = asyncio.Event()
        self._polls = 0
        self._closing = False

    def application(self) -> web.Application:
        app = web.Application(client_max_size=4 * 2**20)
        app.router.add_route("*", r"/bot{token:[^/]+}/{method}", self._telegram)
        app.router.add_post("/api/webhooks/{id}/{token}", self._discord)
        app.router.add_get("/api/webhooks/{id}/{token}", self._webhook)
        app.router.add_get("/recorded", self._recorded)
        app.router.add_post("/updates", self._inject)
        app.router.add_post("/faults", self._set_fault)
        app.router.add_get("/health", self._health)
        app.on_shutdown.append(self._end_polls)
        return app

    async def _end_polls(self, _: web.Application) -> None:
        self._closing = True
        self._news.set()

    # Telegram: https://core.telegram.org/bots/api#making-requests

    async def _telegram(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"].lower()
        arguments = await _arguments(request)
        if method == "sendmessage":
            return await self._send_message(request, arguments)
        if method == "getupdates":
            return await self._get_updates(arguments)
        if method == "getme":
            number = request.match_info["token"].partition(":")[0]
            me = {"id": int(number) if number.isdigit() else 1, "is_bot": True, "first_name": "MarketFlow"}
            abilities = {"can_join_groups": True, "can_read_all_group_messages": False}
            return _ok({**me, "username": "marketflow_bot", **abilities, "supports_inline_queries": False})
        if method == "setmycommands":
            self.commands = arguments.get("commands", [])
            return _ok(True)
        if method == "getmycommands":
            return _ok(self.commands)
        if method == "getwebhookinfo":
            return _ok({"url": "", "has_custom_certificate": False, "pending_update_count": len(self.updates)})
        if method in ("deletemycommands", "deletewebhook", "sendchataction", "logout", "close"):
            return _ok(True)
        return _refused(404, "Not Found: method not found")

    async def _send_message(self, request: web.Request, arguments: dict[str, Any]) -> web.StreamResponse:
        chat, text = str(arguments.get("chat_id", "")), str(arguments.get("text", ""))
        if not chat:
            return _refused(400, "Bad Request: chat_id is empty")
        if not text.strip():
            return _refused(400, "Bad Request: message text is empty")
        if len(text) > TELEGRAM_LIMIT:
            return _refused(400, "Bad Request: message is too long")
        fault = self._fault("telegram")
        if fault is not None and fault.kind == "retry_after":
            seconds = max(1, round(fault.seconds))
            text = f"Too Many Requests: retry after {seconds}"
            return _refused(429, text, parameters={"retry_after": seconds})
        if fault is not None and fault.kind == "error":
            return _refused(fault.status, "Internal Server Error" if fault.status >= 500 else "Bad Request: a fault")
        more = {"parse_mode": arguments["parse_mode"]} if arguments.get("parse_mode") else {}
        message = self.recording.append("telegram", chat, text, **more)
        if fault is not None:
            _hang_up(request)
        date = message["received_us"] // 1_000_000
        return _ok({"message_id": message["message_id"], "date": date, "chat": _chat(chat), "text": text})

    async def _get_updates(self, arguments: dict[str, Any]) -> web.StreamResponse:
        offset, limit = _integer(arguments, "offset", 0), _integer(arguments, "limit", 100)
        until = time.monotonic() + min(LONGEST_POLL, _integer(arguments, "timeout", 0))
        self._polls += 1
        mine = self._polls
        self._news.set()  # wakes an older poll, which ends with a conflict as Telegram's does
        if offset < 0:
            self.updates = self.updates[offset:]
        else:
            self.updates = [update for update in self.updates if update["update_id"] >= offset]
        while True:
            if mine != self._polls:
                return _refused(409, "Conflict: terminated by other getUpdates request")
            left = until - time.monotonic()
            if self.updates or left <= 0 or self._closing:
                return _ok(self.updates[:limit])
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                continue

    async def _inject(self, request: web.Request) -> web.StreamResponse:
        """What a person writes in a chat: {"chat_id", "text", and if wanted "user_id", "username"}."""
        wanted = await _arguments(request)
        try:
            chat, text = int(wanted["chat_id"]), str(wanted["text"])
            user = int(wanted.get("user_id", abs(chat)))
        except (KeyError, ValueError):
            return web.json_response({"error": "an update needs chat_id (a number) and text"}, status=400)
        name = str(wanted.get("username", "operator"))
        message: dict[str, Any] = {
            "message_id": self._next_update,
            "date": int(time.time()),
            "chat": _chat(str(chat)),
            "from": {"id": user, "is_bot": False, "first_name": name, "username": name},
            "text": text,
        }
        if text.startswith("/"):
            length = len(text.split(maxsplit=1)[0])
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
        update = {"update_id": self._next_update, "message": message}
        self._next_update += 1
        self.updates = [*self.updates, update][-UPDATES_KEPT:]
        self._news.set()
        return web.json_response({"update_id": update["update_id"]})

    # Discord: https://discord.com/developers/docs/resources/webhook#execute-webhook

    async def _discord(self, request: web.Request) -> web.StreamResponse:
        arguments = await _arguments(request)
        hook = request.match_info["id"]
        content = str(arguments.get("content") or "")
        embeds = arguments.get("embeds") or []
        if not content.strip() and not embeds:
            return web.json_response({"message": "Cannot send an empty message", "code": 50006}, status=400)
        if len(content) > DISCORD_LIMIT:
            wrong = {"content": {"_errors": [{"code": "BASE_TYPE_MAX_LENGTH", "message": "Must be 2000 or fewer"}]}}
            return web.json_response({"message": "Invalid Form Body", "code": 50035, "errors": wrong}, status=400)
        fault = self._fault("discord")
        if fault is not None and fault.kind == "retry_after":
            limited = {"message": "You are being rate limited.", "retry_after": fault.seconds, "global": False}
            header = {"Retry-After": str(max(1, round(fault.seconds)))}
            return web.json_response(limited, status=429, headers=header)
        if fault is not None and fault.kind == "error":
            return web.json_response({"message": f"{fault.status}: a fault", "code": 0}, status=fault.status)
        message = self.recording.append("discord", hook, content, **({"embeds": embeds} if embeds else {}))
        if fault is not None:
            _hang_up(request)
        if request.query.get("wait", "").lower() not in ("true", "1"):
            return web.Response(status=204)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(message["received_us"] / 1_000_000))
        answer = {"id": str(message["message_id"]), "type": 0, "content": content, "embeds": embeds}
        return web.json_response({**answer, "channel_id": hook, "webhook_id": hook, "timestamp": stamp})

    async def _webhook(self, request: web.Request) -> web.StreamResponse:
        hook, token = request.match_info["id"], request.match_info["token"]
        return web.json_response({"id": hook, "type": 1, "name": "MarketFlow", "channel_id": hook, "token": token})

    # The recorder's own

    async def _recorded(self, _: web.Request) -> web.StreamResponse:
        return web.json_response(self.recording.messages)

    async def _health(self, _: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok", "messages": len(self.recording.messages)})

    async def _set_fault(self, request: web.Request) -> web.StreamResponse:
        wanted = await _arguments(request)
        kind, channel = wanted.get("kind"), wanted.get("channel")
        if kind not in FAULTS or channel not in (None, *CHANNELS):
            said = f"kind is one of {', '.join(FAULTS)}; channel, if given, one of {', '.join(CHANNELS)}"
            return web.json_response({"error": said}, status=400)
        try:
            count, status = int(wanted.get("count", 1)), int(wanted.get("status", 500))
            seconds = float(wanted.get("seconds", 1))
        except (TypeError, ValueError):
            return web.json_response({"error": "count, status and seconds are numbers"}, status=400)
        if not 400 <= status <= 599:
            return web.json_response({"error": f"status is {status}, not an error (400 to 599)"}, status=400)
        self.faults.append(Fault(kind, count, status, seconds, channel))
        return web.json_response({"faults": len(self.faults)})

    def _fault(self, channel: str) -> Fault | None:
        """The oldest fault that is due for this channel, counted down."""
        for fault in self.faults:
            if fault.channel in (None, channel):
                fault.count -= 1
                if fault.count <= 0:
                    self.faults.remove(fault)
                return fault
        return None


async def _arguments(request: web.Request) -> dict[str, Any]:
    """From the query, a form or JSON, as both services take them; values that are JSON in a form are decoded."""
    found: dict[str, Any] = dict(request.query)
    if request.content_type == "application/json":
        try:
            body = await request.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise web.HTTPBadRequest(text='{"ok":false,"error_code":400,"description":"Bad Request: not JSON"}')
        found.update(body)
    elif request.can_read_body:
        found.update(await request.post())
    for key in ("commands", "embeds", "allowed_updates"):
        if isinstance(found.get(key), str):
            found[key] = json.loads(found[key])
    if isinstance(found.get("payload_json"), str):
        found.update(json.loads(found["payload_json"]))
    return found


def _integer(arguments: dict[str, Any], name: str, default: int) -> int:
    try:
        return int(arguments.get(name, default))
    except (TypeError, ValueError):
        return default


def _chat(chat: str) -> dict[str, Any]:
    if not chat.lstrip("-").isdigit():  # a public channel is named @like_this
        return {"id": -1, "type": "channel", "title": chat, "username": chat.lstrip("@")}
    number = int(chat)
    return {"id": number, "type": "private"} if number > 0 else {"id": number, "type": "group", "title": "chat"}


def _ok(result: Any) -> web.Response:
    return web.json_response({"ok": True, "result": result})


def _refused(status: int, description: str, **more: Any) -> web.Response:
    return web.json_response({"ok": False, "error_code": status, "description": description, **more}, status=status)


def _hang_up(request: web.Request) -> None:
    """The message has arrived and its sender never hears of it."""
    if request.transport is not None:
        request.transport.abort()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 after SIGTERM or SIGINT, 1 with one line on stderr if it could not start."""
    parser = argparse.ArgumentParser(
        prog="python -m marketflow_stack.recorder", description="Records what would go to Telegram and Discord."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--file", type=Path, required=True, help="recording, one JSON object per line")
    options = parser.parse_args(arguments)
    try:
        if not port_is_free(options.port, options.host):
            raise StackError(
                str(who_holds(options.port) or f"port {options.port} is taken"), "end it or name another --port"
            )
        recording = Recording(options.file)
    except StackError as error:
        print(f"recorder: {error}", file=sys.stderr)  # noqa: T201
        return 1

    async def application() -> web.Application:
        return Recorder(recording).application()

    try:
        web.run_app(
            application(), host=options.host, port=options.port, print=None, access_log=None, shutdown_timeout=1
        )
    finally:
        recording.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
