"""What the documents say that a training can begin from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lhopt.policy.train import check_start
from lhopt.policy.train_config import TrainConfig

ROOT = Path(__file__).parents[2]
#: The log is of what was, by the version of then.
HISTORY = "training-log.md"
STARTS = sorted(
    {
        (optimizer, start)
        for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"))
        if file.name != HISTORY
        for optimizer, start in re.findall(
            r"--optimizer (\S+)[^\n`]*? --from (docs/candidates/[\w./-]+)", file.read_text()
        )
    }
)


@pytest.mark.parametrize(("optimizer", "start"), STARTS)
def test_a_training_can_begin_from_what_the_documents_name(optimizer: str, start: str) -> None:
    check_start(TrainConfig(optimizer=optimizer, start=str(ROOT / start)))


def test_the_documents_name_some() -> None:
    assert STARTS
