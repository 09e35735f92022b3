"""Windows of the last K steps for decision transformers, read from memory-mapped datasets on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.arrays import Floats, Ints, Layout, open_layout
from l4s_gym.data.storage import ARRAYS
from l4s_gym.data.trajectory import window_rows
from l4s_gym.errors import L4SError

try:
    import torch
    from torch.utils.data import Dataset, Sampler
except ImportError as _error:
    raise L4SError(f"torch: cannot be imported ({_error}): pip install 'l4s-gym[llm]'") from _error

Item = dict[str, torch.Tensor]

BLOCK: Final = 256
"""Steps between two returns-to-go held in memory; those between are computed on demand."""
_WIDTHS: Final = {
    name: np.dtype((ARRAYS[name].dtype, ARRAYS[name].shape)).itemsize
    for name in ("observations", "actions", "rewards", "infos/missing")
}
"""What is read of an episode, and the bytes of a row."""
_DRAWS: Final = 1 << 12


class Windows(Dataset[Item]):
    """A map-style dataset of windows: item i is the K steps up to step i of all steps, within one episode.

    With a stride n, they are every n-th step: what an agent sees that is asked at every n-th packet, with the rewards
    in between added to the step before.

    | entry | shape | type | meaning |
    |---|---|---|---|
    | `observations` | (K, 8) | float32 | scaled as the environment's |
    | `actions` | (K,) | int64 | 0 enqueue, 1 drop, 2 mark |
    | `rewards` | (K,) | float32 | of each step |
    | `returns_to_go` | (K,) | float32 | discounted sum of the rewards from the step to the end of its episode |
    | `timesteps` | (K,) | int64 | number of the step in its episode, from 0 |
    | `mask` | (K,) | bool | False for the padding before the start of an episode, where all else is 0 |
    | `missing` | (K,) | bool | the accumulated probability is unknown, and shown as 0 |

    Nothing is copied or held in memory except one return-to-go in `BLOCK` steps. A pickled instance (for the workers of
    a `DataLoader`) opens the files again where it is unpickled. An index gives an item, a sequence of indices a batch
    (B, K, ...), so ``DataLoader(windows, sampler=BatchSampler(sampler, 256, False), batch_size=None)`` is fastest.

    Args:
        source: A `minari.MinariDataset` of `minari_io.create`, or its id.
        length: Steps of a window, K.
        gamma: Discount of the returns-to-go, per step; 1 with a stride.
        allow_gaps: Take episodes that are not consecutive too (pools, logs with lost rows).
        stride: Distance between two steps of a window.

    Raises:
        L4SError: There is no such dataset, it is not one of `minari_io.create`, an episode is not consecutive, or an
            argument makes no sense.
    """

    def __init__(
        self, source: Any, length: int = 20, *, gamma: float = 1.0, allow_gaps: bool = False, stride: int = 1
    ) -> None:
        if min(length, stride) < 1 or not 0 <= gamma <= 1:
            raise L4SError(f"windows: length={length}, stride={stride}, gamma={gamma}: give 1 or more, and 0 to 1")
        if stride > 1 and gamma != 1:
            raise L4SError(f"windows: gamma={gamma} with stride={stride}: only gamma=1 is the same with any stride")
        self.length, self.gamma, self.stride = length, gamma, stride
        self.layout: Layout = open_layout(source, tuple(_WIDTHS))
        if not allow_gaps:
            self.layout.check_gaps()
        steps = self.layout.steps
        self.starts: Ints = np.concatenate([[0], np.cumsum(steps)])
        """Index of the first step of each episode, and at the end the number of all steps (E + 1,)."""
        blocks = -(-steps // BLOCK) + 1
        self._first_block = np.cumsum(blocks) - blocks
        self._open()
        self._returns = np.concatenate([self._block_returns(episode) for episode in range(len(steps))])

    def _open(self) -> None:
        # Each file as one long column of each type: an array lies at a multiple of its row's size (see storage).
        self._columns: list[dict[str, npt.NDArray[Any]]] = [
            {
                name: raw[: len(raw) // width * width].view(ARRAYS[name].dtype).reshape(-1, *ARRAYS[name].shape)
                for name, width in _WIDTHS.items()
            }
            for raw in self.layout.map_files()
        ]
        self._at: dict[str, Ints] = {}  # row of the first step of each episode in its file's column (E,)
        for name, width in _WIDTHS.items():
            if (self.layout.offsets[name] % width).any():
                raise L4SError(f"dataset {self.layout.name!r}: {name} is not aligned: write the dataset again")
            self._at[name] = self.layout.offsets[name] // width

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_columns", "_at")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def episode_actions(self, episode: int) -> Ints:
        """Return the actions of an episode (T,) as a view."""
        at = self._at["actions"][episode]
        actions: Ints = self._columns[self.layout.file[episode]]["actions"][at : at + self.layout.steps[episode]]
        return actions

    def _block_returns(self, episode: int) -> Floats:
        """Return the returns-to-go at each `BLOCK`-th step of an episode, then 0 (blocks + 1,)."""
        at, steps = self._at["rewards"][episode], int(self.layout.steps[episode])
        rewards = self._columns[self.layout.file[episode]]["rewards"][at : at + steps]
        whole = steps // BLOCK * BLOCK
        weights = self.gamma ** np.arange(BLOCK)
        sums = [*(rewards[:whole].reshape(-1, BLOCK) @ weights).tolist()]
        if steps > whole:
            sums.append(float(rewards[whole:] @ weights[: steps - whole]))
        returns, factor = [0.0], self.gamma**BLOCK
        for total in reversed(sums):
            returns.append(total + factor * returns[-1])
        return np.array(returns[::-1])

    def _take(self, name: str, episode: Ints, steps: Ints) -> npt.NDArray[Any]:
        """Return the rows of an array at steps (B, n) of episodes (B,)."""
        rows = self._at[name][episode][:, None] + steps
        if len(self._columns) == 1:
            found: npt.NDArray[Any] = self._columns[0][name][rows]
            return found
        dtype, row = ARRAYS[name][:2]
        taken = np.empty((*steps.shape, *row), dtype)
        files = self.layout.file[episode]
        for file in np.unique(files):
            chosen = files == file
            taken[chosen] = self._columns[file][name][rows[chosen]]
        return taken

    def arrays(self, indices: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """Return the windows that end at the steps (B,): entries (B, K, ...), as NumPy arrays that own their memory."""
        index = np.asarray(indices, np.int64)
        if index.ndim != 1 or ((index < 0) | (index >= len(self))).any():
            raise IndexError(f"indices of windows are one row of 0 to {len(self) - 1}")
        episode = np.searchsorted(self.starts, index, side="right") - 1
        last = index - self.starts[episode]  # (B,)
        rows, mask = window_rows(last, np.zeros_like(last), self.length, self.stride)
        entries = {
            name.removeprefix("infos/"): self._take(name, episode, rows) for name in _WIDTHS if name != "rewards"
        }
        rewards = entries["rewards"] = self._rewards(episode, rows)
        for array in entries.values():
            array[~mask] = 0
        returns = np.empty_like(rewards)
        following = self._return_after(episode, np.minimum(last + self.stride, self.layout.steps[episode]) - 1)
        for k in range(self.length - 1, -1, -1):
            following = returns[:, k] = rewards[:, k] + self.gamma * following
        returns[~mask] = 0
        entries["rewards"], entries["returns_to_go"] = rewards.astype(np.float32), returns.astype(np.float32)
        return entries | {"timesteps": rows // self.stride, "mask": mask}

    def _rewards(self, episode: Ints, rows: Ints) -> Floats:
        """Return the rewards (B, K) from each of the rows (B, K) of episodes (B,) to the next step of the stride."""
        if self.stride == 1:
            return self._take("rewards", episode, rows)
        every = (rows[..., None] + np.arange(self.stride)).reshape(len(rows), -1)  # (B, K * stride)
        inside = every < self.layout.steps[episode, None]
        rewards: Floats = np.where(inside, self._take("rewards", episode, np.where(inside, every, 0)), 0.0)
        return rewards.reshape(*rows.shape, self.stride).sum(-1)  # type: ignore[no-any-return]

    def _return_after(self, episode: Ints, last: Ints) -> Floats:
        """Return the return-to-go of the steps after the steps `last` (B,) of episodes (B,)."""
        step = last + 1
        end = np.minimum(-(-step // BLOCK) * BLOCK, self.layout.steps[episode])  # of the block, at most the episode's
        rest = int((end - step).max(initial=0))
        ahead = np.arange(rest)  # (n,)
        inside = ahead < (end - step)[:, None]
        rewards = self._take("rewards", episode, np.where(inside, step[:, None] + ahead, 0))  # (B, n)
        sums: Floats = np.where(inside, rewards, 0.0) @ self.gamma**ahead
        block = self._first_block[episode] + -(-step // BLOCK)
        total: Floats = sums + self.gamma ** (end - step) * self._returns[block]
        return total

    def batch(self, indices: Sequence[int] | Ints | torch.Tensor) -> Item:
        """Return the windows that end at the steps (B,): tensors (B, K, ...)."""
        return {name: torch.from_numpy(array) for name, array in self.arrays(np.asarray(indices)).items()}

    def __getitem__(self, index: int | Sequence[int]) -> Item:
        if isinstance(index, int | np.integer):
            return {name: values[0] for name, values in self.batch([int(index)]).items()}
        return self.batch(index)

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several items, which a `DataLoader` with `batch_size` asks for at once."""
        batch = self.batch(indices)
        return [{name: values[i] for name, values in batch.items()} for i in range(len(indices))]


class ActionChangeSampler(Sampler[int]):
    """Draws the windows that end shortly before the action changes, as the authors of L4S-LLM chose their rows.

    Their pool keeps only the 5 rows before each change of action (enqueue to drop, drop to enqueue, ...). Here the
    rows in between stay in the windows and in the returns: only the ends of windows are selected. This selection makes
    drops and marks far more frequent than the discipline's; probabilities learned from it are not calibrated.

    Args:
        windows: The windows.
        before: Number of steps before a change that count.
        mix: Share of the draws that are uniform over all windows instead.
        num_samples: Draws per epoch; None: the number of such windows.
        seed: Seed of the draws, which are with replacement and go on from one epoch to the next.

    Attributes:
        indices: Ends of the windows before a change, in order (n,).

    Raises:
        L4SError: No action changes, or an argument makes no sense.
    """

    def __init__(
        self, windows: Windows, before: int = 5, *, mix: float = 0.0, num_samples: int | None = None, seed: int = 0
    ) -> None:
        if before < 1 or not 0 <= mix <= 1 or (num_samples is not None and num_samples < 1):
            raise L4SError(f"sampler: before={before}, mix={mix}, num_samples={num_samples}: give 1+, 0 to 1, and 1+")
        found = []
        for episode, start in enumerate(windows.starts[:-1].tolist()):
            changes = np.flatnonzero(np.diff(windows.episode_actions(episode))) + 1
            ends = np.unique(changes[:, None] - np.arange(1, before + 1))
            found.append(start + ends[ends >= 0])
        self.indices: Ints = np.concatenate(found)
        if not len(self.indices):
            raise L4SError(f"dataset {windows.layout.name!r}: no action changes: draw its windows evenly instead")
        self.mix, self._windows = mix, len(windows)
        self._count = len(self.indices) if num_samples is None else num_samples
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        for done in range(0, self._count, _DRAWS):
            size = (min(_DRAWS, self._count - done),)
            uniform = torch.randint(self._windows, size, generator=self._generator).numpy()
            chosen = self.indices[torch.randint(len(self.indices), size, generator=self._generator).numpy()]
            mixed = torch.rand(size, generator=self._generator).numpy() < self.mix
            yield from np.where(mixed, uniform, chosen).tolist()
