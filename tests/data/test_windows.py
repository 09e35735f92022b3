"""Windows for decision transformers, against a plain implementation."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym import L4SError
from l4s_gym.data.steps import STEP
from l4s_gym.data.storage import link_shards, shard_name, write_shard

pytest.importorskip("h5py", reason="needs h5py: pip install 'l4s-gym[data]'")
torch = pytest.importorskip("torch", reason="needs torch: pip install 'l4s-gym[llm]'")

from torch.utils.data import BatchSampler, DataLoader  # noqa: E402

from l4s_gym.data.windows import BLOCK, ActionChangeSampler, Windows  # noqa: E402


def _dataset(folder: Path, lengths: list[int], *, shards: int = 1, seed: int = 0, loose: bool = False) -> Any:
    """What `Windows` reads of a Minari dataset, and its rows: runs of so many steps in so many files."""
    rng = np.random.default_rng(seed)
    runs = []
    for steps in lengths:
        rows = np.zeros(steps + 1, STEP)
        rows["observation"] = rng.random((steps + 1, 8))
        rows["action"] = rng.integers(0, 3, steps + 1)
        rows["reward"] = rng.normal(size=steps + 1)
        rows["missing"] = rng.random(steps + 1) < 0.2
        runs.append(rows)
    about = {"consecutive": not loose}
    parts = [part.tolist() for part in np.array_split(np.arange(len(runs)), shards)]
    made = [
        write_shard(
            folder / shard_name(i),
            sum(map(len, parts[:i])),
            [SimpleNamespace(about=about, blocks=lambda n=n: iter([runs[n]])) for n in part],
        )
        for i, part in enumerate(parts)
    ]
    link_shards(folder, made)
    spec = SimpleNamespace(data_path=folder)
    stored = SimpleNamespace(metadata={})
    return SimpleNamespace(id="made", episode_indices=list(range(len(runs))), spec=spec, runs=runs, storage=stored)


def _plain(runs: list[Any], length: int, gamma: float, stride: int) -> list[dict[str, Any]]:
    """The windows of all steps, one by one."""
    items = []
    for rows in runs:
        steps = len(rows) - 1
        returns = [0.0]
        for reward in rows["reward"][:-1][::-1].tolist():
            returns.append(reward + gamma * returns[-1])
        returns = returns[:0:-1]
        summed = [float(rows["reward"][t : min(t + stride, steps)].sum()) for t in range(steps)]
        for last in range(steps):
            window = [t if t >= 0 else None for t in range(last - (length - 1) * stride, last + 1, stride)]
            items.append(
                {
                    "observations": [[0.0] * 8 if t is None else rows["observation"][t].tolist() for t in window],
                    "actions": [0 if t is None else int(rows["action"][t]) for t in window],
                    "rewards": [0.0 if t is None else summed[t] for t in window],
                    "returns_to_go": [0.0 if t is None else returns[t] for t in window],
                    "timesteps": [(t or 0) // stride for t in window],
                    "mask": [t is not None for t in window],
                    "missing": [t is not None and bool(rows["missing"][t]) for t in window],
                }
            )
    return items


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 9), st.integers(BLOCK - 2, BLOCK + 2)), min_size=1, max_size=5),
    length=st.integers(1, 6),
    gamma_stride=st.sampled_from([(1.0, 1), (0.99, 1), (0.5, 1), (0.0, 1), (1.0, 2), (1.0, 3), (1.0, 100)]),
    shards=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_windows_are_those_of_a_plain_implementation(
    lengths: list[int], length: int, gamma_stride: tuple[float, int], shards: int, seed: int
) -> None:
    gamma, stride = gamma_stride
    with TemporaryDirectory() as folder:
        made = _dataset(Path(folder), lengths, shards=shards, seed=seed)
        windows = Windows(made, length, gamma=gamma, stride=stride)
        expected = _plain(made.runs, length, gamma, stride)
        assert len(windows) == len(expected) == sum(lengths)
        order = np.random.default_rng(seed).permutation(len(windows))
        batch = windows.batch(order)
        for name, values in batch.items():
            wanted = torch.tensor([expected[i][name] for i in order], dtype=values.dtype)
            torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


def test_items_and_batches(tmp_path: Path) -> None:
    made = _dataset(tmp_path, [3 * BLOCK + 7, 1, 40])
    windows = Windows(made, 20)
    item = windows[25]
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in item.items()}
    assert shapes == {
        "observations": ((20, 8), torch.float32),
        "actions": ((20,), torch.int64),
        "rewards": ((20,), torch.float32),
        "returns_to_go": ((20,), torch.float32),
        "timesteps": ((20,), torch.int64),
        "mask": ((20,), torch.bool),
        "missing": ((20,), torch.bool),
    }
    batch = windows[[25, len(windows) - 1]]
    for name, values in batch.items():
        assert torch.equal(values[0], item[name])
        assert torch.equal(values[1], windows[len(windows) - 1][name])
    item["observations"][:] = 7  # an item is a copy: the file stays as it is
    assert (windows[25]["observations"] < 7).all()
    for bad in (-1, len(windows)):
        with pytest.raises(IndexError, match="indices of windows"):
            windows[bad]


def test_a_pickled_instance_opens_the_files_again(tmp_path: Path) -> None:
    windows = Windows(_dataset(tmp_path, [50, 30], shards=2), 4)
    data = pickle.dumps(windows)
    assert len(data) < 4000  # places, not rows
    again = pickle.loads(data)
    for name, values in again.batch(range(80)).items():
        assert torch.equal(values, windows.batch(range(80))[name])


def test_gaps_and_bad_arguments(tmp_path: Path) -> None:
    loose = _dataset(tmp_path, [5, 5], loose=True)
    with pytest.raises(L4SError, match=r"within episode 0, .* allow_gaps=True"):
        Windows(loose)
    assert len(Windows(loose, allow_gaps=True)) == 10
    for bad in ({"length": 0}, {"gamma": 1.1}, {"stride": 0}):
        with pytest.raises(L4SError, match="give 1 or more"):
            Windows(loose, **bad)
    with pytest.raises(L4SError, match="only gamma=1 is the same"):
        Windows(loose, gamma=0.9, stride=2, allow_gaps=True)


def _loaders(windows: Windows, workers: int) -> list[Any]:
    options: dict[str, Any] = {"num_workers": workers}
    if workers:
        options |= {"multiprocessing_context": "spawn"}
    sampler = BatchSampler(range(len(windows)), 16, drop_last=False)
    return [
        DataLoader(windows, batch_size=16, **options),
        DataLoader(windows, sampler=sampler, batch_size=None, **options),
    ]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_loaders(tmp_path: Path, workers: int) -> None:
    windows = Windows(_dataset(tmp_path, [30, 40, 1], shards=2), 5)
    for loader in _loaders(windows, workers):
        batches = list(loader)
        assert [len(batch["actions"]) for batch in batches] == [16, 16, 16, 16, 7]
        whole = windows.batch(range(71))
        for name, values in whole.items():
            assert torch.equal(torch.cat([batch[name] for batch in batches]), values)


def _changing(folder: Path) -> Windows:
    made = _dataset(folder, [100, 60])
    for rows in made.runs:
        rows["action"] = 0
    made.runs[0]["action"][[3, 50, 51]] = 1
    made.runs[1]["action"][[0, 40]] = 2
    parts = [SimpleNamespace(about={"consecutive": True}, blocks=lambda r=rows: iter([r])) for rows in made.runs]
    link_shards(folder, [write_shard(folder / shard_name(0), 0, parts)])
    return Windows(made, 5)


def test_the_sampler_draws_what_precedes_a_change(tmp_path: Path) -> None:
    windows = _changing(tmp_path)
    sampler = ActionChangeSampler(windows, before=5)
    # Changes at 3, 4, 50, 52 of the first episode, and at 1, 40, 41 of the second, which starts at 100.
    expected = {0, 1, 2, 3, *range(45, 50), *range(47, 52), 100, *range(135, 141)}
    assert set(sampler.indices.tolist()) == expected
    assert len(sampler) == len(expected)
    drawn = list(ActionChangeSampler(windows, num_samples=9000, seed=3))
    counts = Counter(drawn)
    assert set(counts) == expected
    mean = 9000 / len(expected)
    assert max(abs(count - mean) for count in counts.values()) < 5 * mean**0.5
    assert len(windows.batch(drawn[:50])["actions"]) == 50


def test_the_sampler_mixes_uniform_windows_in(tmp_path: Path) -> None:
    windows = _changing(tmp_path)
    chosen = set(ActionChangeSampler(windows).indices.tolist())
    drawn = list(ActionChangeSampler(windows, mix=0.4, num_samples=20_000))
    share = sum(index not in chosen for index in drawn) / len(drawn)
    assert share == pytest.approx(0.4 * (1 - len(chosen) / len(windows)), abs=0.02)
    uniform = Counter(ActionChangeSampler(windows, mix=1.0, num_samples=20_000))
    assert len(uniform) == len(windows)


def test_the_sampler_is_seeded_and_goes_on(tmp_path: Path) -> None:
    windows = _changing(tmp_path)
    one, same, other = (ActionChangeSampler(windows, mix=0.5, seed=seed) for seed in (1, 1, 2))
    first = list(one)
    assert first == list(same)
    assert first != list(other)
    assert list(one) != first
    assert list(one) != list(same)


def test_a_sampler_needs_changes(tmp_path: Path) -> None:
    made = _dataset(tmp_path, [1, 1])
    with pytest.raises(L4SError, match="no action changes"):
        ActionChangeSampler(Windows(made))
    for bad in ({"before": 0}, {"mix": 1.5}, {"num_samples": 0}):
        with pytest.raises(L4SError, match=r"give 1\+"):
            ActionChangeSampler(Windows(made), **bad)


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "l4s_gym.data.windows")
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[llm\]'"):
        import l4s_gym.data.windows  # noqa: F401
