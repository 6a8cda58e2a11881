"""Secrets come from a file or the environment, and errors show none."""

from __future__ import annotations

from pathlib import Path

import pytest
from marketflow_common.secrets import secret
from pydantic import SecretStr

GIVEN = SecretStr("from-the-environment")


def test_the_file_goes_before_the_environment_and_its_last_line_break_is_none_of_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-the-file\n")
    assert secret(GIVEN, str(file)).get_secret_value() == "from-the-file"
    assert secret(GIVEN, "") is GIVEN


@pytest.mark.parametrize("content", [None, b"", b" \n", b"hidden\xff"], ids=["absent", "empty", "blank", "no text"])
def test_a_file_without_a_secret_is_named_and_nothing_of_it_is_shown(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"the file .*/secret") as raised:
        secret(GIVEN, str(file))
    assert "hidden" not in str(raised.value)
    assert raised.value.__cause__ is None
