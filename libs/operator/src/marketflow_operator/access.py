"""What an operator's commands need to speak for an account: the executor's own variables, so that one file serves both.

Must never show a secret.
"""

from __future__ import annotations

from marketflow_common.secrets import from_file, secret
from marketflow_common.settings import InvalidSettings, prefix
from marketflow_common.signing import Sign, ed25519, hmac_sha256
from marketflow_stack.stack import API_KEY, API_SECRET
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

__all__ = ["Access"]


class Access(BaseSettings):
    """``MARKETFLOW_EXECUTOR_<FIELD>``, of which these are the ones that the operator reads, too."""

    model_config = prefix("EXECUTOR")

    account: str = "main"
    mode: str = "paper"
    rest_url: str = ""
    api_key: SecretStr = SecretStr("")
    api_key_file: str = ""
    api_secret: SecretStr = SecretStr("")
    api_secret_file: str = ""
    private_key_file: str = ""
    command_secret: SecretStr = Field(SecretStr(""))
    command_secret_file: str = ""

    def read(self, name: str) -> str:
        """A secret from its file or the environment. Raises InvalidSettings, naming the variable."""
        path = getattr(self, f"{name}_file")
        try:
            return secret(getattr(self, name, SecretStr("")), path).get_secret_value()
        except ValueError as error:
            raise InvalidSettings(f"MARKETFLOW_EXECUTOR_{name.upper()}_FILE: {error}") from None

    def signer(self, *, local: bool) -> tuple[str, Sign]:
        """The API key and what signs with it; ``local``: the simulator's own where none is set.

        Raises InvalidSettings, naming the variable that is missing or wrong.
        """
        key = self.read("api_key") or (API_KEY if local else "")
        if not key:
            raise InvalidSettings(
                "MARKETFLOW_EXECUTOR_API_KEY is not set; the exchange tells nobody else of an account"
            )
        if self.private_key_file:
            try:
                return key, ed25519(from_file(self.private_key_file))
            except ValueError as error:
                raise InvalidSettings(f"MARKETFLOW_EXECUTOR_PRIVATE_KEY_FILE: {error}") from None
        secret_ = self.read("api_secret") or (API_SECRET if local else "")
        if not secret_:
            raise InvalidSettings("MARKETFLOW_EXECUTOR_API_SECRET is not set, nor is _PRIVATE_KEY_FILE")
        return key, hmac_sha256(SecretStr(secret_))
