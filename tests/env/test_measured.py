from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lhopt.cli.main import main
from lhopt.env import frontier, measured
from lhopt.env.config import EnvConfig
from lhopt.env.frontier import POOL_FRONTIER, Frontier, cache_folder, cache_key, get_frontier
from lhopt.inner_tasks.registry import get_task
from lhopt.policy import experts
from lhopt.policy.experts import expert_name, find_expert
from lhopt.policy.imitation import ImitationConfig
from lhopt.policy.pools import comparison_specs, measured_names
from lhopt.policy.train_config import TrainConfig


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LHOPT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "measured.json.gz"
    monkeypatch.setattr(measured, "ARCHIVE", path)
    return path


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("what ships was measured again")


def test_what_is_packed_is_read_instead_of_measured(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, config = get_task("friedman-mlp"), EnvConfig(optimizer="lhopt.SteerableAdamW")
    known = Frontier("friedman-mlp", 70, (0.5, 1.0, 2.0), (3.0, 2.0, 1.0), (0.1,) * 3, 0.0, 9.0)
    names = [f"{cache_key(task, 70, POOL_FRONTIER)}.json",
             expert_name(task, 70, config, ImitationConfig())]  # fmt: skip
    cache_folder().mkdir(parents=True)
    (cache_folder() / names[0]).write_text(json.dumps(known.to_json()))
    (cache_folder() / names[1]).write_text("[0.5, null, 0.25, 0.1, 0.2, 0.7]")
    assert measured.pack(cache_folder(), [*names, "none.json"], archive) == 2
    for name in names:
        (cache_folder() / name).unlink()
    monkeypatch.setattr(frontier, "measure_frontier", refuse)
    monkeypatch.setattr(experts, "held_losses", refuse)
    assert get_frontier(task, 70, POOL_FRONTIER) == known
    expert = find_expert(task, 70, config, ImitationConfig())
    np.testing.assert_array_equal(expert, [0.5, np.nan, 0.25, 0.1, 0.2, 0.7])
    # what is in the archive stays there when the cache has lost it; the same gives the same bytes
    before = archive.read_bytes()
    assert measured.pack(cache_folder(), names, archive) == 2
    assert archive.read_bytes() == before
    with pytest.raises(AssertionError, match="measured again"):
        get_frontier(task, 80, POOL_FRONTIER)


def test_nothing_is_shipped_that_no_default_training_reads() -> None:
    config = TrainConfig()
    tasks = len(config.families) * config.tasks_per_family
    tasks += len(config.valid_families) * config.valid_per_family
    tasks += len(comparison_specs(config))
    experts = 2 * len(config.families) * ImitationConfig().tasks_per_family
    names = list(measured._archive(measured.ARCHIVE))
    assert len(names) == tasks + experts
    assert sum(name.startswith("expert-") for name in names) == experts


def test_the_command_is_about_the_defaults_and_refuses_all_else() -> None:
    assert main(["train", "--keep-measured", "--set", "tasks_per_family=2"]) == 2
    assert main(["train", "--keep-measured", "--env", "local-sgd"]) == 2


@pytest.mark.parametrize("optimizer", ["lhopt.SteerableAdamW", "torch.optim.AdamW"])
def test_a_training_with_the_defaults_finds_what_it_reads(optimizer: str) -> None:
    """On families of drawn tokens: another processor may round the data of others differently."""
    families, valid = ("topics-bag", "entities-mlp", "zipf-bilinear"), ("grammar-mlp",)
    config = TrainConfig(optimizer=optimizer, families=families, valid_families=valid)
    missing = [name for name in measured_names(config) if measured.shipped(name) is None]
    assert not missing, (
        f"{len(missing)} measurements are not in {measured.ARCHIVE.name}: a task, the protocol or "
        f"an optimizer has changed. lhopt train FOLDER --optimizer {optimizer} measures them, "
        "lhopt train FOLDER --keep-measured keeps them."
    )
