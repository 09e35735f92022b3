"""Training of the LLM agent: what it learns, what it must not see, and that a stopped run goes on as if it had not."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

for _name in ("torch", "transformers", "peft", "accelerate", "h5py", "minari"):
    pytest.importorskip(_name, reason=f"needs {_name}: pip install 'l4s-gym[llm,data]'")

import torch  # noqa: E402

from l4s_gym import L4SError  # noqa: E402
from l4s_gym.agents.imbalance import Imbalance  # noqa: E402
from l4s_gym.agents.llm import saving  # noqa: E402
from l4s_gym.agents.llm.agent import open_agent  # noqa: E402
from l4s_gym.agents.llm.data import Corpus, Correction, logits_of, tensors  # noqa: E402
from l4s_gym.agents.llm.pretrained import weights  # noqa: E402
from l4s_gym.agents.llm.settings import TrainConfig, settings  # noqa: E402
from l4s_gym.agents.llm.text import TextAgent  # noqa: E402
from l4s_gym.agents.llm.train import RESULT, Trainer, sequence_loss, train, trained  # noqa: E402
from l4s_gym.agents.training import load_config  # noqa: E402
from l4s_gym.data.minari_io import schema_metadata  # noqa: E402
from l4s_gym.tables import convert  # noqa: E402
from tests.agents.llm.toys import MODEL, TRAIN, by_chance, by_feature, config, dataset, seldom, store  # noqa: E402

ROOT = Path(__file__).parents[3]
LOG3 = float(np.log(3.0))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Any:
    """On the CPU, where sums are the same each time; small models are slower on more threads."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four runs, of which the delay tells the action."""
    return dataset(tmp_path_factory.mktemp("small"), [60, 50, 70, 40], by_feature)


def corpus(sources: Any, gamma: float = 1.0, **changes: Any) -> Corpus:
    return Corpus(sources, convert(TrainConfig, TRAIN | changes, "train"), gamma)


# -- what is learnt


def test_what_can_be_known_is_learnt(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", [1500] * 5, by_feature)
    torch.manual_seed(7)
    drawn = torch.rand(3)
    torch.manual_seed(7)
    lines: list[str] = []
    shares: list[float] = []
    given = config(steps=120, learning_rate=1e-2, eval_every=60)
    result = train(data, given, tmp_path / "out", progress=shares.append, say=lines.append)
    assert torch.equal(torch.rand(3), drawn)  # the caller's generator is left alone
    first, last = (entry["metrics"] for entry in result["history"])
    assert last["cross_entropy"] < 0.35
    assert last["cross_entropy"] < first["cross_entropy"]
    assert last["accuracy"] > 0.85
    assert last["majority"] < 0.55
    assert last["recall"]["drop"] is None
    assert shares == pytest.approx(np.arange(1, 121) / 120)
    assert len([line for line in lines if line.startswith("step ")]) == 2
    assert json.loads((tmp_path / "out" / RESULT).read_text()) == result
    for name in ("tokens_per_s", "peak_memory_bytes", "seconds", "parameters", "trainable_parameters"):
        assert result[name] > 0, name
    assert result["steps"] == 120
    assert not list((tmp_path / "out").glob("checkpoint*"))
    assert list((tmp_path / "out" / "logs").iterdir())


def test_the_label_does_not_reach_its_own_input(tmp_path: Path) -> None:
    """Actions by chance cannot be foreseen; those that repeat the one before can, from the tokens of earlier steps."""

    def repeats(observations: Any, rng: np.random.Generator) -> Any:
        return np.repeat(rng.integers(0, 3, len(observations) // 20 + 1), 20)[: len(observations)]

    losses = []
    for rule in (by_chance, repeats):
        data = dataset(tmp_path / rule.__name__, [1500] * 4, rule)
        given = config(steps=60, learning_rate=1e-2, held_out=0.25, eval_every=60)
        losses.append(train(data, given, tmp_path / f"out-{rule.__name__}")["metrics"]["cross_entropy"])
    assert losses[0] > LOG3 - 0.01
    assert losses[1] < 0.6


def test_logits_do_not_depend_on_labels_of_the_same_step_or_later(small: Any) -> None:
    trainer = Trainer(small, config())
    trainer.model.eval()
    batch = tensors(trainer.corpus.draw(0)[0], "cpu")
    step = TRAIN["length"] // 2
    changed = dict(batch)
    changed["actions"] = batch["actions"].clone()
    changed["actions"][:, step:] = (batch["actions"][:, step:] + 1) % 3
    with torch.no_grad():
        before, after = logits_of(trainer.model, batch), logits_of(trainer.model, changed)
    assert torch.equal(before[:, : step + 1], after[:, : step + 1])
    assert not torch.allclose(before[:, step + 1], after[:, step + 1])


# -- sequences


def test_sequences_never_straddle_runs(tmp_path: Path) -> None:
    lengths = [30, 7, 55, 12, 90, 3]

    def poisoned(observations: Any, rng: np.random.Generator) -> Any:
        runs = [len(observations)]
        observations[:, 7] = lengths.index(runs[0] - 1) / 10.0  # each run has its number
        return by_chance(observations, rng)

    found = corpus(dataset(tmp_path, lengths, poisoned), held_out=0.34, imbalance={"kind": "sample"})
    (part,) = found.parts
    train_runs, held_runs = set(part.train[:, 0].tolist()), set(part.held[:, 0].tolist())
    assert len(held_runs) == 2
    assert not train_runs & held_runs

    def runs_of(batch: Any) -> set[int]:
        seen = set()
        for row, mask in zip(batch["observations"][..., 7], batch["mask"], strict=True):
            numbers = {round(float(value) * 10) for value in row[mask]}
            assert len(numbers) == 1
            seen |= numbers
            assert (row[~mask] == 0).all()
        return seen

    drawn = set().union(*(runs_of(found.draw(step)[0]) for step in range(40)))
    assert drawn == train_runs
    looked: dict[int, list[int]] = {}
    for batch, new in found.held_out(4):
        assert runs_of(batch) <= held_runs
        for row, steps, chosen in zip(batch["observations"], batch["timesteps"], new, strict=True):
            looked.setdefault(round(float(row[-1, 7]) * 10), []).extend(steps[chosen].tolist())
    assert {run: sorted(steps) for run, steps in looked.items()} == {r: list(range(lengths[r])) for r in held_runs}


def test_of_a_single_run_the_end_is_held_out(tmp_path: Path) -> None:
    found = corpus(dataset(tmp_path, [100], by_chance), held_out=0.2)
    (part,) = found.parts
    assert part.train.tolist() == [[0, 0, 80]]
    assert part.held.tolist() == [[0, 80, 100]]
    assert max(int(found.draw(step)[0]["timesteps"].max()) for step in range(50)) == 79
    looked = [int(t) for batch, new in found.held_out(4) for t in batch["timesteps"][new]]
    assert sorted(looked) == list(range(80, 100))
    assert found.imbalance.shares == pytest.approx(np.bincount(found.parts[0].windows.episode_actions(0)[:80]) / 80)


def test_a_stride_looks_at_every_nth_held_out_step(tmp_path: Path) -> None:
    """And rare actions stand in the sequences that are drawn around them."""
    found = corpus(dataset(tmp_path / "single", [100], by_chance), held_out=0.2, decision_interval=3)
    looked = [int(t) for batch, new in found.held_out(4) for t in batch["timesteps"][new]]
    assert looked == [step // 3 for step in range(80, 100, 3)]
    runs = corpus(dataset(tmp_path / "runs", [50, 61], by_chance), held_out=0.5, decision_interval=4)
    held = int(runs.parts[0].windows.layout.steps[runs.parts[0].held[0, 0]])
    looked = [int(t) for batch, new in runs.held_out(4) for t in batch["timesteps"][new]]
    assert sorted(looked) == list(range(-(-held // 4)))

    def once(observations: Any, rng: np.random.Generator) -> Any:
        return np.where(np.arange(len(observations)) == 30, 2, 0)

    rare = corpus(
        dataset(tmp_path / "rare", [100, 100], once), decision_interval=5, imbalance={"kind": "sample", "power": 2.0}
    )
    drawn = np.concatenate([rare.draw(step)[0]["actions"] for step in range(5)])
    assert ((drawn == 2).sum(1) == 1).mean() > 0.9


def test_few_of_many_held_out_steps_are_looked_at(tmp_path: Path) -> None:
    found = corpus(dataset(tmp_path, [900, 800], by_chance), held_out=0.5, eval_steps=100)
    assert 80 <= sum(int(new.sum()) for _, new in found.held_out(16)) <= 120


def test_a_batch_depends_on_its_number_alone(small: Any) -> None:
    one, two = corpus(small), corpus(small)
    one.draw(0)
    for name, values in one.draw(5)[0].items():
        np.testing.assert_array_equal(values, two.draw(5)[0][name])
    assert not np.array_equal(one.draw(5)[0]["observations"], one.draw(6)[0]["observations"])
    assert not np.array_equal(one.draw(5)[0]["observations"], one.draw(5, process=1)[0]["observations"])


def test_datasets_are_mixed_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = {
        name: dataset(tmp_path / name, lengths, by_chance, name=name, f7=value)
        for name, lengths, value in (("a", [500, 400], 0.25), ("b", [30, 20], 0.75))
    }

    monkeypatch.setattr("l4s_gym.data.minari_io.load", by_name.__getitem__)
    found = corpus({"a": 3.0, "b": 1.0}, batch_size=50)
    drawn = np.concatenate([found.draw(step)[0]["observations"][:, -1, 7] for step in range(40)])
    assert abs((drawn < 0.5).mean() - 0.75) < 0.04  # 2,000 draws: 4 standard deviations
    assert [part.weight for part in found.parts] == [0.75, 0.25]
    for wrong in ({}, {"a": 0.0}, {"a": -1.0, "b": 2.0}):
        with pytest.raises(L4SError, match="weights of more than 0"):
            corpus(wrong)


def _with_metadata(data: Any, **metadata: Any) -> Any:
    return SimpleNamespace(
        **vars(data) | {"storage": SimpleNamespace(metadata=schema_metadata("balance", {}) | metadata)}
    )


def test_datasets_that_do_not_fit_are_refused(small: Any) -> None:
    balance = _with_metadata(small, reward="balance")
    power = SimpleNamespace(**vars(_with_metadata(small, reward="power")) | {"id": "other"})
    with pytest.raises(L4SError, match="different rewards cannot be mixed"):
        corpus([balance, power])
    with pytest.raises(L4SError, match="schema_version is 0"):
        corpus(_with_metadata(small, schema_version=0))


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    def damaged(observations: Any, rng: np.random.Generator) -> Any:
        observations[:, 5] = np.nan
        return by_chance(observations, rng)

    with pytest.raises(L4SError, match="observations are not all finite"):
        train(dataset(tmp_path / "data", [40, 40], damaged), config(), tmp_path / "out")
    data = dataset(tmp_path / "more", [40, 40, 40], by_chance)
    with pytest.raises(L4SError, match="loss or its gradient is not finite"):
        train(data, config(learning_rate=1e30, warmup=0), tmp_path / "wild")


def test_returns(small: Any) -> None:
    """The number of a run, from 1, is the reward of each of its steps."""
    found = corpus(small, held_out=0.0)
    assert sorted(found.returns) == sorted(np.array([60, 50, 70, 40]) * [1, 2, 3, 4])
    assert (found.low, found.high, found.scale) == (1.0, 210.0, 210.0)
    discounted = corpus(small, gamma=0.5, held_out=0.0)
    assert discounted.returns == pytest.approx([2, 4, 6, 8], rel=1e-6)


# -- rare actions

P = np.array([0.90, 0.03, 0.07])


@pytest.mark.parametrize("kind", ["none", "weights", "focal"])
@pytest.mark.parametrize("given", [P, np.array([0.5, 0.1, 0.4])])
def test_the_shift_of_a_loss_is_undone(kind: str, given: npt.NDArray[np.float64]) -> None:
    """The best logits for a known distribution are found by descent; the correction gives the distribution back."""
    imbalance = Imbalance(kind, shares=tuple(P.tolist()))
    logits = torch.zeros(1, 1, 3, dtype=torch.float32, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = torch.zeros(())
        for action, share in enumerate(given.tolist()):
            label = torch.tensor([[action]])
            total = total + share * sequence_loss(logits, label, torch.ones(1, 1, dtype=torch.bool), imbalance)
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    learnt = torch.softmax(logits.detach().double(), -1).numpy()[0, 0]
    np.testing.assert_allclose(Correction.counted(imbalance, P)(learnt), given, atol=2e-3)
    off = Correction.counted(replace(imbalance, correction=False), P)
    np.testing.assert_allclose(off(learnt), learnt)
    if kind != "none":
        assert learnt[1] > given[1] * 1.2  # rare actions count more


def test_hidden_steps_are_no_part_of_the_loss() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    counted = torch.tensor([[True, False, True, True], [False, False, False, True]])
    actions = torch.randint(0, 3, (2, 4))
    loss = sequence_loss(logits, actions, counted, Imbalance())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(-1) > 0, counted)
    expected = -torch.log_softmax(logits, -1).gather(-1, actions[..., None])[..., 0][counted].sum()
    assert torch.allclose(loss, expected)


def test_sampling_draws_rare_actions_and_counts_them(tmp_path: Path) -> None:
    data = dataset(tmp_path, [3000, 3000], seldom)
    plain, rare = (corpus(data, batch_size=200, imbalance={"kind": kind, "power": 0.7}) for kind in ("none", "sample"))

    def counts(found: Corpus) -> npt.NDArray[np.float64]:
        batches = [found.draw(step)[0] for step in range(5)]
        labels = np.concatenate([batch["actions"][batch["mask"]] for batch in batches])
        return np.asarray(np.bincount(labels, minlength=3) / len(labels), np.float64)

    assert counts(plain) == pytest.approx(plain.shares, abs=0.01)
    drawn = counts(rare)
    assert drawn[1] > 1.5 * plain.shares[1]
    assert drawn[2] > 1.1 * plain.shares[2]
    shifted = drawn * P / plain.shares
    np.testing.assert_allclose(Correction.counted(rare.imbalance, drawn)(shifted / shifted.sum()), P, atol=1e-9)


@pytest.mark.slow
def test_weights_raise_the_recall_of_rare_actions(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", [1200] * 4, seldom)
    found = {}
    for name, imbalance in (("none", {}), ("weights", {"kind": "weights", "correction": False})):
        given = config(steps=40, learning_rate=1e-2, imbalance=imbalance, eval_every=40)
        found[name] = train(data, given, tmp_path / name)["metrics"]
    assert found["none"]["recall"]["mark"] == found["none"]["recall"]["drop"] == 0.0
    assert sum(found["weights"]["recall"][name] for name in ("mark", "drop")) > 0.3
    assert found["none"]["mean_probabilities"]["enqueue"] > found["weights"]["mean_probabilities"]["enqueue"] + 0.2


# -- stopping and going on

AWKWARD: dict[str, Any] = {
    "imbalance": {"kind": "sample"},
    "augment": {"noise": 0.1, "offset": 5, "dropout": 0.1},
    "accumulate": 2,
}
WITH_LORA: dict[str, Any] = {
    "model": MODEL | {"lora": {"rank": 2, "dropout": 0.2}, "backbone": MODEL["backbone"] | {"freeze": True}}
}


def _stop_at(share: float) -> Callable[[float], None]:
    """Ctrl-C once so much is done."""

    def progress(done: float) -> None:
        if done == share:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


def test_a_stopped_run_goes_on_as_if_it_had_not(small: Any, tmp_path: Path) -> None:
    given = config(**AWKWARD) | WITH_LORA
    whole = train(small, given, tmp_path / "whole")
    handler = signal.getsignal(signal.SIGINT)
    lines: list[str] = []
    for share in (3 / 30, 17 / 30):  # before the first regular checkpoint, and between two
        with pytest.raises(KeyboardInterrupt):
            train(small, given, tmp_path / "parts", resume=share > 0.2, progress=_stop_at(share), say=lines.append)
        assert signal.getsignal(signal.SIGINT) is handler
        assert [path.name for path in (tmp_path / "parts").iterdir() if path.name != "logs"] == ["checkpoint.pt"]
    stops = [line for line in lines if line.startswith("stopped")]
    assert [line.split(":")[0] for line in stops] == ["stopped after step 3", "stopped after step 17"]
    with pytest.raises(L4SError, match="--resume"):
        train(small, given, tmp_path / "parts")
    with pytest.raises(L4SError, match="another config"):
        train(small, config(**AWKWARD, weight_decay=0.2) | WITH_LORA, tmp_path / "parts", resume=True)
    parts = train(small, given, tmp_path / "parts", resume=True)
    one, two = (saving.load(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    for name in ("metrics", "history", "tokens", "correction", "returns"):
        assert parts[name] == whole[name], name


def test_a_killed_run_goes_on_from_its_last_checkpoint(small: Any, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(done: float) -> None:
        if done > 15 / 30:
            raise Killed

    with pytest.raises(Killed):
        train(small, config(), tmp_path / "out", progress=kill)
    lines: list[str] = []
    result = train(small, config(), tmp_path / "out", resume=True, say=lines.append)
    assert lines[0] == "goes on after step 10"
    assert result["metrics"] == train(small, config(), tmp_path / "whole")["metrics"]


def test_a_full_disk_leaves_the_last_checkpoint(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, written = torch.save, []

    def full(state: Any, file: Any) -> None:
        original(state, file)
        written.append(state["step"])
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(L4SError, match=r"No space left on device.*free some space"):
        train(small, config(), tmp_path / "out")
    assert written == [10, 20]
    monkeypatch.undo()
    lines: list[str] = []
    train(small, config(), tmp_path / "out", resume=True, say=lines.append)
    assert lines[0] == "goes on after step 10"


def test_a_full_disk_at_the_end_costs_nothing(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent cannot be written, but the checkpoint of the last step is there."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full)
        with pytest.raises(L4SError, match=r"cannot be written \(No space left on device\): free some space"):
            train(small, config(steps=3), tmp_path / "out")
    assert not list(tmp_path.glob(".*"))
    lines: list[str] = []
    assert train(small, config(steps=3), tmp_path / "out", resume=True, say=lines.append)["steps"] == 3
    assert lines[0] == "goes on after step 3"
    assert saving.load(tmp_path / "out").training["steps"] == 3


def test_a_missing_extra_is_named(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(L4SError, match=r"^accelerate: cannot be imported .*pip install 'l4s-gym\[llm\]'$"):
        train(small, config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_there_has_to_be_something_to_go_on_from(small: Any, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="no checkpoint"):
        train(small, config(), tmp_path / "out", resume=True)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(L4SError, match="is damaged"):
        train(small, config(), tmp_path / "out", resume=True)


# -- how it is trained


def test_parts_of_a_batch_add_up_to_its_gradient(small: Any) -> None:
    model = MODEL | {"backbone": MODEL["backbone"] | {"dropout": 0.0}}
    found = []
    for accumulate in (1, 3):
        given = config(accumulate=accumulate, learning_rate=1e-2, warmup=0) | {"model": model}
        trainer = Trainer(small, given)
        figures = [trainer.update() for _ in range(3)]
        found.append([figure["loss"] for figure in figures] + [figure["gradient_norm"] for figure in figures])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_frozen_weights_stay_and_are_not_in_the_checkpoint(small: Any) -> None:
    trainer = Trainer(small, config() | WITH_LORA)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    frozen = {name for name, p in trainer.model.named_parameters() if not p.requires_grad}
    assert frozen
    for _ in range(3):
        trainer.update()
    after = trainer.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not frozen & trained(trainer.model).keys()
    moved = {name for name, p in trainer.model.named_parameters() if p.requires_grad and p.grad is not None}
    assert any("lora_" in name for name in moved)
    assert sum(not torch.equal(before[name], after[name]) for name in moved) > 0.7 * len(moved)


def test_the_learning_rate(small: Any) -> None:
    rates = [TrainConfig(steps=100, warmup=10, final=0.1, learning_rate=1.0).rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 11)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[10:]) <= 0).all()
    trainer = Trainer(small, config())
    assert trainer.update()["learning_rate"] == pytest.approx(3e-3 / 4)


def test_bf16_trains_too(small: Any, tmp_path: Path) -> None:
    result = train(small, config(steps=2, precision="bf16"), tmp_path / "out")
    assert result["precision"] == "bf16"
    assert np.isfinite(result["metrics"]["cross_entropy"])


def test_missing_values_are_no_part_of_the_loss(tmp_path: Path) -> None:
    data = dataset(tmp_path / "data", [50, 60], by_chance)
    for run in data.runs:
        run["missing"][::2] = True
    store(tmp_path / "data", data.runs)
    trainer = Trainer(data, config())
    batch = tensors(trainer.corpus.draw(0)[0], "cpu")
    assert batch["missing"].any()
    assert torch.equal(trainer.counted(batch), batch["mask"] & ~batch["missing"])
    kept = Trainer(data, config(drop_missing=False))
    assert torch.equal(kept.counted(batch), batch["mask"])


def test_without_tensorboard_it_says_so(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    lines: list[str] = []
    train(small, config(steps=1), tmp_path / "out", say=lines.append)
    assert any("tensorboard is not installed" in line for line in lines)
    assert not (tmp_path / "out" / "logs").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"models": {}}, "did you mean 'model'"),
        ({"train": {"step": 3}}, "did you mean 'steps'"),
        ({"train": {"steps": 0}}, "train: steps: Expected `int` >= 1"),
        ({"train": {"steps": "many"}}, "train: steps: Expected `int`, got `str`"),
        ({"train": {"accumulate": 9, "batch_size": 8}}, "only 8 sequences"),
        ({"train": {"precision": "fp8"}}, "unknown precision 'fp8'"),
        ({"train": {"augment": {"noise": -1}}}, "noise and offset of 0 or more"),
        ({"train": {"augment": 3}}, "train: augment: Expected `object`, got `int`"),
        ({"train": {"imbalance": {"kind": "focus"}}}, "unknown kind of imbalance 'focus'"),
        ({"train": {"held_out": 1.0}}, "train: held_out: Expected `float` < 1.0"),
        (
            {"train": {"imbalance": {"kind": "sample", "powr": 1}}},
            "unknown setting of imbalance 'powr': did you mean 'power'",
        ),
        ({"model": {"layout": "fuzed"}}, "model"),
        ({"preset": "opt"}, "unknown preset 'opt'"),
        ({"model": 3}, "model = 3: give a table"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(L4SError, match=message):
        settings(given)


def test_a_preset_comes_last() -> None:
    given = {
        "model": {"window": 7, "backbone": {"hidden": 64}},
        "preset": "opt",
        "presets": {"opt": {"model": {"backbone": {"family": "opt"}}, "train": {"steps": 5}}, "t5": {}},
    }
    llm, training = settings(given)
    assert (llm.window, llm.backbone.family, llm.backbone.hidden, training.steps) == (7, "opt", 64, 5)


def test_the_older_name_of_the_decision_interval_is_read() -> None:
    assert settings({"model": {}, "train": {"stride": 10}})[1].decision_interval == 10


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    "preset", ["", "gpt2", "opt", "llama", "t5", "smollm2", "smollm2-shape", "paper", "paper-shape"]
)
def test_the_configuration_that_ships(preset: str, small: bool) -> None:
    path = ROOT / "agents" / "llm" / "config.toml"
    llm, training = settings(load_config("llm", path, small=small, settings=[f"preset={preset}"]))
    if preset.startswith("paper"):
        assert (llm.backbone.family, llm.lora.rank, llm.backbone.frozen, training.precision) == (
            "llama",
            128,
            True,
            "bf16",
        )
        assert bool(llm.backbone.pretrained) == (preset == "paper")
    elif preset == "smollm2":
        assert weights(llm.backbone.pretrained) == "SmolLM2-135M-Instruct (pretrained)"
        assert llm.backbone.frozen and llm.lora.rank
    elif preset == "smollm2-shape":
        assert not llm.backbone.pretrained and llm.backbone.frozen and llm.lora.rank
        assert (llm.backbone.hidden, llm.backbone.layers) == (576, 6)
    else:
        assert llm.backbone.family == (preset or "gpt2")
        assert llm.backbone.hidden == (64 if small else 256)
    assert llm.window == 20
    assert training.length > llm.window


@pytest.mark.slow
def test_the_script_trains(tmp_path: Path) -> None:
    """Two datasets by weights."""
    from l4s_gym.netllm import rl_collect

    env = {**os.environ, "MINARI_DATASETS_PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
        for name in ("one", "two"):
            rl_collect("steps", "native:pie", 2, f"l4s/dualpi2/{name}-v0", seconds=0.5)
    script = [sys.executable, str(ROOT / "agents" / "llm" / "train.py"), "--out", "out", "--small"]
    options = ["--dataset", "l4s/dualpi2/one-v0=3", "l4s/dualpi2/two-v0", "--set", "train.steps=3"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*script, *options, *more]
        return subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert "held out: cross-entropy" in done.stdout
    weights = [each["weight"] for each in json.loads((tmp_path / "out" / RESULT).read_text())["datasets"]]
    assert weights == [0.75, 0.25]
    done = run("train.stepz=4")
    assert (done.returncode, done.stderr) == (
        1,
        "error: unknown setting of train 'stepz': did you mean 'steps'? choose one of "
        + ", ".join(sorted(TrainConfig.__dataclass_fields__))
        + "\n",
    )


def test_a_head_that_writes_is_trained(small: Any, tmp_path: Path) -> None:
    """The answers become more probable; each prompt is of one step; the agent that is saved writes."""
    backbone = MODEL["backbone"] | {"positions": 200, "dropout": 0.0}
    given = config(steps=24, learning_rate=1e-2, batch_size=16, eval_every=12, eval_steps=40)
    given["model"] = MODEL | {"head": "text", "backbone": backbone}
    lines: list[str] = []
    result = train(small, given, tmp_path / "out", say=lines.append)
    first, last = (entry["metrics"] for entry in result["history"])
    assert 0 < first["valid"] < last["valid"] <= 1
    assert any(f"valid answers {100 * last['valid']:.2f} %" in line for line in lines)
    assert result["config"]["train"]["length"] == 1
    assert 120 < result["tokens"] / (24 * 16) < 200  # a prompt and the three answers
    agent = open_agent(tmp_path / "out", rule="argmax")
    assert isinstance(agent, TextAgent)
    assert (agent.cost()["parameters"], agent.target.value) == (result["parameters"], result["returns"]["target"])
    loaded = saving.load(tmp_path / "out").model.state_dict()
    assert any(name.endswith("lm_head.weight") for name in loaded)
    with pytest.raises(L4SError, match="cannot apply imbalance kind 'sample'"):
        Trainer(small, given | {"train": given["train"] | {"imbalance": {"kind": "sample"}}})
    for option in ({"dtype": "bf16"}, {"compile": True}):
        with pytest.raises(L4SError, match="not for an agent that writes"):
            open_agent(tmp_path / "out", **option)
    with pytest.raises(L4SError, match="rule of an agent that writes 'diffuse'"):
        open_agent(tmp_path / "out", rule="diffuse")
