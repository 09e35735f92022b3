"""How well logged decisions can be foreseen, on contiguous blocks that are held out in turn.

Neighbouring rows of a log are nearly equal, and the public pools repeat rows: held out are therefore whole blocks of
rows, each an episode of its own, so that no window reaches from one into another. Rows whose accumulated probability
before the decision is unknown, and rows that stand in two blocks, are left out for all models and readings alike: all
learn from, and are judged by, the same rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym.agents.metrics import SMALLEST, classification
from l4s_gym.data.audit import probabilities_of
from l4s_gym.data.behaviour import GUARD_BYTES, hit_probability
from l4s_gym.data.causal import causal_accumulated
from l4s_gym.data.pools import Rows
from l4s_gym.data.steps import REWARD, StepMaker, absent_features
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.schema import ACTIONS, ENQUEUE, MAX_PROB, OBSERVED

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

TABULAR: Final = ("majority", "logistic regression", "gradient boosting")
_ACCUMULATED: Final = OBSERVED.index("accumulated_probability")


def episode_of(blocks: Trajectory, number: int) -> Trajectory:
    """A block as an episode; nothing follows its last row, whose observation stands there once more."""
    block = blocks.select([number])
    return replace(block, observations=np.append(block.observations, block.observations[-1:], axis=0))


def block_of_rows(rows: int, blocks: int) -> Ints:
    """Number of the block of each row (T,): contiguous, and of equal size but for one row."""
    if not 2 <= blocks <= rows:
        raise L4SError(f"{blocks} blocks of {rows} rows: give 2 or more, and not more than there are rows")
    return np.searchsorted(np.arange(1, blocks) * rows // blocks, np.arange(rows), side="right").astype(np.int64)


def left_out(rows: Rows, blocks: int) -> dict[str, Bools]:
    """Rows (T,) that are left out, by reason: `unknown` before the decision, else `copied` into another block."""
    block = block_of_rows(len(rows), blocks)
    _, same = np.unique(rows.records, return_inverse=True)
    first, last = np.full(same.max() + 1, blocks), np.full(same.max() + 1, -1)
    np.minimum.at(first, same, block)
    np.maximum.at(last, same, block)
    unknown = np.isnan(causal_accumulated(rows))
    return {"unknown": unknown, "copied": (first < last)[same] & ~unknown}


def read_blocks(rows: Rows, blocks: int, *, as_logged: bool, keep: Bools | None = None) -> Trajectory:
    """Cut rows into blocks.

    Args:
        rows: Logged decisions.
        blocks: How many, of equal size before rows are left out.
        as_logged: Observe the fields as printed instead of those before the decision.
        keep: Rows (T,) that are kept; None: all but those of `left_out`.
    """
    if keep is None:
        keep = ~np.logical_or.reduce(list(left_out(rows, blocks).values()))
    steps = StepMaker(rows.present, as_logged=as_logged, source=rows.source).make(rows.records)[keep]
    return Trajectory(
        observations=np.ascontiguousarray(steps["observation"]),
        actions=steps["action"].astype(np.int64),
        rewards=steps["reward"].copy(),
        starts=_starts(block_of_rows(len(rows), blocks)[keep], blocks),
        consecutive=False,
        source=rows.source,
        absent=absent_features(rows.present, as_logged),
    )


def _starts(block: Ints, blocks: int) -> Ints:
    """First rows of the blocks, from the block of each row (T,), and T (blocks + 1,)."""
    return np.cumsum([0, *np.bincount(block, minlength=blocks)])


def ends_of_others(blocks: Trajectory, held: int, share: float = 0.2) -> Trajectory:
    """The blocks but one, each cut in two: even blocks to learn from, odd ones, their ends, to choose settings by."""
    others = blocks.select([number for number in range(len(blocks.starts) - 1) if number != held])
    number, size = others.run_of_step, np.diff(others.starts)
    place = np.arange(len(others)) - others.starts[number]
    late = place >= size[number] - np.maximum(np.round(size[number] * share), 1)
    return replace(others, starts=_starts(2 * number + late, 2 * len(size)))


# -- models that look at one row


def tabular(kind: str) -> Any:
    """A classifier of scikit-learn, of `TABULAR`; none of them draws random numbers on data of such a size.

    Raises:
        L4SError: There is none of this name, or scikit-learn is not installed.
    """
    if kind not in TABULAR:
        raise unknown("model", kind, TABULAR)
    names = ("dummy", "linear_model", "ensemble", "pipeline", "preprocessing")
    dummy, linear, ensemble, pipeline, preprocessing = (optional(f"sklearn.{name}", "data") for name in names)
    if kind == "majority":
        return dummy.DummyClassifier(strategy="prior")
    if kind == "gradient boosting":
        return ensemble.HistGradientBoostingClassifier(random_state=0)
    return pipeline.make_pipeline(preprocessing.StandardScaler(), linear.LogisticRegression(max_iter=5000))


def hold_out_each(blocks: Trajectory, predict: Callable[[Bools], Floats]) -> Floats:
    """Probabilities (T, 3), each row's from a model that did not see its block.

    Args:
        blocks: The rows.
        predict: From which rows (T,) are held out, the probabilities of those (n, 3).
    """
    found = np.empty((len(blocks.actions), len(ACTIONS)))
    of = blocks.run_of_step
    for block in range(len(blocks.starts) - 1):
        held = of == block
        found[held] = predict(held)
    return found


def tabular_probabilities(kind: str, values: npt.ArrayLike, blocks: Trajectory) -> Floats:
    """Probabilities (T, 3) of a classifier of `TABULAR` on features (T, d) of the rows, each block held out in turn."""
    x = np.asarray(values, np.float64)

    def predict(held: Bools) -> Floats:
        model = tabular(kind).fit(x[~held], blocks.actions[~held])
        return probabilities_of(model, x[held])

    return hold_out_each(blocks, predict)


def without_accumulated(blocks: Trajectory) -> Floats:
    """The features (T, 7) without the accumulated probability."""
    return np.delete(blocks.observations.astype(np.float64), _ACCUMULATED, axis=1)


def past_actions(blocks: Trajectory, count: int = 20) -> Floats:
    """The actions before each row (T, count), the last one first; NaN before the start of the block."""
    found, of = np.full((len(blocks), count), np.nan), blocks.run_of_step
    for back in range(1, count + 1):
        same = of[back:] == of[:-back]
        found[back:, back - 1][same] = blocks.actions[:-back][same]
    return found


def kernel_rule(rows: Rows, keep: Bools, blocks: Trajectory) -> Floats:
    """Probabilities (T, 3) of the testbed kernel's rule (see `l4s_gym.data.behaviour`), from what the kernel knew.

    Nothing is trained but how hits divide into drops and marks: as in the blocks that are not held out, since a row
    does not tell whether the packet may be marked. Of the two guards the one that looks at the delay before is left
    out: pools lack that field.

    Args:
        rows: All rows.
        keep: Which of them `blocks` has; the accumulated probability of these is known.
        blocks: Rows that were kept.
    """
    records = rows.records[keep]
    probability = records["drop_probability"].astype(np.float64)
    small = (records["length_in_bytes"] <= GUARD_BYTES) & ("length_in_bytes" in rows.present)
    hit = hit_probability(causal_accumulated(rows)[keep], probability, probability / MAX_PROB, small)

    def predict(held: Bools) -> Floats:
        counts = np.bincount(blocks.actions[~held], minlength=len(ACTIONS)).astype(np.float64)
        counts[ENQUEUE] = 0.0
        found: Floats = hit[held, None] * counts / max(counts.sum(), 1.0)
        found[:, ENQUEUE] = 1.0 - found.sum(axis=1)
        return found

    return hold_out_each(blocks, predict)


# -- agents


def dataset_ids(name: str, blocks: Trajectory) -> list[str]:
    """Ids of the datasets of `write_datasets`."""
    return [f"l4s/dualpi2/{name}-{block}-v0" for block in range(len(blocks.starts) - 1)]


def write_datasets(blocks: Trajectory, name: str) -> list[str]:
    """Each block as a Minari dataset of one episode; their ids, which `agent_probabilities` takes."""
    from l4s_gym.data import minari_io

    found = dataset_ids(name, blocks)
    for block, dataset in enumerate(found):
        about: minari_io.About = {
            "algorithm_name": "dualpi2_freebsd",
            "description": f"Block {block} of {len(found)} of {blocks.source}.",
            "reward": REWARD,
        }
        minari_io.create(dataset, [episode_of(blocks, block)], overwrite=True, **about)
    return found


def agent_probabilities(
    kind: str, config: Mapping[str, Any], blocks: Trajectory, held: Sequence[int], datasets: Sequence[str], folder: Path
) -> Floats:
    """Train an agent on all blocks but some, and ask it about those.

    An agent that looks back sees what was logged before in the block, and the return that the log reached.

    Args:
        kind: `bc`, `dt`, or `llm`.
        config: Of the training, as `l4s_gym.agents.training.load_config` gives it.
        blocks: The rows.
        held: The blocks that are held out.
        datasets: Of `write_datasets`; only `llm` reads them.
        folder: For the agent of `llm`; it is removed.

    Returns:
        Probabilities (n, 3) of the rows of these blocks.
    """
    others = [block for block in range(len(blocks.starts) - 1) if block not in held]
    test = blocks.select(held)
    every = np.arange(len(test))
    if kind != "llm":
        from l4s_gym.agents.training import learner

        chosen: Any = learner(kind)
        agent, _ = chosen.fit(blocks.select(others), chosen.configure(config))
        return np.asarray(agent.logged_probabilities(test, every), np.float64)
    from l4s_gym.agents.llm import agent as llm
    from l4s_gym.agents.llm.train import train

    shutil.rmtree(folder, ignore_errors=True)  # of a training that was stopped
    try:
        train([datasets[block] for block in others], config, folder)
        return np.asarray(llm.open_agent(folder).logged_probabilities(test, every), np.float64)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- figures, and how far they are certain


def figures(probabilities: Floats, actions: Ints, base: Floats) -> dict[str, float]:
    """The figures of one model.

    Args:
        probabilities: (T, 3).
        actions: What was decided (T,).
        base: Probabilities of the majority model (T, 3), to compare with on the same rows.

    Returns:
        Of `l4s_gym.agents.metrics.classification`: `accuracy`, `macro_f1`, `recall_*`, `cross_entropy`, `brier`,
        `ece` (mean over the actions); and what is better than `base`: `accuracy_gain`, `cross_entropy_gain`.
        NaN where an action does not occur.
    """
    found = classification(probabilities, actions)
    at = np.arange(len(actions))
    base_accuracy = float((base.argmax(axis=1) == actions).mean())
    return {
        "accuracy": found["accuracy"],
        "macro_f1": found["macro_f1"],
        **{f"recall_{name}": np.nan if value is None else value for name, value in found["recall"].items()},
        "cross_entropy": found["cross_entropy"],
        "brier": found["brier"],
        "ece": float(np.mean(list(found["ece"].values()))),
        "accuracy_gain": found["accuracy"] - base_accuracy,
        "cross_entropy_gain": float(-np.log(np.maximum(base[at, actions], SMALLEST)).mean()) - found["cross_entropy"],
    }


def resampled_rows(rows: int, length: int, rng: np.random.Generator) -> Ints:
    """Rows (T,) of a moving-block bootstrap: stretches of `length` rows; after the end comes the start."""
    starts = rng.integers(rows, size=-(-rows // length))
    return ((starts[:, None] + np.arange(length)).ravel()[:rows] % rows).astype(np.int64)


def with_intervals(
    probabilities: Floats, actions: Ints, base: Floats, *, length: int, draws: int, rng: np.random.Generator
) -> dict[str, Mapping[str, float]]:
    """`figures` with 95 % intervals of a bootstrap over stretches of rows and over seeds.

    Rows are not independent, so whole stretches are drawn; of each draw the figure is the mean over seeds that are
    drawn too. What another training set of this size would change is not in the intervals.

    Args:
        probabilities: Of each seed (S, T, 3).
        actions: What was decided (T,).
        base: As in `figures`.
        length: Rows of a stretch.
        draws: Of the bootstrap.
        rng: Generator of the draws.

    Returns:
        By figure `mean` over the seeds, `low` and `high` of the interval; without the recall of actions that do not
        occur.
    """
    seeds = len(probabilities)
    exact = [figures(p, actions, base) for p in probabilities]
    drawn: list[dict[str, float]] = []
    for _ in range(draws):
        rows = resampled_rows(len(actions), length, rng)
        times = np.bincount(rng.integers(seeds, size=seeds), minlength=seeds)
        each = [(n, figures(probabilities[s][rows], actions[rows], base[rows])) for s, n in enumerate(times) if n]
        drawn.append({name: sum(n * found[name] for n, found in each) / seeds for name in exact[0]})
    result: dict[str, Mapping[str, float]] = {}
    for name in (name for name, value in exact[0].items() if not np.isnan(value)):
        low, high = np.nanquantile([draw[name] for draw in drawn], [0.025, 0.975])
        result[name] = {"mean": float(np.mean([e[name] for e in exact])), "low": float(low), "high": float(high)}
    return result
