"""Which options a word of `lhopt bench` takes, and what the command line cannot write."""

from __future__ import annotations

from pathlib import Path

import pytest

from lhopt.cli.bench import DEFAULTS, OPTIONS
from lhopt.cli.main import build_parser, main

GIVEN = {
    "tier": ["smoke"], "tasks": ["digits-mlp"], "policy": ["x.json"], "quick": [],
    "processes": ["1"], "output": ["elsewhere"], "fresh": [], "device": ["cuda"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("word", "option"),
    [(word, option) for word in OPTIONS for option in GIVEN if option not in OPTIONS[word]],
)
def test_an_option_that_a_word_would_not_read_is_refused(
    word: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", word, f"--{option}", *GIVEN[option]]) == 2
    said = capsys.readouterr().err
    assert f"--{option} belongs to " in said
    assert f"`lhopt bench {word}` takes " in said


def test_every_option_has_words_that_take_it() -> None:
    assert set(DEFAULTS) == set(GIVEN) == {option for own in OPTIONS.values() for option in own}
    args = build_parser().parse_args(["bench"])
    assert {name: getattr(args, name) for name in DEFAULTS} == DEFAULTS
    build_parser().parse_args(["bench", "--policy", "a", "--policy", "b"])
    assert DEFAULTS["policy"] == []  # nothing was appended to it


@pytest.mark.parametrize("words", [["bench"], ["bench", "parts"], ["bench", "local-sgd"], ["demo"]])
def test_an_output_that_is_a_file_is_refused_before_anything_is_run(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*words, "--output", str(tmp_path / "file")]) == 2
    assert "is there and is none. Name another" in capsys.readouterr().err
    assert main(["search", str(tmp_path / "file" / "deeper")]) == 2
    assert "is there and is none" in capsys.readouterr().err


def test_what_the_file_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["policies", "feedback", str(tmp_path / "file" / "x"), "steerable", "--none"]
    assert main(words) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "Not a directory" in said[0]
