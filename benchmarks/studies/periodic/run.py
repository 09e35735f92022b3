"""How often must an agent be asked? Rules at each 1st, 10th and 100th packet, and at each 16, 100 and 500 ms.

    python benchmarks/studies/periodic/run.py  # a minute; appends to results/periodic.json

On the board's traffic: the suites `test` and `shift` of protocol 2 in the size quick, scored as the board does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym import markdown
from l4s_gym.cli.arguments import command_line
from l4s_gym.evaluation import board, harness, ranking, statistics
from l4s_gym.evaluation.cells import MEASURES
from l4s_gym.evaluation.entry import Protocol, read_protocol
from l4s_gym.evaluation.origin import origin, write_run
from l4s_gym.evaluation.work import as_run

HERE: Final = Path(__file__).resolve().parent
NATIVE: Final = "native:dualpi2_rfc9332"
UNDER: Final = ("dualpi2_rfc9332", "dualpi2_freebsd")
"""What decides about the packets between two decisions: RFC 9332, or the board's, the testbed's kernel."""
PACKETS: Final = (1, 10, 100)
INTERVALS_MS: Final = (16, 100, 500)
RULES: Final = ("enqueue", "random", "threshold")
FORMS: Final = {
    "probabilities of 0": "zero:form=probability",
    "random probabilities": "random:form=probability",
    "native parameters": "zero:form=parameters",
    "random parameters": "random:form=parameters",
    "fixed parameters": f"{HERE / 'proportional.py'}:fixed",
    "proportional coupling": f"{HERE / 'proportional.py'}:proportional",
}
"""Agents of control intervals, all over RFC 9332."""
SUITES: Final = {"test": "Settings as in training (`test`)", "shift": "Unseen settings (`shift`)"}
"""NetLLM's pair: general and generalisation."""
COLUMNS: Final = (
    *(f"each {n}{'st' if n == 1 else 'th'} packet" for n in PACKETS),
    *(f"each {ms} ms" for ms in INTERVALS_MS),
)
SHOWN: Final = (
    ("utilisation", "util"),
    ("delay_c_p50_ms", "C p50 ms"),
    ("delay_c_p99_ms", "C p99 ms"),
    ("delay_l_p99_ms", "L p99 ms"),
    ("imbalance", "imbalance"),
)
Floats = npt.NDArray[np.float64]


def rows() -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Rule, column, spec, and how it is evaluated."""
    for aqm in UNDER:
        yield f"native {aqm}", "", f"native:{aqm}", {}
    for aqm in UNDER:
        for rule in RULES:
            for n, column in zip(PACKETS, COLUMNS, strict=False):
                yield f"{rule}, over {aqm}", column, rule, {"aqm": aqm, "decision_interval": n}
    for title, spec in FORMS.items():
        for ms, column in zip(INTERVALS_MS, COLUMNS[len(PACKETS) :], strict=True):
            yield title, column, spec, {"aqm": UNDER[0], "control_interval_ms": ms}


def score(returns: Floats, native: Floats, random: Floats) -> statistics.Interval:
    """The board's score, of returns (runs, scenarios)."""
    scaled = [statistics.normalised(each[None], random[None], native[None]) for each in (returns, native, random)]
    return statistics.bootstrap(scaled, ranking.scores, rng=np.random.default_rng(0))[0].interval()


def suite(protocol: Protocol, name: str) -> list[dict[str, Any]]:
    """Score and means of all rows in a suite."""
    seeds = protocol.seeds(name, "quick")
    chosen = [as_run(each, protocol.quick.seconds, {}) for of, each in protocol.cells("quick") if of == name]

    def play(who: str, how: dict[str, Any]) -> tuple[list[dict[str, Any]], Floats]:
        """Results, and returns (runs, scenarios)."""
        found = harness.evaluate_many(who, chosen, seeds=seeds, reward=protocol.reward, **how)
        returns = np.array([result.episode_return for result in found]).reshape(len(chosen), len(seeds))
        return [result.as_dict() for result in found], returns.T

    native, random = (play(who, {})[1] for who in (NATIVE, "random"))
    found = []
    for title, column, who, how in rows():
        results, returns = play(who, how)
        known = {measure: _known([MEASURES[measure](each) for each in results]) for measure, _ in SHOWN}
        means = {measure: float(np.mean(values)) for measure, values in known.items() if values}
        found.append({"rule": title, "asked": column, "score": score(returns, native, random), **means})
    return found


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """The tables."""
    lines = ["# How often an agent is asked", "", "Scores by `fair`, with 95 % intervals over the traffic."]
    for name, its in found.items():
        table: dict[str, dict[str, str]] = {}
        for row in its:
            table.setdefault(row["rule"], {})[row["asked"]] = board.span(row["score"])
        scores = [[title, *(by.get(column, "") for column in ("", *COLUMNS))] for title, by in table.items()]
        lines += ["", f"## {SUITES[name]}", "", *markdown.table(["rule", "alone", *COLUMNS], scores)]
        means = [
            [row["rule"], row["asked"] or "-", *(board.number(row[key]) if key in row else "-" for key, _ in SHOWN)]
            for row in its
        ]
        lines += ["", *markdown.table(["rule", "asked", *(title for _, title in SHOWN)], means)]
    return "\n".join(lines) + "\n"


def main(out: Path = HERE / "results") -> None:
    """Run all rows, and write the tables.

    Args:
        out: Folder of the results.
    """
    protocol = read_protocol()
    found = {name: suite(protocol, name) for name in SUITES}
    about = {"protocol": protocol.version, "reward": protocol.reward, "quick": protocol.quick}
    seeds = {name: protocol.seeds(name, "quick") for name in SUITES}
    write_run(out, "periodic", msgspec.to_builtins({**origin(), **about, "seeds": seeds, "rows": found}), page(found))


def _known(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


if __name__ == "__main__":
    command_line(main)
