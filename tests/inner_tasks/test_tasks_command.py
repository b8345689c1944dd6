from __future__ import annotations

import argparse

import pytest

from lhopt.cli import tasks
from lhopt.cli.main import main
from lhopt.inner_tasks import FAMILIES


def _run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tasks.add_parser(parser.add_subparsers())
    args = parser.parse_args(["tasks", *words])
    result = args.func(args)
    assert isinstance(result, int)
    return result


def test_the_table_has_a_row_per_family_and_names_missing_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LHOPT_DATA", raising=False)
    assert _run("--no-timing") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(FAMILIES) + 1]] == list(FAMILIES)
    assert any("missing: mnist/mnist.npz" in line for line in lines)
    assert "2,410" in next(line for line in lines if line.startswith("digits-mlp"))
    assert lines[-1] == "Missing files are looked for under $LHOPT_DATA, which is not set."


def test_one_family_is_timed_under_its_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--family", "noisy-quadratic", "--steps", "3") == 0
    out = capsys.readouterr().out
    assert "power-law curvature" in out
    speed = out.splitlines()[-1].split()[5]
    assert int(speed.replace(",", "")) > 0


def test_an_unknown_family_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tasks", "--family", "digits-mlpp"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Nearest: digits-mlp" in said.err


def test_steps_below_one_are_refused() -> None:
    with pytest.raises(SystemExit):
        _run("--steps", "0")
