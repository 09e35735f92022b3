"""Episodes of a dataset as NumPy arrays that stay on the disk: read-only views of memory-mapped files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from l4s_gym.data.minari_io import check_simulator, load
from l4s_gym.data.storage import ARRAYS, MAIN, h5py, readable
from l4s_gym.errors import L4SError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Observations = npt.NDArray[np.float32]


class EpisodeArrays(NamedTuple):
    """An episode of T steps on the disk; step t saw observation t, took action t, and led to observation t + 1.

    Attributes:
        observations: Scaled, shape (T + 1, 8) float32.
        actions: 0 enqueue, 1 drop, 2 mark, shape (T,) int64.
        rewards: Shape (T,) float64.
        terminations: Shape (T,) bool.
        missing: Whether the accumulated probability is unknown, and shown as 0, shape (T + 1,) bool.
        infos: `applied_action` (of step t at t + 1) and `steps.EXTRAS` by name, shape (T + 1,) each.
        consecutive: Whether each row is the packet right after the one before.
        number: Number of the episode in the dataset.
    """

    observations: Observations
    actions: Ints
    rewards: Floats
    terminations: Bools
    missing: Bools
    infos: Mapping[str, npt.NDArray[Any]]
    consecutive: bool
    number: int


class Transitions(NamedTuple):
    """Steps of one episode: observations (n, 8), actions (n,), rewards (n,), what followed (n, 8), and its end (n,)."""

    observations: Observations
    actions: Ints
    rewards: Floats
    next_observations: Observations
    terminations: Bools


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a dataset's E episodes lie: plain values, which can be pickled.

    Attributes:
        name: Id of the dataset.
        files: Paths of the files.
        file: Index of each episode's file (E,).
        steps: Steps of each episode (E,).
        offsets: Path of an array in the episode: its byte in the file (E,).
        consecutive: Whether each row of the episode is the packet right after the one before (E,).
        numbers: Number of each episode in the dataset (E,).
    """

    name: str
    files: tuple[str, ...]
    file: Ints
    steps: Ints
    offsets: Mapping[str, Ints]
    consecutive: Bools
    numbers: Ints

    def check_gaps(self) -> None:
        """Refuse episodes that are not consecutive.

        Raises:
            L4SError: There is one.
        """
        if not self.consecutive.all():
            first = self.numbers[np.argmin(self.consecutive)]
            raise L4SError(
                f"dataset {self.name!r}: rows are missing within episode {first}, so that a row's neighbour is not "
                "what came before: use another dataset, or allow_gaps=True"
            )

    def map_files(self) -> list[npt.NDArray[np.uint8]]:
        """The files, memory-mapped: bytes (n,) each."""
        try:
            return [np.asarray(np.memmap(path, np.uint8, "r")) for path in self.files]
        except OSError as error:
            raise L4SError(f"{error.filename}: cannot be read ({error.strerror}): was the dataset moved?") from error


def open_layout(source: Any, names: Sequence[str] = tuple(ARRAYS)) -> Layout:
    """Find the arrays of a dataset.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.
        names: Which of `ARRAYS`.

    Raises:
        L4SError: There is no such dataset, it is stale, or it is not one of `minari_io.create`.
    """
    dataset = load(source) if isinstance(source, str) else source
    check_simulator(dataset)
    numbers = np.array(dataset.episode_indices, np.int64)
    files: dict[str, int] = {}
    held: list[Any] = []
    rows = []
    folder = Path(dataset.spec.data_path)
    with readable(folder), h5py().File(folder / MAIN, "r") as main:
        for number in numbers.tolist():
            where = f"dataset {dataset.id!r}: episode {number}"
            try:
                group = main[f"episode_{number}"]
                steps, consecutive = int(group.attrs["total_steps"]), bool(group.attrs["consecutive"])
                arrays = [group[name] for name in names]
            except KeyError as error:
                raise L4SError(f"{where}: cannot be read ({error.args[0]}): write it by minari_io.create") from error
            offsets = [array.id.get_offset() for array in arrays]
            for name, array, offset in zip(names, arrays, offsets, strict=True):
                dtype, row, more = ARRAYS[name]
                if offset is None or array.dtype != dtype or array.shape != (steps + more, *row):
                    raise L4SError(f"{where}: {name} is not stored in one piece of {dtype}: write the dataset again")
            file = files.setdefault(group.file.filename, len(files))
            if file == len(held):  # a file that is held open is not opened again for each of its episodes
                held.append(group)
            rows.append((file, steps, consecutive, *offsets))
    file_, steps_, consecutive_, *columns = np.array(rows, np.int64).reshape(-1, 3 + len(names)).T
    offsets_ = dict(zip(names, columns, strict=True))
    return Layout(dataset.id, tuple(files), file_, steps_, offsets_, consecutive_.astype(bool), numbers)


def episodes(source: Any) -> list[EpisodeArrays]:
    """The episodes of a dataset, without reading them: the arrays are views of the files, and read-only.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.

    Raises:
        L4SError: There is no such dataset, or it is not one of `minari_io.create`.
    """
    layout = open_layout(source)
    maps = layout.map_files()

    def view(name: str, episode: int) -> npt.NDArray[Any]:
        dtype, row, more = ARRAYS[name]
        shape = (int(layout.steps[episode]) + more, *row)
        return np.ndarray(shape, dtype, maps[layout.file[episode]], int(layout.offsets[name][episode]))

    made = []
    for episode, number in enumerate(layout.numbers.tolist()):
        found = {name: view(name, episode) for name in ARRAYS}
        infos = {name.removeprefix("infos/"): found.pop(name) for name in ARRAYS if name.startswith("infos/")}
        consecutive = bool(layout.consecutive[episode])
        made.append(
            EpisodeArrays(**found, missing=infos.pop("missing"), infos=infos, consecutive=consecutive, number=number)
        )
    return made


def transitions(source: Any, *, drop_missing: bool = True, allow_gaps: bool = False) -> Iterator[Transitions]:
    """The steps of a dataset with what followed them, episode by episode; views where no step is left out.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.
        drop_missing: Leave out steps whose accumulated probability is unknown, before or after.
        allow_gaps: Take episodes that are not consecutive too, as if each row followed the one before.

    Raises:
        L4SError: As `episodes`, or an episode is not consecutive.
    """
    if not allow_gaps:
        open_layout(source, ()).check_gaps()
    for e in episodes(source):
        steps = Transitions(e.observations[:-1], e.actions, e.rewards, e.observations[1:], e.terminations)
        missing = e.missing[:-1] | e.missing[1:]
        if drop_missing and missing.any():
            steps = Transitions._make(array[~missing] for array in steps)
        yield steps
