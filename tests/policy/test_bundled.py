"""What names a policy: a word that somebody serves, or where its files lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from lhopt.core.errors import ConfigurationError, UnknownNameError
from lhopt.policy.bundled import FOLDER, find, is_path, names


@pytest.mark.parametrize(
    ("policy", "path"),
    [
        ("adamw", False),
        ("mine-1.2", False),
        ("", False),
        ("adamw.json", True),
        ("adamw.safetensors", True),
        ("here/adamw", True),
        ("here/", True),
        (".", True),
        (Path("adamw"), True),
    ],
)
def test_a_path_is_told_from_a_name(policy: str | Path, path: bool) -> None:
    assert is_path(policy) is path


def test_a_policy_is_found_by_name_and_by_path() -> None:
    for name in names():
        digests = {find(way).digest for way in (name, FOLDER / name, str(FOLDER / f"{name}.json"))}
        assert len(digests) == 1


def test_a_folder_tells_what_it_holds() -> None:
    with pytest.raises(ConfigurationError, match=r"is a folder; name one of its.*adamw\.json"):
        find(FOLDER)


def test_an_unknown_name_tells_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Nearest|Known"):
        find("nobody")
