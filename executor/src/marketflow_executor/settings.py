"""Settings of the executor: ``MARKETFLOW_EXECUTOR_<FIELD>``.

Checks sit on fields, never on the whole: an error on the whole would print all values, secrets included.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from marketflow_common.events import Convention
from marketflow_common.numbers import NotANumber, number
from marketflow_common.secrets import from_file, secret
from marketflow_common.settings import ServiceSettings, prefix
from marketflow_common.signing import Sign, ed25519, hmac_sha256
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from .decision import Limits
from .plans import Kind, OnShutdown, Protection, Terms
from .risk import RiskLimits
from .sizing import Mode, Sizing

__all__ = ["ExecutorSettings"]


class ExecutorSettings(ServiceSettings):
    """Every setting with its default. Paper trading unless asked for otherwise, twice for real money."""

    model_config = prefix("EXECUTOR")

    http_port: int = Field(9104, ge=0, le=65535, description="port of /metrics, /healthz and /readyz; 0: any free one")
    account: str = Field(
        "main", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="name of the account; one leader per account trades"
    )
    mode: Literal["paper", "testnet", "live"] = Field(
        "paper", description="paper: fills from ohlcv_raw; testnet: signed orders at REST_URL; live: real money"
    )
    live_confirmation: str = Field("", description="mode live starts only if this equals ACCOUNT")
    rest_url: str = Field(
        "",
        pattern=r"^(https?://[^\s?#]+)?$",
        description="the exchange's REST, https://host[:port]; paper: only for its public trading rules, may be empty",
    )
    ws_url: str = Field(
        "",
        pattern=r"^(wss?://[^\s?#]+)?$",
        description="the exchange's WebSocket API for the account's own events, such as wss://ws-api.binance.com; "
        "empty: orders are asked for by REST only",
    )
    api_key_file: str = Field("", description="file with API_KEY, taken before it")
    api_secret_file: str = Field("", description="file with API_SECRET, taken before it")
    private_key_file: str = Field(
        "", description="PEM file of the API key's Ed25519 private key; takes the place of API_SECRET"
    )
    api_key: SecretStr = Field(SecretStr(""), description="API key; needed in testnet and live")
    api_secret: SecretStr = Field(SecretStr(""), description="secret of the API key (HMAC)")
    send_last_trade_id: bool = Field(
        False,
        description="send the last trade that a signal has seen along with its order, as strategyId (the simulator's "
        "FILL=after_id needs it)",
    )
    command_secret_file: str = Field("", description="file with COMMAND_SECRET, taken before it")
    command_secret: SecretStr = Field(
        SecretStr(""),
        description="what commands are signed with (marketflow command); resume and flatten need it in mode live",
    )
    sizing: Mode = Field(
        "quote",
        description="what sizes an order: quote (ORDER_QUOTE), equity_share (EQUITY_SHARE_PCT), risk (RISK_PCT of "
        "equity lost at the stop)",
    )
    order_quote: Decimal = Field(Decimal(200), gt=0, description="size of an order in quote")
    equity_share_pct: Decimal = Field(
        Decimal(2), gt=0, le=100, description="size of an order in percent of equity, quote balance and positions"
    )
    risk_pct: Decimal = Field(
        Decimal("0.5"), gt=0, le=100, description="percent of equity that a trade loses if it is given up at its stop"
    )
    stop_distance_pct: Decimal = Field(
        Decimal(2), gt=0, lt=100, description="how far below its close, in percent, a BUY is given up"
    )
    stop_level: str = Field(
        "", description="name of the signal's level that is the stop instead (band: previous_low); empty: the distance"
    )
    order_type: Kind = Field(
        "market",
        description="how a signal's order is made: market; limit (rests, GTC); limit_ioc, limit_fok (at once or not at "
        "all); limit_maker (rests, or is refused)",
    )
    limit_offset_pct: Decimal = Field(
        Decimal(0),
        gt=-100,
        lt=100,
        description="how far a limit is from the signal's close, in percent; above 0: better for the account (a BUY "
        "below the close, a SELL above it), below 0: worse",
    )
    limit_s: int = Field(
        0, ge=0, description="seconds, by the exchange's clock, after which an order that rests is cancelled; 0: never"
    )
    chase_pct: Decimal = Field(
        Decimal(0),
        ge=0,
        lt=100,
        description="an order that rests follows the best price of its side, at most this much worse than the signal's "
        "close, in percent; 0: it stays",
    )
    protect: Protection = Field(
        "none",
        description="what is kept at the exchange for a position: none; stop (STOP_DISTANCE_PCT or STOP_LEVEL); oco "
        "(that and TARGET_PCT)",
    )
    on_shutdown: OnShutdown = Field(
        "keep",
        description="what a leader that is stopped does with its orders at the exchange: keep; cancel_resting (stops "
        "and targets stay); cancel_all",
    )
    stop_slip_pct: Decimal = Field(
        Decimal(1), ge=0, lt=100, description="how far below its trigger a stop still sells, in percent"
    )
    target_pct: Decimal = Field(
        Decimal(4), gt=0, description="how far above the signal's close the profit is taken, in percent"
    )
    max_position_quote: Decimal = Field(Decimal(1000), gt=0, description="most that one symbol may have cost, in quote")
    max_exposure_quote: Decimal = Field(
        Decimal(5000), gt=0, description="most that all symbols together may have cost, in quote"
    )
    lots: Convention = Field(
        "average", description="which cost leaves with a sale: average, or fifo; for the whole life of an account"
    )
    max_signal_age_s: int = Field(
        120, ge=0, description="signals older than this by the exchange's clock are skipped; 0: none (for replays)"
    )
    max_daily_loss_quote: Decimal = Field(
        Decimal(0),
        ge=0,
        description="loss since 00:00 UTC, realized and unrealized, in quote, that ends new risk for the day; 0: none",
    )
    on_daily_loss: Literal["REDUCE_ONLY", "HALTED"] = Field(
        "REDUCE_ONLY", description="trading state after that, until the next day or a resume"
    )
    max_drawdown_pct: Decimal = Field(
        Decimal(0), ge=0, le=100, description="fall of equity from its peak, in percent, that ends trading; 0: none"
    )
    on_drawdown: Literal["REDUCE_ONLY", "HALTED"] = Field(
        "HALTED", description="trading state after that, until a resume"
    )
    cool_down_s: int = Field(
        0, ge=0, description="seconds without a BUY of a symbol after it was sold with a loss or by a stop; 0: none"
    )
    max_orders_per_minute: int = Field(
        0, ge=0, le=1000, description="orders in any minute by the exchange's clock; 0: no limit"
    )
    max_price_deviation_pct: Decimal = Field(
        Decimal(0), ge=0, description="how far, in percent, a signal's close may be from the last known price; 0: any"
    )
    price_fresh_s: int = Field(300, ge=1, description="age up to which a last known price is compared with")
    max_attempts: int = Field(
        3, ge=1, le=9, description="orders per signal, each after the former provably got nowhere"
    )
    recv_window_ms: int = Field(
        5_000, ge=500, le=60_000, description="the exchange refuses an order this long after its timestamp"
    )
    not_found_margin_ms: int = Field(
        1_000, ge=0, description="how long after that an order may still come to light at the exchange"
    )
    rest_timeout_s: float = Field(3.0, gt=0, description="patience with one request; below RECV_WINDOW_MS")
    reconcile_s: int = Field(60, ge=1, description="seconds between comparisons of the books with the exchange")
    paper_balances: Annotated[dict[str, Decimal], NoDecode] = Field(
        {"USDT": Decimal(10_000)}, description="what a paper account opens with: USDT:10000,BTC:0.5"
    )
    paper_fee_rate: Decimal = Field(
        Decimal("0.001"), ge=0, lt=1, description="commission of paper fills, a share of what is received"
    )

    @field_validator("live_confirmation")
    @classmethod
    def _asked_for_twice(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("mode") == "live" and value != info.data.get("account"):
            raise ValueError(
                "mode live trades with real money; to confirm, set this to the account's name, "
                f"{info.data.get('account')!r}"
            )
        return value

    @field_validator("order_type", "protect")
    @classmethod
    def _not_on_paper(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("mode") == "paper" and value not in ("market", "none"):
            raise ValueError("mode paper has market orders without protection only; the simulator has the rest")
        return value

    @field_validator("protect")
    @classmethod
    def _ends(cls, value: str, info: ValidationInfo) -> str:
        rests = info.data.get("order_type") in ("limit", "limit_maker")
        if value != "none" and rests and not info.data.get("limit_s"):
            raise ValueError("what an order has bought is protected once it has ended: set LIMIT_S, so that it does")
        return value

    @field_validator("rest_url")
    @classmethod
    def _somewhere_to_trade(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("mode") in ("testnet", "live"):
            raise ValueError(f"mode {info.data['mode']} needs the exchange's address, such as http://127.0.0.1:9080")
        return value.rstrip("/")

    @field_validator("private_key_file")
    @classmethod
    def _private_key(cls, value: str) -> str:
        if value:
            ed25519(from_file(value))
        return value

    @field_validator("command_secret_file", "api_key_file", "api_secret_file")
    @classmethod
    def _readable(cls, value: str) -> str:
        if value:
            from_file(value)
        return value

    @field_validator("api_key", "api_secret")
    @classmethod
    def _signed(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        files = [f"{info.field_name}_file", *(["private_key_file"] if info.field_name == "api_secret" else [])]
        text = value.get_secret_value()
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ValueError("holds a character that no key of the exchange has (a space, a line's end, an accent)")
        # One that is named and wrong has failed already, and is not in the data.
        elsewhere = any(info.data.get(name, "wrong") for name in files)
        if not value.get_secret_value() and not elsewhere and info.data.get("mode") in ("testnet", "live"):
            raise ValueError(f"mode {info.data['mode']} signs its requests and needs this")
        return value

    @field_validator("rest_timeout_s")
    @classmethod
    def _inside_the_window(cls, value: float, info: ValidationInfo) -> float:
        window = info.data.get("recv_window_ms", 60_000) / 1_000
        if value >= window:
            raise ValueError(f"must be below RECV_WINDOW_MS ({window:g} s)")
        return value

    @field_validator("paper_balances", mode="before")
    @classmethod
    def _split_balances(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        balances = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            asset, _, amount = part.partition(":")
            try:
                balances[asset] = number(amount)
            except NotANumber as error:
                raise ValueError(f"{part!r} is not ASSET:AMOUNT, such as USDT:10000") from error
        return balances

    def key(self) -> tuple[SecretStr, Sign]:
        """The API key and what signs with it. Raises ValueError if a file has become unreadable."""
        key = secret(self.api_key, self.api_key_file)
        if self.private_key_file:
            return key, ed25519(from_file(self.private_key_file))
        return key, hmac_sha256(secret(self.api_secret, self.api_secret_file))

    def limits(self) -> Limits:
        """What the decision needs of the settings."""
        return Limits(
            account=self.account,
            mode=self.mode,
            order_quote=self.order_quote,
            max_position_quote=self.max_position_quote,
            max_exposure_quote=self.max_exposure_quote,
            max_signal_age_ms=self.max_signal_age_s * 1_000,
            max_attempts=self.max_attempts,
            recv_window_ms=self.recv_window_ms,
            convention=self.lots,
            risk=RiskLimits(
                max_daily_loss=self.max_daily_loss_quote,
                max_drawdown_pct=self.max_drawdown_pct,
                on_daily_loss=self.on_daily_loss,
                on_drawdown=self.on_drawdown,
                cool_down_ms=self.cool_down_s * 1_000,
                max_orders_per_minute=self.max_orders_per_minute,
                max_price_deviation_pct=self.max_price_deviation_pct,
                price_fresh_ms=self.price_fresh_s * 1_000,
            ),
            sizing=Sizing(
                mode=self.sizing,
                equity_share_pct=self.equity_share_pct,
                risk_pct=self.risk_pct,
                stop_distance_pct=self.stop_distance_pct,
                stop_level=self.stop_level,
            ),
            terms=Terms(
                kind=self.order_type,
                offset_pct=self.limit_offset_pct,
                limit_ms=self.limit_s * 1_000,
                chase_pct=self.chase_pct,
                protection=self.protect,
                on_shutdown=self.on_shutdown,
                stop_slip_pct=self.stop_slip_pct,
                target_pct=self.target_pct,
            ),
        )
