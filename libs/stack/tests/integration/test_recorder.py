"""The recorder as the notifier uses it: python-telegram-bot for Telegram, httpx for Discord."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from marketflow_stack.testing import Program, Programs, ask, eventually, free_port
from telegram import Bot
from telegram.error import BadRequest, NetworkError, RetryAfter
from telegram.ext import Application, CommandHandler, ContextTypes

TOKEN = "123456:local"


class Server(Program):
    """A recorder that writes to `file`."""

    file: Path

    def recorded(self) -> list[Any]:
        return list(ask(f"{self.url}/recorded"))

    def write(self, chat: int, text: str) -> None:
        ask(f"{self.url}/updates", {"chat_id": chat, "text": text}, "POST")

    def fault(self, **fault: Any) -> None:
        ask(f"{self.url}/faults", fault, "POST")


@pytest.fixture
def server(programs: Programs, tmp_path: Path) -> Server:
    port, file = free_port(), tmp_path / "recorded.jsonl"
    arguments = ["-m", "marketflow_stack.recorder", "--port", str(port), "--file", str(file)]
    server = programs.start(Server, "recorder", arguments, {}, port)
    server.file = file
    return server.wait_for("/health")


@pytest.fixture
async def bot(server: Server) -> AsyncIterator[Bot]:
    async with Bot(TOKEN, base_url=f"{server.url}/bot", base_file_url=f"{server.url}/file/bot") as bot:
        yield bot


async def test_a_bot_sends_a_message_and_reads_the_answer(server: Server, bot: Bot) -> None:
    assert (await bot.get_me()).id == 123456
    assert await bot.set_my_commands([("status", "where things stand")])
    assert [command.command for command in await bot.get_my_commands()] == ["status"]
    sent = await bot.send_message(chat_id=-42, text="ETHUSDT: BUY at 2345.10 \N{GRINNING FACE}", parse_mode="HTML")
    assert sent.text == "ETHUSDT: BUY at 2345.10 \N{GRINNING FACE}"
    assert sent.chat.id == -42
    (message,) = server.recorded()
    assert message["received_us"] > 1_700_000_000_000_000
    assert {k: v for k, v in message.items() if k != "received_us"} == {
        "channel": "telegram",
        "chat": "-42",
        "text": "ETHUSDT: BUY at 2345.10 \N{GRINNING FACE}",
        "message_id": sent.message_id,
        "parse_mode": "HTML",
    }


async def test_a_message_that_telegram_would_refuse_is_refused_and_not_recorded(server: Server, bot: Bot) -> None:
    with pytest.raises(BadRequest, match="too long"):
        await bot.send_message(chat_id=1, text="x" * 4097)
    with pytest.raises(BadRequest, match="empty"):
        await bot.send_message(chat_id=1, text=" ")
    assert server.recorded() == []


async def test_faults_count_down_and_a_lost_answer_leaves_the_message_recorded(
    server: Server, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTB_TIMEDELTA", "1")  # how the library's next version counts seconds
    server.fault(kind="retry_after", seconds=7, channel="telegram")
    server.fault(kind="error", status=502, count=2, channel="telegram")
    server.fault(kind="lost_answer")
    with pytest.raises(RetryAfter) as limited:
        await bot.send_message(1, "one")
    assert "7" in str(limited.value)
    for _ in range(2):
        with pytest.raises(NetworkError):
            await bot.send_message(1, "two")
    assert server.recorded() == []
    with pytest.raises(NetworkError):
        await bot.send_message(1, "three")
    await bot.send_message(1, "four")
    assert [message["text"] for message in server.recorded()] == ["three", "four"]


async def test_an_injected_command_reaches_the_handler_of_a_polling_bot_once(server: Server) -> None:
    heard: list[str] = []

    async def status(update: Any, _: ContextTypes.DEFAULT_TYPE) -> None:
        heard.append(update.message.text)
        await update.message.reply_text("all is well")

    application = Application.builder().token(TOKEN).base_url(f"{server.url}/bot").build()
    application.add_handler(CommandHandler("status", status))
    async with application:
        await application.start()
        assert application.updater is not None
        await application.updater.start_polling(poll_interval=0, timeout=5)
        server.write(7, "/status now")
        answered = await asyncio.to_thread(eventually, server.recorded, 20)
        await application.updater.stop()
        await application.stop()
    assert heard == ["/status now"]
    assert [(message["chat"], message["text"]) for message in answered] == [("7", "all is well")]


def test_updates_stay_until_they_are_confirmed_and_a_long_poll_waits_for_one(server: Server) -> None:
    poll = f"{server.url}/bot{TOKEN}/getUpdates"
    assert httpx.get(poll).json() == {"ok": True, "result": []}
    first = httpx.post(f"{server.url}/updates", json={"chat_id": 7, "text": "hello"}).json()["update_id"]
    for _ in range(2):
        assert [u["update_id"] for u in httpx.get(poll, params={"timeout": 5}).json()["result"]] == [first]
    assert httpx.get(poll, params={"offset": first + 1}).json()["result"] == []
    second = httpx.post(f"{server.url}/updates", json={"chat_id": 7, "text": "more"}).json()["update_id"]
    assert second == first + 1
    assert httpx.post(f"{server.url}/updates", json={"text": "no chat"}).status_code == 400


def test_a_webhook_answers_204_or_the_message_when_asked_to_wait(server: Server) -> None:
    hook = f"{server.url}/api/webhooks/99/secret"
    assert httpx.post(hook, json={"content": "one"}).status_code == 204
    answer = httpx.post(hook, params={"wait": "true"}, json={"content": "two"})
    assert answer.status_code == 200
    assert answer.json()["content"] == "two"
    assert httpx.post(hook, json={"content": "x" * 2001}).json()["code"] == 50035
    assert httpx.post(hook, json={}).json()["code"] == 50006
    assert [(m["channel"], m["chat"], m["text"]) for m in server.recorded()] == [
        ("discord", "99", "one"),
        ("discord", "99", "two"),
    ]


def test_a_rate_limit_of_discord_names_its_seconds_and_spares_telegram(server: Server) -> None:
    server.fault(kind="retry_after", seconds=0.5, channel="discord")
    sent = httpx.post(f"{server.url}/bot{TOKEN}/sendMessage", data={"chat_id": "1", "text": "goes through"})
    assert sent.json()["ok"]
    limited = httpx.post(f"{server.url}/api/webhooks/99/secret", json={"content": "x"})
    assert (limited.status_code, limited.json()["retry_after"]) == (429, 0.5)


@pytest.mark.parametrize("path", ["/bot/sendMessage", "/bot1:x/noSuchMethod", "/api/webhooks/1", "/elsewhere"])
def test_a_wrong_path_is_404(server: Server, path: str) -> None:
    assert httpx.post(f"{server.url}{path}", json={}).status_code == 404


@pytest.mark.parametrize(
    "fault", [{"kind": "thunder"}, {"kind": "error", "status": 200}, {"kind": "error", "channel": "fax"}]
)
def test_an_unknown_fault_is_refused(server: Server, fault: dict[str, Any]) -> None:
    assert httpx.post(f"{server.url}/faults", json=fault).status_code == 400


@pytest.mark.parametrize("crash", [False, True], ids=["SIGTERM", "SIGKILL"])
def test_the_recording_survives_a_restart_and_a_half_written_line_is_cut_off(server: Server, crash: bool) -> None:
    hook = f"{server.url}/api/webhooks/99/secret"
    assert httpx.post(hook, json={"content": "before"}).status_code == 204
    if crash:
        server.kill()
        with server.file.open("ab") as file:
            file.write(b'{"channel": "telegram", "cha')
    else:
        assert server.stop(10) == 0
    server.launch().wait_for("/health")
    assert httpx.post(hook, json={"content": "after"}).status_code == 204
    assert [(m["message_id"], m["text"]) for m in server.recorded()] == [(1, "before"), (2, "after")]
    assert [json.loads(line) for line in server.file.read_text().splitlines()] == server.recorded()


def test_a_taken_port_a_taken_file_and_a_foreign_file_are_one_line_each(server: Server, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("not JSON\n")
    for port, file, message in (
        (server.port, tmp_path / "other.jsonl", f"port {server.port} is taken by python"),
        (free_port(), server.file, f"another recorder writes to {server.file}"),
        (free_port(), foreign, f"{foreign} is not a recording"),
    ):
        command = [sys.executable, "-m", "marketflow_stack.recorder", "--port", str(port), "--file", str(file)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert result.returncode == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
