"""Snapshots of an environment, to return to them later (planning, tree search, checkpoints)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from l4s_gym.errors import L4SError
from l4s_gym.sim.batch import check_identity


@dataclass(frozen=True)
class Snapshot:
    """Result of `clone_state`; it can be pickled."""

    identity: dict[str, str]
    parts: dict[str, Any]
    values: dict[str, Any]


class Snapshots:
    """Adds `clone_state`, `restore_state` and independent copies to an environment."""

    _parts: ClassVar[tuple[str, ...]] = ()
    """Names of attributes with the methods `state` and `restore`; an attribute may be None."""
    _values: ClassVar[tuple[str, ...]] = ()
    """Names of attributes that are plain data and change during an episode."""

    def _identity(self) -> dict[str, str]:
        """Return what a snapshot must have in common with the environment."""
        raise NotImplementedError

    def clone_state(self) -> Snapshot:
        """Return a snapshot of the environment, including its random generator (but not those of its spaces).

        The environment does not change the snapshot, which can be restored any number of times.
        """
        return Snapshot(
            {"environment": type(self).__name__, **self._identity()},
            {name: part.state() for name in self._parts if (part := getattr(self, name)) is not None},
            {name: copy.deepcopy(getattr(self, name)) for name in self._values},
        )

    def restore_state(self, snapshot: Snapshot) -> None:
        """Return to a snapshot, bit for bit; it may come from another environment with the same arguments.

        Wrappers have state of their own: reset a wrapped environment once before.

        Raises:
            L4SError: The snapshot is of another scenario, of other arguments, or of another version.
        """
        if not isinstance(snapshot, Snapshot):
            raise L4SError(f"restore_state: {type(snapshot).__name__} is no snapshot: give what clone_state() returned")
        check_identity("the snapshot", snapshot.identity, {"environment": type(self).__name__, **self._identity()})
        for name in self._parts:
            part = getattr(self, name)
            if part is not None:
                part.restore(snapshot.parts.get(name))
        for name in self._values:
            setattr(self, name, copy.deepcopy(snapshot.values[name]))

    def __copy__(self) -> Self:
        """Return a deep copy; a shallow one would share the simulator with the original."""
        return copy.deepcopy(self)
