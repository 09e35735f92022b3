"""Snapshots: the state of an environment at one moment, to go back to it (planning, tree search, checkpoints)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from l4s_gym.errors import L4SError
from l4s_gym.sim.batch import check_identity


@dataclass(frozen=True)
class Snapshot:
    """What `clone_state` returns: opaque, and picklable."""

    identity: dict[str, str]
    parts: dict[str, Any]
    values: dict[str, Any]


class Snapshots:
    """`clone_state` and `restore_state` of an environment, and copies that do not share its simulator."""

    _parts: ClassVar[tuple[str, ...]] = ()
    """Attributes whose objects have `state` and `restore`; None where the environment lacks the part."""
    _values: ClassVar[tuple[str, ...]] = ()
    """Attributes that are plain data and change in an episode."""

    def _identity(self) -> dict[str, str]:
        """What a snapshot must agree with."""
        raise NotImplementedError

    def clone_state(self) -> Snapshot:
        """All that decides how the environment goes on, its generator included (spaces' own generators are not).

        The snapshot stays as it is whatever the environment does, and can be restored any number of times.
        """
        return Snapshot(
            {"environment": type(self).__name__, **self._identity()},
            {name: part.state() for name in self._parts if (part := getattr(self, name)) is not None},
            {name: copy.deepcopy(getattr(self, name)) for name in self._values},
        )

    def restore_state(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, bit for bit; it may come from another environment made alike, in any process.

        Wrappers have state of their own: a wrapped environment is to be reset once before.

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
        """A deep copy: one that shared the simulator would move the original."""
        return copy.deepcopy(self)
