"""The policies that a server has loaded: the bundled ones and those of one folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..core.errors import ArtifactError, ConfigurationError, UnknownNameError
from ..policy.artifact import Policy, is_manifest, load
from ..policy.bundled import DEFAULT, bundled, check_suited, names


class Catalog:
    """Policies by name and by digest.

    Args:
        policies: In order of precedence: where two share a name or were trained for the same
            optimizer, the earlier one is meant. Both can be named by their digest.
    """

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._by_digest: dict[str, Policy] = {}
        self._by_name: dict[str, Policy] = {}
        for policy in policies:
            self._by_digest[policy.digest] = policy
            self._by_name.setdefault(policy.name, policy)

    def __len__(self) -> int:
        return len(self._by_digest)

    def all(self) -> list[Policy]:
        """Every policy, by name."""
        return sorted(self._by_digest.values(), key=lambda policy: (policy.name, policy.digest))

    def pinned(self, digest: str) -> Policy | None:
        """The policy of exactly this digest, if it is loaded."""
        return self._by_digest.get(digest)

    def find(self, name: str) -> Policy:
        """A policy by name or digest.

        Raises:
            UnknownNameError: No loaded policy has it; the nearest names are listed.
        """
        policy = self._by_name.get(name) or self._by_digest.get(name)
        if policy is None:
            raise UnknownNameError("policy", name, self._by_name)
        return policy

    def for_optimizer(self, optimizer: str) -> Policy:
        """The policy trained for an optimizer, else the default one.

        Raises:
            UnknownNameError: None was trained for it and the default one is not loaded.
            ConfigurationError: None was trained for it and the default one does harm there.
        """
        for policy in self._by_name.values():
            if policy.optimizer == optimizer:
                return policy
        if DEFAULT in self._by_name:
            check_suited(optimizer)
            return self._by_name[DEFAULT]
        raise UnknownNameError(
            "optimizer", optimizer, {policy.optimizer for policy in self._by_name.values()}
        )


def load_catalog(folder: Path | None) -> Catalog:
    """The policies of `folder` before the bundled ones: an operator's own is preferred.

    Raises:
        ConfigurationError: There is no policy at all, or two files of the folder share a name.
        ArtifactError: A file is broken or was made for another version; the message names it.
    """
    policies: list[Policy] = []
    seen: dict[str, Path] = {}
    stems = {p.with_suffix("") for p in folder.glob("*.safetensors")} if folder else set()
    if folder:
        # a manifest without weights is a broken policy; any other JSON file is not ours: `lhopt
        # train` leaves the training's configuration beside what it exports
        stems |= {p.with_suffix("") for p in folder.glob("*.json") if is_manifest(p)}
    for stem in sorted(stems):
        path = stem.with_name(stem.name + ".safetensors")
        try:
            policy = load(path)
        except ArtifactError as error:
            raise type(error)(
                f"Policy {stem.name!r} in {folder} cannot be served: {error} "
                "Mend it or take it out of the folder, then start again."
            ) from error
        if policy.name in seen:
            raise ConfigurationError(
                f"{path} and {seen[policy.name]} are both policy {policy.name!r}. Rename one."
            )
        seen[policy.name] = path
        policies.append(policy)
    policies += [bundled(name) for name in names()]
    if not policies:
        raise ConfigurationError(
            "There is no policy to serve: none is bundled and "
            + (f"{folder} holds none. " if folder else "no folder is named. ")
            + "Name a folder of NAME.json and NAME.safetensors files with --policies."
        )
    return Catalog(policies)
