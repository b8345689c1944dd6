from __future__ import annotations

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lhopt.core.errors import ArtifactError, ConfigurationError, IncompatiblePolicyError
from lhopt.policy import artifact
from lhopt.policy.artifact import (
    MAX_WEIGHTS_BYTES,
    Policy,
    from_bytes,
    load,
    read_safetensors,
    save,
    write_safetensors,
)


def equal(a: Policy, b: Policy) -> None:
    assert a.digest == b.digest
    assert a.manifest() == b.manifest()
    for name, array in a.weights.items():
        np.testing.assert_array_equal(b.weights[name], array)


def test_a_saved_policy_is_loaded_by_either_path_or_its_name(
    policy: Policy, tmp_path: Path
) -> None:
    path = save(policy, tmp_path)
    for name in (path, tmp_path / "random.safetensors", tmp_path / "random", str(path)):
        equal(load(name), policy)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["random.json", "random.safetensors"]


@pytest.mark.parametrize("limit", ["MAX_WEIGHTS_BYTES", "MAX_MANIFEST_BYTES"])
def test_what_would_not_be_loaded_is_not_written(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    save(policy, tmp_path / "whole")
    monkeypatch.setattr(artifact, limit, 1000)
    with pytest.raises(ArtifactError, match="at most 1000 are read"):
        save(policy, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    with pytest.raises(ArtifactError):
        load(tmp_path / "whole" / "random")


def test_a_name_may_hold_a_dot(make: Callable[..., Policy], tmp_path: Path) -> None:
    for name in ("adamw-0.1", "adamw-0.2"):
        save(make(name=name), tmp_path)
    assert load(tmp_path / "adamw-0.2").name == "adamw-0.2"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\\b", "a\n", "x" * 101, "ö" * 51])
def test_a_name_that_makes_no_file_of_the_folder_is_refused(
    make: Callable[..., Policy], tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigurationError, match="The policy's name is"):
        save(make(name=name), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_policy_is_made_with_a_selection_that_exists_and_each_name_once(
    make: Callable[..., Policy], policy: Policy
) -> None:
    with pytest.raises(ConfigurationError, match="'average'; one of mode, mean, sample"):
        make(selection="average")
    first, second, *others = policy.features
    with pytest.raises(ConfigurationError, match="twice among its features"):
        make(features=(first, second, first, *others))
    with pytest.raises(ConfigurationError, match="learning_rate twice among its controls"):
        make(controls=(*policy.controls, policy.controls[0]))


def test_the_digest_names_everything(make: Callable[..., Policy]) -> None:
    digests = [
        make().digest, make(seed=1).digest, make(selection="mode").digest, make(name="x").digest,
        make(training={}).digest, make(optimizer="torch.optim.SGD").digest,
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert make().digest == digests[0]


def test_the_safetensors_library_opens_our_file_and_we_open_its(policy: Policy) -> None:
    theirs = safetensors.numpy.load(write_safetensors(policy.weights))
    assert set(theirs) == set(policy.weights)
    for name, array in policy.weights.items():
        np.testing.assert_array_equal(theirs[name], array)
    plain = {name: np.asarray(array) for name, array in policy.weights.items()}
    ours = read_safetensors(safetensors.numpy.save(plain, metadata={"by": "them"}))
    for name, array in policy.weights.items():
        np.testing.assert_array_equal(ours[name], array)


def forge(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def tensor(start: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _zip() -> bytes:
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("weights", b"0" * 100)
    return data.getvalue()


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "huge header": forge({}, length=2**62),
    "header over its limit": forge(b" " * (2**20 + 8)),
    "header past the end": forge({"a": tensor(0, 4)}, length=1000),
    "not json": forge(b"{nope"),
    "not utf-8": forge(b"\xff\xfe"),
    "a list": forge([1, 2]),
    "deep": forge(b"[" * 100_000),
    "a tensor that is no object": forge({"a": 3}),
    "a tensor that is a list": forge({"a": [0, 4]}),
    "gap": forge({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
    "overlap": forge({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "late start": forge({"a": tensor(4, 8)}, bytes(8)),
    "negative": forge({"a": tensor(-4, 4)}, bytes(8)),
    "past the end": forge({"a": tensor(0, 40)}, bytes(8)),
    "bytes left over": forge({"a": tensor(0, 4)}, bytes(8)),
    "other shape": forge({"a": tensor(0, 8, [3])}, bytes(8)),
    "negative shape": forge({"a": tensor(0, 8, [-1, -2])}, bytes(8)),
    "shape of nothing": forge({"a": tensor(0, 8, None) | {"shape": None}}, bytes(8)),
    "huge shape": forge({"a": tensor(0, 8, [2**62, 2**62])}, bytes(8)),
    "infinite offset": forge(
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}'
    ),
    "no offsets": forge({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "half": forge({"a": tensor(0, 4, [2], "F16")}, bytes(4)),
    "dtype of nothing": forge({"a": tensor(0, 4, [1], None)}, bytes(4)),
    "dtype list": forge({"a": tensor(0, 4, [1], ["F32"])}, bytes(4)),
    "pickle": pickle.dumps({"a": [1.0]}),
    "zip": _zip(),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_weights_that_are_no_sound_file_are_refused(policy: Policy, data: bytes) -> None:
    manifest = {**policy.manifest(), "digest": policy.digest}
    manifest["weights_sha256"] = hashlib.sha256(data).hexdigest()
    with pytest.raises(ArtifactError, match="safetensors file"):
        from_bytes(json.dumps(manifest).encode(), data, source="x.safetensors")


def test_every_cut_of_a_file_is_refused(policy: Policy, tmp_path: Path) -> None:
    path = save(policy, tmp_path).with_suffix(".safetensors")
    data = path.read_bytes()
    for n in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(ArtifactError):
            read_safetensors(data[:n])
        path.write_bytes(data[:n])
        with pytest.raises(ArtifactError, match="changed or cut"):
            load(path)


def test_oversized_files_are_not_even_read(policy: Policy, tmp_path: Path) -> None:
    path = save(policy, tmp_path)
    with path.with_suffix(".safetensors").open("ab") as file:
        file.truncate(MAX_WEIGHTS_BYTES + 1)
    with pytest.raises(ArtifactError, match="at most"):
        load(path)
    save(policy, tmp_path)
    with path.open("ab") as file:
        file.truncate(2**23)
    with pytest.raises(ArtifactError, match="at most"):
        load(path)


def test_a_missing_half_is_named(policy: Policy, tmp_path: Path) -> None:
    path = save(policy, tmp_path)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"random\.json is missing. A policy is two files"):
        load(path)


def test_nothing_is_ever_unpickled(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "owned",)

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, None)
    trap = pickle.dumps(Trap())
    path = save(policy, tmp_path)
    equal(load(path), policy)
    manifest = json.loads(path.read_text()) | {"weights_sha256": hashlib.sha256(trap).hexdigest()}
    for text in (json.dumps(manifest).encode(), trap):
        with pytest.raises(ArtifactError):
            from_bytes(text, trap)
    assert not (tmp_path / "owned").exists()


def reworked(policy: Policy, weights: dict[str, Any] | None = None, **changes: Any) -> Policy:
    """Loads a policy whose files were changed, and their digests too where they are checked."""
    data = write_safetensors(policy.weights if weights is None else weights)
    manifest = {**policy.manifest(), "weights_sha256": hashlib.sha256(data).hexdigest(), **changes}
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
    return from_bytes(json.dumps(manifest).encode(), data, source="x")


def test_reworking_nothing_loads(policy: Policy) -> None:
    equal(reworked(policy), policy)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(policy: Policy, bad: float) -> None:
    weights = {name: np.array(array) for name, array in policy.weights.items()}
    weights["lstm.bias"][3] = bad
    with pytest.raises(ArtifactError, match=r"'lstm\.bias' holds nan or inf"):
        reworked(policy, weights)


def test_a_float64_beyond_float32_reads_as_inf_which_no_policy_may_hold() -> None:
    body = np.full(2, 1e300).tobytes()
    assert np.isinf(read_safetensors(forge({"a": tensor(0, 16, [2], "F64")}, body))["a"]).all()


def test_changed_weights_and_a_changed_manifest_are_refused(policy: Policy, tmp_path: Path) -> None:
    path = save(policy, tmp_path)
    weights = path.with_suffix(".safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="changed or cut; fetch it again"):
        load(path)
    save(policy, tmp_path)
    for key, value in {"name": "y", "selection": "mode", "training": {"updates": 9}}.items():
        manifest = {**policy.manifest(), "digest": policy.digest, key: value}
        path.write_text(json.dumps(manifest))
        with pytest.raises(ArtifactError, match="changed after training"):
            load(path)


def _rows(policy: Policy, **changes: Any) -> list[Any]:
    first, *rest = policy.manifest()["controls"]
    return [{**first, **changes}, *rest]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (lambda p: {"features": [*p.features[:-1], "tomorrow"]}, "1 features that this version"),
        (lambda p: {"features": list(p.features[:-1])}, r"'lstm\.weight_ih' has the shape"),
        (lambda p: {"controls": _rows(p, name="momentum")}, "steers 'momentum'"),
        (lambda p: {"controls": _rows(p, max_delta=9.0)}, "max_delta 9.0, here 1.38"),
        (lambda p: {"controls": _rows(p, kind="logit_shift")}, r"learning_rate' \(logit_shift\)"),
        (lambda p: {"controls": _rows(p, choices=[0.5, 1.0])}, r"'head\.bias' has the shape"),
        (lambda p: {"controls": p.manifest()["controls"][:2]}, r"'head\.bias' has the shape"),
        (lambda p: {"format_version": 3}, "format version 3; this lhopt reads version 1 or 2"),
    ],
    ids=["feature", "fewer", "control", "bounds", "kind", "choices", "fewer controls", "version"],
)
def test_a_policy_made_for_other_things_is_incompatible(
    policy: Policy, changes: Callable[[Policy], dict[str, Any]], match: str
) -> None:
    with pytest.raises(IncompatiblePolicyError, match=match):
        reworked(policy, **changes(policy))


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "best"}, {"schedule": {"kind": "linear", "warmup": -1}},
        {"schedule": {"rise": 1}}, {"schedule": None}, {"controls": [{}]}, {"controls": 3},
        {"controls": [{"name": ["x"]}]}, {"training": 3}, {"features": None},
    ],
    ids=repr,
)  # fmt: skip
def test_a_manifest_out_of_range_is_refused(policy: Policy, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="incomplete or out of range"):
        reworked(policy, **changes)


def test_choices_out_of_range_are_refused(policy: Policy) -> None:
    for choices in ([0.5, 2.0], [1.0, -1.0], [1.0, float("nan")], "ab", None):
        with pytest.raises(ArtifactError):
            reworked(policy, controls=_rows(policy, choices=choices))


@pytest.mark.parametrize("text", [b"", b"\x80\x04", b"[]", b'{"format": "onnx"}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused(policy: Policy, text: bytes) -> None:
    with pytest.raises(ArtifactError, match="manifest of x is not"):
        from_bytes(text, write_safetensors(policy.weights), source="x")


def test_missing_and_extra_tensors_are_named(policy: Policy) -> None:
    with pytest.raises(ArtifactError, match=r"an LSTM policy has lstm\.weight_ih"):
        reworked(policy, {"a": np.zeros(2)})
    with pytest.raises(IncompatiblePolicyError, match=r"'extra'.*must be absent"):
        reworked(policy, {**policy.weights, "extra": np.zeros(2)})


def test_a_folder_where_a_file_should_be_is_refused(tmp_path: Path, policy: Policy) -> None:
    path = save(policy, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        load(path)
