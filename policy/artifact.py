"""Policy files: weights as safetensors, everything else as a JSON manifest beside them.

Read and written with numpy and the standard library alone, because the client reads them too. The
format is the public one (8 bytes of header length, a JSON header, raw little-endian tensors), so
the safetensors library opens the same files. Nothing is ever unpickled.

A policy is named by its digest: the SHA-256 of its manifest, which holds that of its weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from ..core.controls import CONTROL_NAMES, CONTROLS, Control
from ..core.errors import ArtifactError, ConfigurationError, IncompatiblePolicyError, LhoptError
from ..core.features import FEATURES
from ..core.feedback import DECAY, Feedback
from ..core.schedules import Schedule
from ..core.types import FloatArray, IntArray

FORMAT = "lhopt-policy"
#: Of policies with feedback, which a version that knows none must not serve without it.
FORMAT_VERSION = 2
#: Of those without.
PLAIN_VERSION = 1
MAX_WEIGHTS_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 2**20
MAX_MANIFEST_BYTES = 4 * 2**20
#: Of a name, which both files are called by; some file systems take 255 for all of it.
MAX_NAME_BYTES = 100

Selection = Literal["mode", "mean", "sample"]

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


class Artifact(Protocol):
    """What can be saved: a name, weights, and a manifest whose digest names it."""

    @property
    def name(self) -> str:
        """A human's name for it; both files are called so."""

    @property
    def weights(self) -> Mapping[str, FloatArray]:
        """Float32 tensors by name."""

    @property
    def digest(self) -> str:
        """Names the policy; computed from everything else."""

    def manifest(self) -> dict[str, Any]:
        """The JSON manifest, without the digest."""


@dataclass(frozen=True)
class Policy:
    """A policy as it is served: weights, what they read, what they may do.

    Attributes:
        name: A human's name for it, e.g. "adamw-small".
        features: Names of the observation columns it reads, in order.
        controls: What it steers, with the choices that it was trained on, in order.
        schedule: The default shape under its decisions.
        selection: How choices become a decision: "mode" takes the likeliest, "mean" the
            probability-weighted mean of the deltas, "sample" draws, seeded by the decision's key.
        optimizer: What it was trained to steer, e.g. "torch.optim.AdamW".
        weights: "lstm.weight_ih" `(4H, F)`, "lstm.weight_hh" `(4H, H)`, "lstm.bias" `(4H,)`, gates
            in torch's order i, f, g, o; "hidden.weight" `(M, H)`, "hidden.bias" `(M,)`;
            "head.weight" `(choices, M)`, "head.bias" `(choices,)`. All float32.
        training: How it came to be: configuration, seeds, curve, evaluation. For people.
        feedback: What moves the weight decay under its decisions, where a job tells the slope of a
            held-out loss; None is nothing.
        digest: Names the policy; computed from everything else.

    Raises:
        ConfigurationError: A feature or a control stands there twice, or a selection is none.
        ArtifactError, IncompatiblePolicyError: The weights are not those of such a network, or a
            feature does not exist.
    """

    name: str
    features: tuple[str, ...]
    controls: tuple[Control, ...]
    schedule: Schedule
    selection: Selection
    optimizer: str
    weights: Mapping[str, FloatArray]
    training: Mapping[str, Any] = field(default_factory=dict)
    feedback: Feedback | None = None
    digest: str = field(init=False)
    columns: IntArray = field(init=False, repr=False)
    #: Start and end of each control's logits in the head's output.
    slices: tuple[slice, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_selection(self.selection)
        for what, names in (
            ("features", self.features),
            ("controls", [control.name for control in self.controls]),
        ):
            if again := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
                raise ConfigurationError(
                    f"Policy {self.name!r} names {', '.join(again[:5])} twice among its {what}; "
                    "give each once."
                )
        known = {name: i for i, name in enumerate(FEATURES)}
        missing = [name for name in self.features if name not in known]
        if missing:
            raise IncompatiblePolicyError(
                f"Policy {self.name!r} reads {len(missing)} features that this version does not "
                f"make: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. "
                "Train it again, or install the version of lhopt that it names."
            )
        columns = np.array([known[name] for name in self.features], np.int64)
        ends = np.cumsum([len(control.choices) for control in self.controls]).tolist()
        slices = tuple(slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True))
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "slices", slices)
        check_network(self.weights, len(self.features), ends[-1] if ends else 0)
        object.__setattr__(self, "digest", digest(self.manifest()))

    @property
    def hidden_size(self) -> int:
        """Width H of the LSTM."""
        return int(self.weights["lstm.weight_hh"].shape[1])

    def needs_slope(self, controls: Collection[str]) -> bool:
        """Whether its decisions depend on a held-out loss's slope, in a job that offers these."""
        fed = self.feedback is not None and CONTROL_NAMES[DECAY] in controls
        return fed or "valid/slope" in self.features

    def manifest(self) -> dict[str, Any]:
        """The JSON manifest, without the digest."""
        return {
            "format": FORMAT,
            "format_version": PLAIN_VERSION if self.feedback is None else FORMAT_VERSION,
            "name": self.name,
            "optimizer": self.optimizer,
            "selection": self.selection,
            "schedule": self.schedule.to_json(),
            **({} if self.feedback is None else {"feedback": self.feedback.to_json()}),
            "controls": [
                {
                    "name": control.name,
                    "kind": control.kind,
                    "choices": list(control.choices),
                    "low": control.low,
                    "high": control.high,
                    "max_delta": control.max_delta,
                    "max_total": control.max_total,
                }
                for control in self.controls
            ],
            "features": list(self.features),
            "weights_sha256": weights_sha256(self.weights),
            "training": dict(self.training),
        }


def check_selection(selection: str) -> None:
    """Refuse what is no `Selection`: `runtime.choose` would take it for one of them.

    Raises:
        ConfigurationError: There is no such selection.
    """
    if selection not in get_args(Selection):
        raise ConfigurationError(
            f"selection is {selection!r}; one of {', '.join(get_args(Selection))} is wanted."
        )


def check_name(name: str) -> None:
    """Refuse a policy's name that makes no file of a folder.

    Raises:
        ConfigurationError: It is empty, too long, no single part of a path or not printable.
    """
    sound = name.isprintable() and 0 < len(name.encode()) <= MAX_NAME_BYTES
    if not sound or name in (".", "..") or "/" in name or "\\" in name:
        shown = repr(name) if len(name) <= MAX_NAME_BYTES else f"{name[:20]!r}..."
        raise ConfigurationError(
            f"The policy's name is {shown}; both its files are called so: from 1 to "
            f"{MAX_NAME_BYTES} bytes are wanted, printable, without a slash, and not '.' or '..'."
        )


def save(policy: Artifact, folder: str | Path) -> Path:
    """Write `NAME.safetensors` and `NAME.json` into a folder; returns the manifest's path.

    Both are written under other names and renamed, weights first: a reader never sees half a file.

    Raises:
        ConfigurationError: Its name makes no file of that folder; nothing is written.
        ArtifactError: It is larger than `load` would read; nothing is written.
    """
    folder = Path(folder)
    check_name(policy.name)
    manifest = {**policy.manifest(), "digest": policy.digest}
    text = (json.dumps(manifest, indent=1, allow_nan=False) + "\n").encode()
    weights = write_safetensors(policy.weights)
    for part, data, most in (
        ("manifest", text, MAX_MANIFEST_BYTES),
        ("weights", weights, MAX_WEIGHTS_BYTES),
    ):
        if len(data) > most:
            raise ArtifactError(
                f"The {part} of policy {policy.name!r} would take {len(data)} bytes; at most "
                f"{most} are read. Make it smaller: a narrower network, or fewer policies combined."
            )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{policy.name}.json"
    write_whole(folder / f"{policy.name}.safetensors", weights)
    write_whole(target, text)
    return target


def load(path: str | Path) -> Policy:
    """Read and verify a policy, by the path of its manifest or of its weights.

    Raises:
        ArtifactError: A file is missing, truncated, oversized, not of the format, or its digest
            does not match.
        IncompatiblePolicyError: It needs features or controls that this version does not have.
    """
    return from_bytes(*read_files(path), source=str(path))


def read_files(path: str | Path) -> tuple[bytes, bytes]:
    """The bytes of manifest and weights, by the path of either or the name without a suffix.

    Raises:
        ArtifactError: A file is missing, cannot be read or is oversized.
    """
    manifest_path, weights_path = paths(path)
    return _read(manifest_path, MAX_MANIFEST_BYTES), _read(weights_path, MAX_WEIGHTS_BYTES)


def paths(path: str | Path) -> tuple[Path, Path]:
    """Where manifest and weights lie, by the path of either or the name without a suffix."""
    path = Path(path)
    # a name may hold a dot ("adamw-0.2"), which is no suffix
    stem = path.with_suffix("") if path.suffix in (".json", ".safetensors") else path
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.safetensors")


def is_manifest(path: Path, kind: str = FORMAT) -> bool:
    """Whether a JSON file says that it is a policy's manifest, whatever else is wrong with it.

    Args:
        path: The file.
        kind: The format that is meant.

    Raises:
        ArtifactError: It cannot be read.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            return False
        manifest = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == kind


def from_bytes(manifest_bytes: bytes, weights_bytes: bytes, *, source: str = "policy") -> Policy:
    """A policy from the bytes of its two files; raises as `load`."""
    versions = (PLAIN_VERSION, FORMAT_VERSION)
    manifest = read_manifest(manifest_bytes, weights_bytes, FORMAT, versions, source)
    try:
        policy = Policy(
            name=str(manifest["name"]),
            features=tuple(str(name) for name in manifest["features"]),
            controls=tuple(_control(row) for row in manifest["controls"]),
            schedule=Schedule(**manifest["schedule"]),
            selection=manifest["selection"],
            optimizer=str(manifest["optimizer"]),
            weights=read_safetensors(weights_bytes, source=source),
            feedback=Feedback.read(manifest.get("feedback")),
            training=manifest.get("training", {}),
        )
    except ArtifactError:
        raise
    except (LhoptError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(
            f"The manifest of {source} is incomplete or out of range: {error!r}."
        ) from error
    check_digest(manifest, policy, source)
    return policy


def read_manifest(
    manifest_bytes: bytes, weights_bytes: bytes, kind: str, versions: Sequence[int], source: str
) -> dict[str, Any]:
    """The manifest of a policy whose weights are those that it names.

    Args:
        manifest_bytes: The JSON file.
        weights_bytes: The safetensors file.
        kind: The format that is wanted.
        versions: Its versions that are read.
        source: What messages call the policy.

    Raises:
        ArtifactError: Not JSON, not of the format, or the weights are others.
        IncompatiblePolicyError: Another version of the format.
    """
    try:
        manifest = json.loads(manifest_bytes)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"The manifest of {source} is not JSON: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != kind:
        raise ArtifactError(f"The manifest of {source} is not a {kind!r} manifest.")
    if manifest.get("format_version") not in versions:
        raise IncompatiblePolicyError(
            f"{source} has format version {manifest.get('format_version')!r}; this lhopt reads "
            f"version {' or '.join(map(str, versions))}."
        )
    sha256 = hashlib.sha256(weights_bytes).hexdigest()
    if manifest.get("weights_sha256") != sha256:
        raise ArtifactError(
            f"The weights of {source} have the SHA-256 {sha256}; the manifest says "
            f"{manifest.get('weights_sha256')!r}. The file was changed or cut; fetch it again."
        )
    return manifest


def check_digest(manifest: Mapping[str, Any], policy: Artifact, source: str) -> None:
    """Refuse a manifest that says another digest than the policy made from it has.

    Raises:
        ArtifactError: It was changed after training.
    """
    if manifest.get("digest") != policy.digest:
        raise ArtifactError(
            f"{source} has the digest {policy.digest}; its manifest says "
            f"{manifest.get('digest')!r}. It was changed after training; fetch it again."
        )


def _control(row: Mapping[str, Any]) -> Control:
    known = CONTROLS.get(row["name"])
    if known is None or known.kind != row["kind"]:
        raise IncompatiblePolicyError(
            f"The policy steers {row['name']!r} ({row['kind']}); this version has "
            f"{', '.join(f'{c.name} ({c.kind})' for c in CONTROLS.values())}."
        )
    bounds = ("low", "high", "max_delta", "max_total")
    other = [
        f"{b} {row[b]!r}, here {getattr(known, b)!r}" for b in bounds if row[b] != getattr(known, b)
    ]
    if other:
        raise IncompatiblePolicyError(
            f"The policy was made for other bounds of {known.name!r} than this version keeps: "
            f"{'; '.join(other)}. Train it again, or install the version that it was made with."
        )
    return Control(
        name=known.name,
        kind=known.kind,
        choices=tuple(float(choice) for choice in row["choices"]),
        low=float(row["low"]),
        high=float(row["high"]),
        start=known.start,
        max_delta=float(row["max_delta"]),
        max_total=float(row["max_total"]),
    )


def check_network(weights: Mapping[str, FloatArray], n_inputs: int, n_choices: int) -> None:
    """Refuse weights that are not those of the network that `runtime.forward` computes.

    Raises:
        ArtifactError: Tensors are missing, or hold nan or inf.
        IncompatiblePolicyError: A tensor has another shape than the others ask for.
    """
    shapes = {name: array.shape for name, array in weights.items()}
    try:
        h = shapes["lstm.weight_hh"][1]
        m = shapes["hidden.weight"][0]
        wanted: dict[str, tuple[int, ...]] = {
            "lstm.weight_ih": (4 * h, n_inputs),
            "lstm.weight_hh": (4 * h, h),
            "lstm.bias": (4 * h,),
            "hidden.weight": (m, h),
            "hidden.bias": (m,),
            "head.weight": (n_choices, m),
            "head.bias": (n_choices,),
        }
    except (KeyError, IndexError) as error:
        raise ArtifactError(
            f"The weights hold {', '.join(sorted(shapes)) or 'nothing'}; an LSTM policy has "
            "lstm.weight_ih, lstm.weight_hh, lstm.bias, hidden.weight, hidden.bias, "
            "head.weight and head.bias."
        ) from error
    for name in sorted(set(wanted) | set(shapes)):
        if shapes.get(name) != wanted.get(name):
            raise IncompatiblePolicyError(
                f"Tensor {name!r} has the shape {shapes.get(name, 'none')}; with "
                f"{n_inputs} features, {n_choices} choices and H={h} it must be "
                f"{wanted.get(name, 'absent')}."
            )
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ArtifactError(f"Tensor {name!r} holds nan or inf; the policy is broken.")


def weights_sha256(weights: Mapping[str, FloatArray]) -> str:
    """SHA-256 of the safetensors file that holds them."""
    return hashlib.sha256(write_safetensors(weights)).hexdigest()


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest, whatever the order of its keys."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_safetensors(tensors: Mapping[str, FloatArray]) -> bytes:
    """Float32 arrays as safetensors bytes; the same arrays give the same bytes."""
    header: dict[str, Any] = {}
    blobs: list[bytes] = []
    offset = 0
    for name in sorted(tensors):
        blob = np.ascontiguousarray(tensors[name], "<f4").tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(blobs)


def read_safetensors(data: bytes, *, source: str = "policy") -> dict[str, FloatArray]:
    """Arrays of a safetensors file, float32; offsets must tile the data exactly.

    Raises:
        ArtifactError: The bytes are not a whole, well-formed safetensors file of floats.
    """
    if len(data) > MAX_WEIGHTS_BYTES:
        raise ArtifactError(
            f"{source} has {len(data)} bytes; at most {MAX_WEIGHTS_BYTES} are read."
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ArtifactError(
            f"{source} is not a safetensors file, or is cut: its header says {length} bytes, the "
            f"file has {len(data)} (a header may take {MAX_HEADER_BYTES})."
        )
    try:
        header = json.loads(data[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        header.pop("__metadata__", None)
        rows = sorted(
            (
                (int(v["data_offsets"][0]), int(v["data_offsets"][1]), str(k), v)
                for k, v in header.items()
            ),
            key=lambda row: row[:3],
        )
        body, position = memoryview(data)[8 + length :], 0
        tensors: dict[str, FloatArray] = {}
        for start, end, name, value in rows:
            dtype, shape = _DTYPES[value["dtype"]], tuple(int(n) for n in value["shape"])
            if start != position or min(shape, default=0) < 0:
                raise ValueError(f"tensor {name!r} leaves a gap, overlaps or has a negative size")
            if end - start != math.prod(shape) * dtype.itemsize or end > len(body):
                raise ValueError(f"tensor {name!r} has {end - start} bytes for the shape {shape}")
            with np.errstate(over="ignore"):  # a float64 beyond float32 is inf, refused later
                array = np.frombuffer(body[start:end], dtype).reshape(shape).astype(np.float32)
            tensors[name] = array
            position = end
        if position != len(body):
            raise ValueError(f"{len(body) - position} bytes follow the last tensor")
    except (
        KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError, AttributeError,
    ) as error:  # fmt: skip
        raise ArtifactError(f"{source} is not a sound safetensors file: {error}.") from error
    return tensors


def _read(path: Path, limit: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > limit:
            raise ArtifactError(f"{path} has {size} bytes; at most {limit} are read.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{path} is missing. A policy is two files, NAME.json and NAME.safetensors."
        ) from error
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}. A policy is two files, NAME.json and "
            "NAME.safetensors."
        ) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it: nobody ever reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)
