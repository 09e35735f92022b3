"""Episodes in HDF5: Minari's layout, in shards, each array in one piece so that it can be memory-mapped.

A dataset's `data/` folder holds `shard-00000.hdf5`, ... with the episodes, and `main_data.hdf5`, which Minari opens
and which only links to them (`h5py.ExternalLink`, by names relative to its folder). A shard is complete or absent.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.data.files import atomic_write, printable
from l4s_gym.data.steps import EXTRAS, STEP, Steps
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.rewards import COMPONENTS

MAIN: Final = "main_data.hdf5"
_IN_MEMORY: Final = 64 << 20
"""Bytes of an episode held in memory; a longer one is kept on disk until its length is known."""
_ROWS: Final = 1 << 16
_ALIGNMENT: Final = 64
_MAPS: Final[WeakValueDictionary[tuple[int, ...], Any]] = WeakValueDictionary()
"""Files that are mapped, as bytes."""


class Array(NamedTuple):
    """An array of an episode.

    Attributes:
        dtype: Type of its entries.
        shape: Shape of an entry.
        more: Number of entries beyond the number of steps.
        field: Field of the rows that it holds; empty: it is False throughout.
        later: By how many entries a value comes after its row: 1 for what is known after the step.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    more: int = 0
    field: str = ""
    later: int = 0


ARRAYS: Final = {
    "observations": Array("<f4", STEP["observation"].shape, 1, "observation"),
    "actions": Array("<i8", field="action"),
    "rewards": Array("<f8", field="reward"),
    "infos/missing": Array("|b1", (), 1, "missing"),
    **{f"infos/{name}": Array(STEP[name].str, (), 1, name) for name in EXTRAS},
    "infos/applied_action": Array("<i8", (), 1, "applied", 1),
    "terminations": Array("|b1"),
}
"""The arrays of an episode by their paths, in the order in which they are stored; after them come the truncations."""
INFOS: Final = ("applied_action", "missing", *EXTRAS)
"""Infos of each episode, (T + 1,): `applied_action` at t + 1 says how action t was applied, as in the environment."""


@cache
def arrays_of(form: str) -> dict[str, Array]:
    """Return the arrays of an episode of an action form (`l4s_gym.forms`), as `ARRAYS` has those of packets.

    A step of control intervals has the components of its reward (`l4s_gym.rewards.COMPONENTS`) in its info, s.
    """
    if form == PACKET:
        return ARRAYS
    chosen = forms.get(form)
    return {
        "observations": Array("<f4", (len(chosen.features),), 1, "observation"),
        "actions": Array("<f4", (len(chosen.low),), 0, "action"),
        "rewards": ARRAYS["rewards"],
        **{f"infos/components/{name}": Array("<f4", (), 1, name, 1) for name in COMPONENTS},
        "terminations": ARRAYS["terminations"],
    }


@cache
def row_of(form: str) -> np.dtype[np.void]:
    """Return the type of the rows of a run of an action form."""
    if form == PACKET:
        return STEP
    return np.dtype([(each.field, each.dtype, each.shape) for each in arrays_of(form).values() if each.field])


class Run(Protocol):
    """A run of decisions that can be stored: its rows by blocks, and metadata that is complete after them."""

    @property
    def about(self) -> Mapping[str, Any]:
        """Attributes of the episode: plain values."""
        ...

    def blocks(self) -> Iterator[Steps]:
        """Return rows (`row_of` its form) in order; the last row is the final observation."""
        ...


class Shard(NamedTuple):
    """A file of episodes: its name, the number of its first episode, how many it has, and their steps."""

    name: str
    first: int
    episodes: int
    steps: int


def shard_name(number: int) -> str:
    """Return the name of the file of a shard."""
    return f"shard-{number:05}.hdf5"


def h5py() -> Any:
    """Import h5py.

    Raises:
        L4SError: It is not installed.
    """
    return optional("h5py", "data")


class _Sink(io.RawIOBase):
    """The file that HDF5 writes to: it keeps a disk error, and then writes nothing more.

    HDF5 cannot close a file whose last bytes it cannot write, and then ends the whole program.
    """

    def __init__(self, path: str) -> None:
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._end = 0
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error that was kept."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()
        super().close()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(self._end if whence == os.SEEK_END else offset)

    def readinto(self, buffer: Any) -> int | None:
        return self._file.readinto(buffer)

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        self._end = max(self._end, self._file.tell() + size)
        try:
            while self._error is None and len(left):
                left = left[self._file.write(left) :]
        except OSError as error:
            self._error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        self._end = self._file.tell() if size is None else size
        try:
            if self._error is None:
                self._file.truncate(self._end)
        except OSError as error:
            self._error = error
        return self._end


@contextmanager
def _new_file(path: str) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Open an HDF5 file for writing; yield it and a check that raises OSError if the disk has failed."""
    options = {"alignment_threshold": 1, "alignment_interval": _ALIGNMENT}
    with closing(_Sink(path)) as sink:
        with h5py().File(sink, "w", **options) as file:
            yield file, sink.check
        sink.check()


def _write_episode(file: Any, number: int, run: Run, folder: Path, form: str) -> int:
    """Write one run as an episode; return its number of steps, 0 if it has fewer than two rows (nothing is written).

    Args:
        file: The file to write to.
        number: Number of the episode.
        run: The run.
        folder: Folder for a long run until its length is known.
        form: Its action form.
    """
    row, arrays = row_of(form), arrays_of(form)
    with SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(folder)) as spool:
        rows = 0
        for block in run.blocks():
            spool.write(np.ascontiguousarray(block).view(np.uint8).data)
            rows += len(block)
        if rows < 2:
            return 0
        spool.seek(0)
        group = file.create_group(f"episode_{number}")
        about = {name: printable(each) if isinstance(each, str) else each for name, each in run.about.items()}
        group.attrs.update({"id": number, "total_steps": rows - 1, **about})
        made = {
            path: group.create_dataset(path, (rows - 1 + each.more, *each.shape), each.dtype)
            for path, each in arrays.items()
        }
        made["terminations"][:] = False
        group.create_dataset("truncations", data=np.arange(rows - 1) == rows - 2)
        at = 0
        while data := spool.read(_ROWS * row.itemsize):
            part = np.frombuffer(data, row)
            for path, each in arrays.items():
                if each.field:
                    first = at + each.later
                    kept = part[each.field][: len(made[path]) - first]
                    made[path][first : first + len(kept)] = kept
            at += len(part)
    return rows - 1


def write_shard(path: Path, first: int, runs: Iterable[Run], form: str = PACKET) -> Shard:
    """Write runs to a file, as a whole or not at all.

    Args:
        path: The file.
        first: Number of the first episode.
        runs: The runs, read as a stream; those of less than two rows are left out.
        form: Their action form (`l4s_gym.forms`).
    """
    episodes = steps = 0
    # h5py reads what it wrote, so it gets the name, not the file.
    with atomic_write(path) as temporary, _new_file(temporary.name) as (file, check):
        for run in runs:
            written = _write_episode(file, first + episodes, run, path.parent, form)
            check()
            episodes += written > 0
            steps += written
        file.attrs.update({"first": first, "episodes": episodes, "steps": steps})
    return Shard(path.name, first, episodes, steps)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise h5py's error for a damaged or locked file as a one-line error.

    Args:
        path: The file that is read, or the folder of several.

    Raises:
        L4SError: It cannot be read.
    """
    try:
        yield
    except (OSError, KeyError, RuntimeError) as error:
        said = " ".join(str(error.args[-1] if error.args else error).split())
        if "unable to lock file" in said:
            raise L4SError(f"{path}: is locked: another process writes it: wait for it") from error
        remedy = "download the dataset with --force, or build it with --overwrite"
        raise L4SError(f"{path}: cannot be read ({printable(said)}): {remedy}") from error


def check_files(folder: Path) -> None:
    """Open each file of a dataset's `data` folder as a check.

    Raises:
        L4SError: One is missing, damaged or locked.
    """
    with readable(folder / MAIN), h5py().File(folder / MAIN, "r") as main:
        links = [main.get(name, getlink=True) for name in main]
    for name in sorted({link.filename for link in links if isinstance(link, h5py().ExternalLink)}):
        with readable(folder / name), h5py().File(folder / name, "r"):
            pass


def read_shard(path: Path) -> Shard:
    """Return what a complete shard holds."""
    with h5py().File(path, "r") as file:
        return Shard(path.name, *(int(file.attrs[name]) for name in ("first", "episodes", "steps")))


def link_shards(folder: Path, shards: Iterable[Shard]) -> tuple[int, int]:
    """Write `MAIN` for the shards of a folder.

    Returns:
        The number of episodes and of steps.

    Raises:
        L4SError: The numbers of the episodes have gaps.
    """
    episodes = steps = 0
    with atomic_write(folder / MAIN) as temporary, _new_file(temporary.name) as (main, _):
        for shard in shards:
            if shard.first != episodes:
                raise L4SError(f"{shard.name}: starts with episode {shard.first}, not {episodes}: build it again")
            for number in range(episodes, episodes + shard.episodes):
                main[f"episode_{number}"] = h5py().ExternalLink(shard.name, f"/episode_{number}")
            episodes += shard.episodes
            steps += shard.steps
    return episodes, steps


def mapped(dataset: Any) -> npt.NDArray[Any]:
    """Return a read-only memory-mapped view of a stored array; a copy if it is stored in several pieces.

    Args:
        dataset: An open `h5py.Dataset`; the view outlives its file.
    """
    offset = dataset.id.get_offset()
    if offset is None:
        copied: npt.NDArray[Any] = dataset[()]
        return copied
    # One map a file, which all views of it keep: each map costs a file descriptor, of which there may be few.
    about = os.stat(dataset.file.filename)
    key = about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
    if (whole := _MAPS.get(key)) is None:
        whole = _MAPS[key] = np.memmap(dataset.file.filename, np.uint8, "r")
    return np.ndarray(dataset.shape, dataset.dtype, whole, offset)
