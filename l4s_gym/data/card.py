"""Cards of datasets: their content, measured from the stored files, as Markdown with a picture."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym import schema
from l4s_gym.data import minari_io
from l4s_gym.data.files import atomic_write
from l4s_gym.data.recipes import SIZES, Recipe
from l4s_gym.data.storage import INFOS, h5py, mapped
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS, PACKET
from l4s_gym.rewards import COMPONENTS
from l4s_gym.sim import fingerprint
from l4s_gym.sim.setup import REFERENCE_NS

LICENCE: Final = "CC BY 4.0"
FACTS, PICTURE, TEXT = "facts.json", "card.png", "card.md"
QUEUES: Final = ("C", "L")

_SIMULATED: Final = (
    "It is simulated, not measured; `benchmarks/studies/sim_to_real/run.py` compares the simulator with a real log."
)
_DELAY: Final = schema.OBSERVED.index("current_queue_delay")
_PROBABILITY: Final = schema.OBSERVED.index("drop_probability")
_MS: Final = schema.BY_NAME["current_queue_delay"].scale / 1000.0
REFERENCES_MS: Final = 1e-6 * np.array(REFERENCE_NS, np.float32)
"""What an observed delay of 1 is, of C and of L."""
_EDGES_MS: Final = np.concatenate([[0.0], np.geomspace(0.01, 10_000.0, 601)])
_QUANTILES: Final = np.linspace(0.0, 1.0, 101)
_POINTS: Final = 300


def _quantiles(counts: npt.NDArray[np.int64], edges: npt.NDArray[np.float64]) -> list[float]:
    """Return the values at `_QUANTILES` of a histogram: the upper edge of the bin, good to 2.3 %."""
    if not counts.sum():
        return []
    places = np.searchsorted(np.cumsum(counts), np.maximum(_QUANTILES * counts.sum(), 1))
    return [float(f"{edges[min(place, len(edges) - 1)]:.4g}") for place in places]


def facts(recipe: Recipe, size: str, folder: Path, scores: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measure the shards of a folder: counts, shares, distributions, curves; plain data for JSON."""
    shown = len(recipe.size(size).scenarios or recipe.scenarios) // 2
    return {
        "id": recipe.dataset_id(size),
        "simulator": fingerprint.FINGERPRINT,
        "seconds": recipe.size(size).seconds,
        **(_packet_facts(folder, shown) if recipe.form == PACKET else _interval_facts(folder, recipe.form)),
        "scores": dict(scores) if scores else None,
    }


def _episodes(folder: Path) -> Iterator[Any]:
    """Yield the episodes of the shards of a folder in order, each while its file is open."""
    for path in sorted(folder.glob("shard-*.hdf5")):
        with h5py().File(path, "r") as file:
            yield from sorted(file.values(), key=lambda group: int(group.attrs["id"]))


def _size(folder: Path) -> int:
    """Return the size of the shards, bytes."""
    return sum(path.stat().st_size for path in folder.glob("shard-*.hdf5"))


def _packet_facts(folder: Path, shown: int) -> dict[str, Any]:
    """Measure steps that are packets; `shown`: number of the episode that the picture shows."""
    actions, applied = np.zeros(3, np.int64), np.zeros(3, np.int64)
    delays = np.zeros((2, len(_EDGES_MS)), np.int64)
    sums, drawn, missing, steps = np.zeros(2), 0, 0, 0
    returns: list[float] = []
    rewards: list[npt.NDArray[np.float64]] = []
    example: dict[str, Any] = {}
    for episode in _episodes(folder):
        observed, reward = mapped(episode["observations"])[:-1], mapped(episode["rewards"])
        actions += np.bincount(mapped(episode["actions"]), minlength=3)
        applied += np.bincount(mapped(episode["infos/applied_action"])[1:], minlength=3)
        drawn += int(np.count_nonzero(mapped(episode["infos/decided_by"])[:-1]))
        missing += int(np.count_nonzero(mapped(episode["infos/missing"])[:-1]))
        ms = observed[:, _DELAY] * _MS
        for queue in (schema.CLASSIC, schema.L4S):
            bins = np.searchsorted(_EDGES_MS, ms[observed[:, 0] == queue])
            delays[queue] += np.bincount(np.minimum(bins, len(_EDGES_MS) - 1), minlength=len(_EDGES_MS))
        steps += len(reward)
        sums += reward.sum(), np.square(reward).sum()
        rewards.append(reward[:: max(len(reward) // 2000, 1)].copy())
        if len(returns) == shown:
            example = _over_time(episode, observed)
        returns.append(float(reward.sum()))
    return {
        "episodes": len(returns),
        "steps": steps,
        "bytes": _size(folder),
        "actions": actions.tolist(),
        "applied": applied.tolist(),
        "drawn": drawn,
        "missing": missing,
        "queue_steps": delays.sum(axis=1).tolist(),
        "delay_ms": {name: _quantiles(counts, _EDGES_MS) for name, counts in zip(QUEUES, delays, strict=True)},
        "reward": _reward_facts(steps, sums, rewards, returns),
        "example": example,
    }


def _reward_facts(
    steps: int, sums: npt.NDArray[np.float64], rewards: list[npt.NDArray[np.float64]], returns: list[float]
) -> dict[str, float]:
    """Return figures of the rewards, from the sums of them and of their squares, samples, and the episodes' returns."""
    mean = sums[0] / steps
    by_quantile = np.quantile(np.concatenate(rewards), (0.05, 0.5, 0.95))
    return {
        "mean": mean,
        "sd": float(np.sqrt(max(sums[1] / steps - mean**2, 0.0))),
        **{f"p{q}": float(value) for q, value in zip((5, 50, 95), by_quantile, strict=True)},
        "return_mean": float(np.mean(returns)),
        "return_min": min(returns),
        "return_max": max(returns),
    }


def _interval_facts(folder: Path, form: str) -> dict[str, Any]:
    """Measure steps that are control intervals; the picture shows an episode whose action changes, if there is one."""
    rewards, actions, delays, notes = [], [], [], []
    for episode in _episodes(folder):
        rewards.append(mapped(episode["rewards"]))
        actions.append(mapped(episode["actions"]))
        delays.append(mapped(episode["observations"])[1:, :2] * REFERENCES_MS)  # what the step brought
        notes.append(dict(episode.attrs))
    returns = [float(reward.sum()) for reward in rewards]
    flavours: dict[str, list[float]] = {}
    for note, earned in zip(notes, returns, strict=True):
        flavours.setdefault(f"{note['aqm']}, {note['flavour']}", []).append(earned)
    shown = next((i for i, note in enumerate(notes) if note["flavour"] == "changing"), 0)
    ends_s = 1e-3 * float(notes[shown]["control_interval_ms"]) * np.arange(1, len(delays[shown]) + 1)
    thin = max(len(ends_s) // _POINTS, 1)
    curves = {
        name: {"time_s": ends_s[::thin].round(3).tolist(), "delay_ms": column[::thin].round(3).tolist()}
        for name, column in zip(QUEUES, delays[shown].T.astype(np.float64), strict=True)
    }
    every, moved = np.concatenate(rewards), np.concatenate(actions)
    return {
        "episodes": len(returns),
        "steps": len(every),
        "bytes": _size(folder),
        "actions": {
            name: [float(f"{value:.4g}") for value in np.quantile(column, (0.05, 0.5, 0.95))]
            for name, column in zip(minari_io.action_names(form), moved.T, strict=True)
        },
        "flavours": {
            name: {"episodes": len(found), "return_mean": float(np.mean(found))} for name, found in flavours.items()
        },
        "delay_ms": {
            name: [float(f"{value:.4g}") for value in np.quantile(column, _QUANTILES)]
            for name, column in zip(QUEUES, np.concatenate(delays).T, strict=True)
        },
        "reward": _reward_facts(len(every), np.array([every.sum(), np.square(every).sum()]), [every], returns),
        "example": {"episode": shown, **{name: str(notes[shown][name]) for name in ("scenario", "aqm")}, **curves},
    }


def _over_time(episode: Any, observed: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Return the probability of each queue over the time of an episode, thinned."""
    time_s = mapped(episode["infos/time_us"])[:-1] * 1e-6
    curves: dict[str, Any] = {
        "episode": int(episode.attrs["id"]),
        "scenario": str(episode.attrs["scenario"]),
        "aqm": str(episode.attrs["aqm"]),
    }
    for queue, name in enumerate(QUEUES):
        index = np.flatnonzero(observed[:, 0] == queue)
        index = index[:: max(len(index) // _POINTS, 1)]
        curves[name] = {
            "time_s": [round(float(t), 3) for t in time_s[index]],
            "probability": [float(f"{p:.3g}") for p in observed[index, _PROBABILITY]],
        }
    return curves


def simulator_in(measured: Mapping[str, Any]) -> str:
    """Return the fingerprint of the simulator that made the measured dataset (`facts`)."""
    return str(measured.get("simulator", fingerprint.NONE))


def check_pictures() -> None:
    """Raise an error before the work if the card's picture cannot be drawn.

    Raises:
        L4SError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise L4SError("the card's picture is drawn with matplotlib: pip install 'l4s-gym[report]'")


def picture(by_size: Mapping[str, dict[str, Any]]) -> bytes:
    """Draw a PNG: distribution of the delay of both queues, and the probability over an episode's time."""
    check_pictures()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), dpi=90, layout="constrained")
    axes: Any = figure.subplots(1, 2)
    size = "full" if "full" in by_size else "small"
    shown = by_size[size]
    over_time = "probability" if "probability" in shown["example"]["C"] else "delay_ms"
    for name, color in zip(QUEUES, ("tab:orange", "tab:blue"), strict=True):
        if shown["delay_ms"][name]:
            axes[0].plot(np.maximum(shown["delay_ms"][name], 0.01), _QUANTILES, color=color, label=name)
        curve = shown["example"][name]
        axes[1].plot(curve["time_s"], curve[over_time], color=color, lw=0.8, label=name)
    of = "at the decision" if over_time == "probability" else "in an interval"
    axes[0].set(xscale="log", xlabel=f"delay {of} (ms; 0 is shown as 0.01)", ylabel="share of steps")
    axes[0].set_title(f"{shown['id'].rsplit('/', 1)[1]}", fontsize=9)
    axes[1].set(xlabel="time (s)", ylabel="base probability" if over_time == "probability" else "delay (ms)")
    example = shown["example"]
    axes[1].set_title(f"episode {example['episode']}: {example['scenario']}, {example['aqm']}", fontsize=9)
    for axis in axes:
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _row(name: str, values: list[str]) -> str:
    return f"| {name} | {' | '.join(values)} |"


def _share(counts: list[int]) -> str:
    total = max(sum(counts), 1)
    named = zip(schema.ACTIONS, counts, strict=True)
    return ", ".join(f"{name} {count:,} ({count / total:.2%})" for name, count in named)


def _delay(quantiles: list[float]) -> str:
    return " / ".join(f"{quantiles[q]:.3g}" for q in (50, 95, 99)) if quantiles else "-"


def _numbers(by_size: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the table of measured numbers, a column a size."""
    every = list(by_size.values())
    rewards = [f["reward"] for f in every]
    return [
        _row("", [f"`{f['id']}`" for f in every]),
        "|---" * (len(every) + 1) + "|",
        _row("episodes x simulated seconds", [f"{f['episodes']} x {f['seconds']:g}" for f in every]),
        _row("steps", [f"{f['steps']:,}" for f in every]),
        _row("size", [f"{f['bytes'] / 1e6:,.1f} MB" for f in every]),
        *(_packet_rows(every) if "applied" in every[0] else _interval_rows(every)),
        _row("delay of C, p50 / p95 / p99, ms", [_delay(f["delay_ms"]["C"]) for f in every]),
        _row("delay of L, p50 / p95 / p99, ms", [_delay(f["delay_ms"]["L"]) for f in every]),
        _row("reward of a step, mean (sd)", [f"{r['mean']:.4g} ({r['sd']:.4g})" for r in rewards]),
        _row("reward, p5 / p50 / p95", [f"{r['p5']:.4g} / {r['p50']:.4g} / {r['p95']:.4g}" for r in rewards]),
        _row(
            "return of an episode, mean (range)",
            [f"{r['return_mean']:.2f} ({r['return_min']:.2f} to {r['return_max']:.2f})" for r in rewards],
        ),
        _row("fingerprint of the simulator", [simulator_in(f) for f in every]),
    ]


def _packet_rows(every: list[dict[str, Any]]) -> list[str]:
    """Return the rows that only packets have."""
    steps = [max(f["steps"], 1) for f in every]
    return [
        _row("decided", [_share(f["actions"]) for f in every]),
        _row("applied", [_share(f["applied"]) for f in every]),
        _row("drawn at random", [f"{f['drawn'] / n:.2%}" for f, n in zip(every, steps, strict=True)]),
        _row("steps of L", [f"{f['queue_steps'][1] / n:.1%}" for f, n in zip(every, steps, strict=True)]),
        _row("accumulated probability missing", [f"{f['missing'] / n:.2%}" for f, n in zip(every, steps, strict=True)]),
    ]


def _interval_rows(every: list[dict[str, Any]]) -> list[str]:
    """Return the rows that only control intervals have."""
    names = list(dict.fromkeys(name for f in every for name in f["flavours"]))
    found = {name: [f["flavours"].get(name, {"episodes": 0, "return_mean": 0.0}) for f in every] for name in names}
    return [
        *(
            _row(
                f"action `{name}`, p5 / p50 / p95", [" / ".join(f"{q:.3g}" for q in f["actions"][name]) for f in every]
            )
            for name in every[0]["actions"]
        ),
        *(
            _row(
                f"{name}: episodes, mean return", [f"{each['episodes']}, {each['return_mean']:.2f}" for each in columns]
            )
            for name, columns in found.items()
        ),
    ]


_SCORES: Final = {
    "random": "random decision for each packet (0)",
    "native": "native DualPI2 of RFC 9332 (100)",
    "random_actions": "random action for each control interval",
}


def _score_lines(recipe: Recipe, by_size: Mapping[str, dict[str, Any]]) -> list[str]:
    scores = next((f["scores"] for f in by_size.values() if f["scores"]), None)
    if scores is None:
        return ["Not measured."]
    shown = {name: ", ".join(f"{value:.2f}" for value in scores[name]) for name in scores if name in _SCORES}
    return [
        f"Returns of the reward `{scores['reward']}` on `{scores['scenario']}`, seeds {scores['seeds']}:",
        "",
        *(f"- {_SCORES[name]}: {returns}" for name, returns in shown.items()),
        "",
        "A normalised score is 100 (return - mean of random) / (mean of native - mean of random).",
    ]


def _packet_lines(recipe: Recipe) -> list[str]:
    """Return how to read steps that are packets."""
    extra = ", ".join(f"`{name}`" for name in INFOS)
    return [
        f"- Reward: `{recipe.reward}`, from one packet's arrival to the next.",
        "- One step is one packet offered to the bottleneck, of either queue. An episode has T actions and T + 1",
        "  observations (the last packet of a run is the final observation); it is truncated, never terminated.",
        f"- Observation: {', '.join(f'`{name}`' for name in schema.OBSERVED)}, as known *before* the decision, scaled",
        "  as in the environment. Actions: 0 enqueue, 1 drop, 2 mark, as *decided*.",
        f"- Infos, T + 1 each: {extra}. `applied_action` at t + 1 tells what became of action t; the `logged_` ones",
        "  are as the kernel prints them, after the decision, and give it away: keep them out of the features.",
    ]


def _interval_lines(recipe: Recipe) -> list[str]:
    """Return how to read steps that are control intervals."""
    names = ", ".join(f"`{name}`" for name in minari_io.action_names(recipe.form))
    parts = ", ".join(f"`{name}`" for name in COMPONENTS)
    return [
        f"- Reward: `{recipe.reward}`, in the interval.",
        f"- One step is a control interval of {recipe.control_interval_ms:g} ms. An episode has T actions and T + 1",
        "  observations; it is truncated, never terminated.",
        f"- Observation and action ({names}): as the page of `{FORMS[recipe.form].env_id}` says, in float32.",
        "- `plain`: the idle action, which changes nothing; `constant`: another one throughout; `changing`: drawn",
        "  again at random times. The delays here are means of an interval.",
        f"- Infos, T + 1 each: `components`, a group of {parts}; those at t + 1 are of action t.",
        "  A weighted sum of them is the reward under other weights.",
        "- `scenario_json`, `aqm`, `seed` and `control_interval_ms` of an episode's metadata make its environment",
        "  (`l4s_gym.data.intervals.environment`), in which the actions give the same observations and rewards again.",
    ]


def render(recipe: Recipe, by_size: Mapping[str, dict[str, Any]]) -> str:
    """Return the card as Markdown."""
    an_id = next(iter(by_size.values()))["id"]
    lines = [
        f"# {recipe.title}",
        "",
        recipe.description,
        "",
        "```python",
        "import minari",
        "",
        f'dataset = minari.load_dataset("{an_id}")  # download=True where it is published',
        "env = dataset.recover_environment(eval_env=True)",
        "```",
        "",
        f"![delay and probability]({PICTURE})",
        "",
        "## What is in it",
        *_numbers(by_size),
        "",
        f"- Scenarios: {', '.join(f'`{name}`' for name in recipe.scenarios)}.",
        f"- Behaviour: {', '.join(f'`{name}`' for name in recipe.behaviour_names())}; taken in turn, each episode has "
        "its scenario, discipline and seed in its metadata.",
        *(_packet_lines(recipe) if recipe.form == PACKET else _interval_lines(recipe)),
        "",
        "## Reference scores",
        *_score_lines(recipe, by_size),
        "",
        "## Known faults",
        *(f"- {fault}" for fault in (*recipe.faults, _SIMULATED)),
        "",
        "## Licence and checksums",
        f"{LICENCE}. SHA-256 of each file: `SHA256SUMS` beside this card, with paths from `$MINARI_DATASETS_PATH`. The "
        "same recipe, simulator, and version of HDF5 give the same bytes.",
        "",
    ]
    return "\n".join(lines)


def write(folder: Path, recipe: Recipe, by_size: Mapping[str, dict[str, Any]], name: str = "README.md") -> None:
    """Write the card and picture into a folder."""
    with atomic_write(folder / PICTURE) as file:
        file.write(picture(by_size))
    with atomic_write(folder / name) as file:
        file.write(render(recipe, by_size).encode())


def record(folder: Path, recipe: Recipe, size: str, measured: dict[str, Any], sums: list[str]) -> None:
    """Bring a recipe's folder up to date with a dataset that was built: card, picture, facts, checksums."""
    path = folder / FACTS
    known = json.loads(path.read_text()) if path.exists() else {}
    known[size] = measured
    by_size = {each: known[each] for each in SIZES if each in known}
    with atomic_write(path) as file:
        file.write((json.dumps(by_size, indent=1) + "\n").encode())
    write(folder, recipe, by_size, TEXT)
    listed = folder / "SHA256SUMS"
    kept = listed.read_text().splitlines() if listed.exists() else []
    kept = [line for line in kept if f"  {recipe.dataset_id(size)}/" not in line]
    with atomic_write(listed) as file:
        file.write("".join(f"{line}\n" for line in sorted([*kept, *sums], key=lambda line: line.split()[1])).encode())
