"""Episodes of a dataset as NumPy arrays that stay on the disk: read-only views of memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from l4s_gym.data.minari_io import absent_in, check_form, check_simulator, load
from l4s_gym.data.steps import EXTRAS, MISSING
from l4s_gym.data.storage import ARRAYS, MAIN, h5py, readable
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.forms import PACKET

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Layout:
    """Where the arrays of a dataset's E episodes lie: plain values, which can be pickled.

    Attributes:
        name: Id of the dataset.
        files: Paths of the files.
        file: Index, in `files`, of the file that holds each episode (E,).
        steps: Steps of each episode (E,).
        offsets: Path of an array in the episode -> its byte offset in the file (E,).
        consecutive: Whether each row of the episode is the packet right after the one before (E,).
        numbers: Number of each episode in the dataset (E,).
        absent: Features that the source of each episode lacks, E times.
    """

    name: str
    files: tuple[str, ...]
    file: Ints
    steps: Ints
    offsets: Mapping[str, Ints]
    consecutive: Bools
    numbers: Ints
    absent: tuple[tuple[str, ...], ...]

    def check_gaps(self) -> None:
        """Refuse episodes that are not consecutive.

        Raises:
            L4SError: There is one.
        """
        if not self.consecutive.all():
            first = self.numbers[np.argmin(self.consecutive)]
            raise L4SError(
                f"dataset {self.name!r}: rows are missing within episode {first}, so the row before is not "
                "always the packet before: use another dataset, or allow_gaps=True"
            )

    def map_files(self) -> list[npt.NDArray[np.uint8]]:
        """Return the files as memory-mapped bytes (n,) each."""
        try:
            return [np.asarray(np.memmap(path, np.uint8, "r")) for path in self.files]
        except OSError as error:
            raise L4SError(f"{error.filename}: cannot be read ({error.strerror}): was the dataset moved?") from error


def open_layout(source: Any, names: Sequence[str] = tuple(ARRAYS)) -> Layout:
    """Find the arrays of a dataset.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.
        names: Which of `ARRAYS` to find.

    Raises:
        L4SError: There is no such dataset, it is stale, not one of `minari_io.create`, or its steps are no packets.
    """
    dataset = load(source) if isinstance(source, str) else source
    check_simulator(dataset)
    check_form(dataset, PACKET)
    numbers = np.array(dataset.episode_indices, np.int64)
    files: dict[str, int] = {}
    held: list[Any] = []
    rows, absent = [], []
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
                dtype, row, more = ARRAYS[name][:3]
                if offset is None or array.dtype != dtype or array.shape != (steps + more, *row):
                    raise L4SError(f"{where}: {name} is not stored in one piece of {dtype}: write the dataset again")
            file = files.setdefault(group.file.filename, len(files))
            if file == len(held):  # a file that is held open is not opened again for each of its episodes
                held.append(group)
            rows.append((file, steps, consecutive, *offsets))
            absent.append(absent_in(group.attrs))
    file_, steps_, consecutive_, *columns = np.array(rows, np.int64).reshape(-1, 3 + len(names)).T
    offsets_ = dict(zip(names, columns, strict=True))
    return Layout(dataset.id, tuple(files), file_, steps_, offsets_, consecutive_.astype(bool), numbers, tuple(absent))


def episodes(source: Any) -> list[Trajectory]:
    """Return the episodes of a dataset as read-only views of its memory-mapped files.

    `about` holds their numbers in the dataset as `id`.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.

    Raises:
        L4SError: There is no such dataset, or it is not one of `minari_io.create`.
    """
    layout = open_layout(source)
    maps = layout.map_files()

    def view(name: str, episode: int) -> npt.NDArray[Any]:
        dtype, row, more = ARRAYS[name][:3]
        shape = (int(layout.steps[episode]) + more, *row)
        return np.ndarray(shape, dtype, maps[layout.file[episode]], int(layout.offsets[name][episode]))

    made = []
    for episode, number in enumerate(layout.numbers.tolist()):
        made.append(
            Trajectory(
                observations=view("observations", episode),
                actions=view("actions", episode),
                rewards=view("rewards", episode),
                missing={MISSING: view("infos/missing", episode)},
                absent=layout.absent[episode],
                consecutive=bool(layout.consecutive[episode]),
                source=layout.name,
                applied=view("infos/applied_action", episode)[1:],
                extras={name: view(f"infos/{name}", episode) for name in EXTRAS},
                about={"id": number},
            )
        )
    return made
