"""Figures 11 to 16: delay, reward and use of the link, native against LLM, in replays and in closed loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

import loops
import panels
from figure import Figure, Place
from generalisation import generalisation
from l4s_gym.data.pools import Rows, make_rows
from l4s_gym.evaluation.native import simulate
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS
from l4s_gym.sim.measure import CLASSES
from l4s_gym.sim.scenario import load
from loops import Loop
from replayed import ENQUEUE, LLM, RANDOM, Replay, as_pool, coarse, logged_rows, pool_agent, replays, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

Data = dict[str, Any]
Value = Callable[[Replay], Any]

_GROUP: Final = 10
_SHOWN_S: Final = 30.0
_TIME: Final = {"xlabel": "time (s)"}
_DECISION: Final = {"xlabel": "decision (means of 10)"}


# -- what is measured


def _replayed(place: Place, rows: Rows, intervals: Sequence[int], value: Value) -> Data:
    """The replays, and one value of each row visited."""
    agent, trained = pool_agent(place)
    found = replays(rows, agent, intervals, place.quick)
    who = {}
    for each in found:
        x = np.asarray(value(each))
        drawn = {"mean": float(x.mean()), "line": coarse(x, _GROUP), "quantiles": spread(x)}
        who[each.label] = each.about() | drawn
    counts = np.bincount(rows.records["action"][: len(found[0].visited)], minlength=len(ACTIONS)).tolist()
    same = {every: same_rows(found, every) for every in intervals}
    actions = dict(zip(ACTIONS, counts, strict=True))
    return {"rows": rows.source, "actions": actions, "agent": trained, "same": same, "who": who}


def _looped(place: Place, scenario: str, intervals: Sequence[int]) -> tuple[list[Loop], Data]:
    """The closed loops, and what they have in common with those of other figures."""
    found = loops.run(place, scenario, intervals)
    about = {"scenario": scenario, "seconds": found[0].seconds, "seeds": [r["seed"] for r in found[0].results]}
    about["weights"] = {loop.label: loop.entry.weights for loop in found if loop.entry.weights}
    experiments = {loop.label: msgspec.to_builtins(loop.entry.experiment) for loop in found}
    for each in experiments.values():
        del each["title"]  # it tells the leaderboard's backbone
    about["experiments"] = experiments
    about["decided"] = {loop.label: loop.decided() for loop in found}
    return found, about


def _mean_quantiles(loop: Loop, queue: str) -> list[float]:
    """Quantiles of the delay in a queue, ms: means over the seeds."""
    each = np.array([result["delay_quantiles"][queue] for result in loop.results])
    return [float(f"{x:.4g}") for x in each.mean(0)]


def _lines(loop: Loop, name: str, step_ms: float) -> Data:
    """The start of the time series of the first seed by queue, and their times, s."""
    line = loop.line(step_ms)
    values, step_s = getattr(line, name), line.step_ms * 1e-3
    shown = min(len(values[CLASSES[0]]), round(_SHOWN_S / step_s))
    times = [round((k + 1) * step_s, 3) for k in range(shown)]
    return {"time_s": times, **{queue: each[:shown] for queue, each in values.items()}}


def _curves(who: Mapping[str, Data]) -> dict[str, tuple[list[float], list[float | None]]]:
    """Lines of replays; who draws is left out, for there are enough."""
    shown = {label: each["line"] for label, each in who.items() if not label.startswith(RANDOM)}
    return {label: ([_GROUP * (k + 0.5) for k in range(len(y))], y) for label, y in shown.items()}


def _quantiles(who: Mapping[str, Data], *, random: bool = True) -> dict[str, list[float]]:
    return {label: each["quantiles"] for label, each in who.items() if random or not label.startswith(RANDOM)}


def _by_queue(who: Mapping[str, Data], name: str) -> dict[str, Any]:
    """By label and queue; of lines with their times."""
    found = {}
    for label, each in who.items():
        for queue in CLASSES:
            values = each[name]
            found[f"{label} {queue}"] = (values["time_s"], values[queue]) if "time_s" in values else values[queue]
    return found


def same_rows(found: Sequence[Replay], every: int) -> float:
    """Share of the decisions at which the LLM is at the same row as who always enqueues."""
    llm, other = (next(r.visited for r in found if (r.who, r.every) == (who, every)) for who in (LLM, ENQUEUE))
    n = min(len(llm), len(other))
    return float((llm[:n] == other[:n]).mean())


# -- figures 11 and 13


def delay_figure(place: Place, *, name: str, every: int) -> Figure:
    """Queue delay at one decision interval."""
    replay = _replayed(place, logged_rows(), (every,), lambda r: r.delay_ms)
    found, loop = _looped(place, loops.TESTBED, (every,))
    loop["who"] = {
        each.label: {
            "line": _lines(each, "delay_ms", 200.0),
            "quantiles": {queue: _mean_quantiles(each, queue) for queue in CLASSES},
            "mean_ms": {queue: each.values(loops.delay(queue, "mean")).tolist() for queue in CLASSES},
        }
        for each in found
    }
    data = {"replay": replay, "loop": loop}
    return Figure(
        name=name,
        data=data,
        draw=partial(_draw_delay, data=data),
        size=(11.0, 11.0),
    )


def _draw_delay(picture: Picture, data: Data) -> None:
    axes: Any = picture.subplots(3, 2)
    replay, loop = data["replay"]["who"], data["loop"]["who"]
    panels.lines(axes[0, 0], _curves(replay), **_DECISION, ylabel="delay + 10 ms (ms)", title=panels.LEFT)
    panels.boxes(axes[1, 0], _quantiles(replay), ylabel="delay + 10 ms (ms)")
    panels.cdf(axes[2, 0], _quantiles(replay, random=False), xlabel="delay + 10 ms (ms)")
    queues = _by_queue(loop, "quantiles")
    panels.lines(axes[0, 1], _by_queue(loop, "line"), **_TIME, ylabel="queue delay (ms)", title=panels.RIGHT)
    panels.boxes(axes[1, 1], queues, ylabel="queue delay (ms)")
    panels.cdf(axes[2, 1], queues, xlabel="queue delay (ms)")


# -- figure 12


def reward_figure(place: Place) -> Figure:
    """The paper's reward at both intervals."""
    replay = _replayed(place, logged_rows(), loops.INTERVALS, lambda r: r.reward)
    found, loop = _looped(place, loops.TESTBED, loops.INTERVALS)
    loop["who"] = {
        each.label: ({"reward": each.rewards(place.work).tolist()} if each.form == PACKET else {})
        | {"return": each.values(loops.RETURN).tolist()}
        for each in found
    }
    loop["reward"] = found[0].results[0]["reward"]
    data = {"replay": replay, "loop": loop}
    return Figure(
        name="12",
        data=data,
        draw=partial(_draw_reward, data=data),
        size=(12.0, 8.0),
    )


def _draw_reward(picture: Picture, data: Data) -> None:
    axes: Any = picture.subplots(2, 2)
    replay, loop = data["replay"]["who"], data["loop"]["who"]
    unit = "the paper's reward (B/us)"
    panels.lines(axes[0, 0], _curves(replay), **_DECISION, ylabel=unit, title=panels.LEFT)
    panels.boxes(axes[1, 0], _quantiles(replay), ylabel=unit)
    packets = {label: each["reward"] for label, each in loop.items() if "reward" in each}
    panels.means(axes[0, 1], packets, ylabel=f"mean of {unit}")
    axes[0, 1].set_title(f"{panels.RIGHT}; {axes[0, 1].get_title()}")
    panels.means(
        axes[1, 1],
        {label: each["return"] for label, each in loop.items()},
        ylabel=f"return (`{data['loop']['reward']}`)",
    )


# -- figures 14 to 16


def use_figure(place: Place, *, name: str, intervals: Sequence[int], scenario: str) -> Figure:
    """Use of the link, or what the authors take for it."""
    prague = scenario == loops.PRAGUE
    rows = _simulated(scenario, 4.0 if place.quick else 60.0) if prague else logged_rows()
    replay = _replayed(place, rows, intervals, lambda r: r.throughput)
    found, loop = _looped(place, scenario, intervals)
    loop["who"] = {
        each.label: {
            "line": _lines(each, "goodput_mbps", 1000.0),
            "utilisation": each.values(loops.utilisation).tolist(),
            "goodput_mbps": {queue: each.values(loops.goodput(queue)).tolist() for queue in CLASSES},
        }
        for each in found
    }
    data = {"replay": replay, "loop": loop}
    return Figure(
        name=name,
        data=data,
        draw=partial(_draw_use, data=data),
        size=(12.0, 11.0),
    )


def _simulated(scenario: str, seconds: float) -> Rows:
    """What the simulator logs of a scenario, with the fields of the pool."""
    run = simulate(load(scenario).replace(horizon_s=seconds), seed=0, log=True)
    return as_pool(make_rows(run.records, f"simulated log of {scenario}, seed 0"))


def _draw_use(picture: Picture, data: Data) -> None:
    axes: Any = picture.subplots(3, 2)
    replay, loop = data["replay"]["who"], data["loop"]["who"]
    unit = "the paper's throughput (Mbit/s)"
    panels.lines(axes[0, 0], _curves(replay), **_DECISION, ylabel=unit, title=panels.LEFT)
    panels.boxes(axes[1, 0], _quantiles(replay), ylabel=unit)
    panels.cdf(axes[2, 0], _quantiles(replay, random=False), xlabel=unit)
    panels.lines(axes[0, 1], _by_queue(loop, "line"), **_TIME, ylabel="goodput (Mbit/s)", title=panels.RIGHT)
    panels.means(
        axes[1, 1], {k: each["utilisation"] for k, each in loop.items()}, (0.0, 100.0), ylabel="utilisation (%)"
    )
    panels.means(axes[2, 1], _by_queue(loop, "goodput_mbps"), (0.0, np.inf), ylabel="goodput (Mbit/s)")


FIGURES: Final[dict[str, Callable[[Place], Figure]]] = {
    "11": partial(delay_figure, name="11", every=10),
    "12": reward_figure,
    "13": partial(delay_figure, name="13", every=100),
    "14": partial(use_figure, name="14", intervals=(10,), scenario=loops.TESTBED),
    "15": partial(use_figure, name="15", intervals=(100,), scenario=loops.TESTBED),
    "16": partial(use_figure, name="16", intervals=loops.INTERVALS, scenario=loops.PRAGUE),
    "generalisation": generalisation,
}
"""Name -> what makes it."""
