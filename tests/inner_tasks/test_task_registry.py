from __future__ import annotations

import subprocess
import sys

import pytest

from lhopt.core.errors import ConfigurationError, MissingDataError, UnknownNameError
from lhopt.inner_tasks import FAMILIES, SPLITS, families, get_family, get_task

BUILT_IN = [name for name in FAMILIES if not get_family(name).data_files]


def test_every_family_is_registered_under_its_own_name() -> None:
    assert [family.name for family in families()] == list(FAMILIES)


def test_every_family_has_a_page_with_data_model_draws_and_source() -> None:
    for family in families():
        page = type(family).__doc__ or ""
        assert all(word in page for word in ("Data:", "drawn" if "Model, " in page else "Drawn:"))
        assert "Source:" in page


def test_available_only_leaves_out_families_whose_files_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LHOPT_DATA", raising=False)
    assert [family.name for family in families(available_only=True)] == BUILT_IN


def test_a_bare_name_is_the_default_task_and_a_number_is_its_seed() -> None:
    assert get_task("digits-mlp").name == "digits-mlp"
    drawn = get_task("digits-mlp/17")
    assert (drawn.name, drawn.family) == ("digits-mlp/17", "digits-mlp")
    assert repr(drawn) == repr(get_family("digits-mlp").sample(17))


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_task_is_found_again_by_its_name(name: str) -> None:
    assert get_task(get_family(name).sample(5).name).name == f"{name}/5"


def test_an_unknown_family_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="digits-mlp") as caught:
        get_task("digit-mlp/3")
    assert "digits-mlp" in caught.value.nearest


@pytest.mark.parametrize("name", ["digits-mlp/", "digits-mlp/-1", "digits-mlp/x", "digits-mlp/1/2"])
def test_a_seed_that_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="whole number"):
        get_task(name)


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 is none"):
        get_task(3)  # type: ignore[arg-type]


def test_missing_data_says_which_file_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    from lhopt.inner_tasks.tables import california

    california.cache_clear()
    monkeypatch.delenv("LHOPT_DATA", raising=False)
    with pytest.raises(MissingDataError) as caught:
        get_task("california-mlp")
    assert str(caught.value) == (
        "housing.npz is missing: put it at $LHOPT_DATA/california-housing/housing.npz; "
        "LHOPT_DATA is not set."
    )


def test_held_out_splits_are_small_in_every_family_that_needs_no_file() -> None:
    for name in BUILT_IN:
        task = get_task(name)
        rows = {split: len(task.arrays(split)[0]) for split in SPLITS}
        assert rows["train"] <= 60_000
        assert rows["inner_valid"] <= 256
        assert max(rows["outer_valid"], rows["test"]) <= 2048


def test_importing_the_registry_loads_no_data_library() -> None:
    code = "import sys, lhopt.inner_tasks; print('sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
