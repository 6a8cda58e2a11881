"""What an operator's commands need to speak for an account: the executor's own variables, so that one file serves both.

Must never show a secret.
"""

from __future__ import annotations

from marketflow_common.secrets import secret
from marketflow_common.settings import InvalidSettings, prefix
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
