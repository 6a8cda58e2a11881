"""Whatever is wrong with the compiler, the aggregator can be installed, without the C module."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

PART = Path(__file__).parents[2]
SOURCE = Path("src", "marketflow_aggregator", "_skim.c")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The aggregator's folder with no more than what is built, and what an earlier build has left."""
    (tmp_path / SOURCE).parent.mkdir(parents=True)
    shutil.copy(PART / SOURCE, tmp_path / SOURCE)
    left(tmp_path).write_text("of another machine")
    return tmp_path


def left(part: Path) -> Path:
    return (part / SOURCE).with_name("_skim.abi3.so")


def build(part: Path) -> dict[str, Any]:
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("hatch_build", PART / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data: dict[str, Any] = {"artifacts": [], "pure_python": True, "infer_tag": False}
    module.SkimHook(str(part), {}, None, None, str(part), "wheel").initialize("standard", data)
    return data


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false", "/", "env no-such-compiler"])
def test_a_compiler_that_is_not_there_or_fails_leaves_all_to_python(
    part: Path, compiler: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert build(part) == {"artifacts": [], "pure_python": True, "infer_tag": False}
    assert not left(part).exists()
    assert "was not built, so the aggregator will do all in Python" in "".join(capfd.readouterr())


def test_without_any_compiler_all_is_left_to_python(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(part))
    assert build(part)["artifacts"] == []
    assert not left(part).exists()


def test_where_the_source_may_only_be_read_all_is_left_to_python(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    assert build(part)["artifacts"] == []
