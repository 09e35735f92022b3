"""The board as text: `leaderboard.md`, and what the comparisons with native DualPI2 come to in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from l4s_gym.evaluation.cells import NATIVE
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.ranking import MAIN, Refusal, Row, check, online, rows
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.sim.scenario import SUITES

__all__ = ["MAIN", "NATIVE", "Refusal", "Row", "check", "findings", "markdown", "rows"]

NONE: Final = "-"
COLUMNS: Final = (
    ("#", "Rank by the test score."),
    (
        "agent",
        "Name of the entry; (rule) is how its probabilities become decisions, /n that it decides each n-th packet.",
    ),
    (
        "test",
        "Normalised score in the suite test: 0 is random decisions, 100 native DualPI2 (RFC 9332). Interquartile mean "
        "over episodes, mean over trainings.",
    ),
    ("shift", "The same in the suite shift: rates, round-trip times, mixes and links that are not in train and test."),
    ("test - shift", "The generalisation gap."),
    (
        "beats native",
        "Probability of a better return than native DualPI2 on the same traffic, averaged over the scenarios of test.",
    ),
    (
        "C p50 / p99 ms",
        "Delay of Classic packets in the queue: median and 99th percentile of an episode, means over test.",
    ),
    ("L p50 / p99 ms", "The same of L4S packets."),
    ("util %", "Share of the link's capacity that was used, mean over test."),
    ("L/C", "Mean goodput of an L4S flow by that of a Classic flow, mean over the scenarios of test that have both."),
    ("decision us", "Median time of one decision for one environment; 'engine': decided inside the simulator."),
    ("parameters", "Of the model, and of these the trained ones."),
    ("training", "Trained agents, and the mean time of a training."),
)
CLEAR: Final = (
    ("delay_c_p50_ms", "median of the C delay", "ms", 1.0),
    ("delay_l_p99_ms", "99th percentile of the L delay", "ms", 1.0),
    ("delay_c_p99_ms", "99th percentile of the C delay", "ms", 1.0),
    ("utilisation", "utilisation", "points", 100.0),
    ("goodput_ratio", "L/C goodput", "", 1.0),
)
"""The differences that findings tell: metric, name, unit, scale."""
EXPECTED: Final = (
    ("random--uniform", "enqueue--default", "score", "whoever drops a third of all packets starves the senders"),
    ("enqueue--default", NATIVE, "score", "without signals only a full buffer stops the senders"),
    ("enqueue--default", "threshold--default", "score", "any signal of the delay is better than none"),
    ("threshold--default", NATIVE, "score", "a step has no integral: it signals too much or nothing"),
    (NATIVE, "threshold--default", "goodput_ratio", "two steps are not coupled: nothing makes the rates equal"),
    (NATIVE, "native--fifo", "delay_c_p99_ms", "the control law leaves no standing queue of the buffer's size"),
    (NATIVE, "native--pie", "delay_l_p99_ms", "in one queue, L4S packets wait behind Classic ones"),
)
"""What control theory says of rules and disciplines in `MAIN`: who has less than whom, of what, and why."""
UNSEEN: Final = (
    "The reward pays for what is delivered and for short queues; how the flows share the link it does not see."
)


def number(value: float) -> str:
    """A number of about three digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def span(interval: Interval | None, scale: float = 1.0, sign: str = "", digits: int = 1) -> str:
    """Value and interval, as `98.2 [97.0, 99.4]`; without the interval where it is not known."""
    if interval is None:
        return NONE
    value = f"{scale * interval.value:{sign}.{digits}f}"
    if interval.low is None or interval.high is None:
        return f"{value} [?]"
    return f"{value} [{scale * interval.low:{sign}.{digits}f}, {scale * interval.high:{sign}.{digits}f}]"


def who(row: Row) -> str:
    """Name of a row with rule and interval."""
    rule = f" ({row.rule})" if row.rule != "-" else ""
    return row.name + rule + (f" /{row.interval}" if row.interval > 1 else "")


def _cells(row: Row, rank: int | None) -> list[str]:
    """A row of the table."""
    metrics = row.metrics.get(MAIN, {})

    def mean(name: str, scale: float = 1.0) -> str:
        found = metrics.get(name)
        return NONE if found is None else number(scale * found.value)

    parameters = f"{row.parameters:,.0f}, {row.trainable_parameters:,.0f}" if row.parameters else "0"
    return [
        str(rank) if rank else NONE,
        who(row),
        "failed" if row.failed else span(row.scores.get("test")),
        span(row.scores.get("shift")),
        span(row.gap),
        span(row.improvement, digits=2),
        f"{mean('delay_c_p50_ms')} / {mean('delay_c_p99_ms')}",
        f"{mean('delay_l_p50_ms')} / {mean('delay_l_p99_ms')}",
        mean("utilisation", 100.0),
        mean("goodput_ratio"),
        NONE if row.failed else number(row.latency_us["p50"]) if row.latency_us else "engine",
        NONE if row.failed else parameters,
        f"{row.trainings} x {row.training_s:,.0f} s" if row.training_s is not None else NONE,
    ]


def _table(lines: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """A Markdown table whose columns stand below each other in a terminal too."""
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if k in left else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if k in left else "-" * (w - 1) + ":" for k, w in enumerate(widths)]
    return [line(lines[0]), line(rule), *map(line, lines[1:])]


def _lines(board: Sequence[Row]) -> list[list[str]]:
    """Head and rows of the table."""
    ranked = [row.name for row in board if MAIN in row.scores]
    cells = [_cells(row, ranked.index(row.name) + 1 if row.name in ranked else None) for row in board]
    return [[name for name, _ in COLUMNS], *cells]


def brief(board: Sequence[Row], columns: int = 9) -> str:
    """The first columns of the board, for a terminal."""
    return "\n".join(_table([cells[:columns] for cells in _lines(board)], left=(1,)))


def markdown(board: Sequence[Row], entries: Sequence[Entry] = (), refused: Sequence[Refusal] = ()) -> str:
    """The board as Markdown.

    Args:
        board: Rows, in order.
        entries: What they are made of, for the paragraph of how it was made.
        refused: Entries that are not on the board.
    """
    missing = [f"- {who(row)}: failed: `{row.failed}`" for row in board if row.failed]
    missing += [f"- {who(row)}: {text}." for row in board for text in row.lacks]
    missing += [f"- {each.name}: not on the board: {each.reason}." for each in refused]
    parts = [
        "# Leaderboard",
        brief(board, len(COLUMNS)),
        "Brackets hold 95 % intervals; [?] is one run only, of which nothing can be said; - is none.",
        "## Comparisons with native DualPI2",
        "\n".join(f"- {text}" for text in findings(board)) or "No agent has all its episodes.",
        "## Best of several configurations",
        _best_of(board),
        "## What is missing",
        "\n".join(missing) or "Nothing.",
        "## Columns",
        "\n".join(f"- **{name}**: {text}" for name, text in COLUMNS),
        "## How it was made",
        _made(entries),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _best_of(board: Sequence[Row]) -> str:
    """Expected Online Performance as a table."""
    found = online(board)
    if not found:
        return "No learned agent has several configurations."
    most = max(map(len, found.values()))
    head = ["agent", *(f"n = {n}" for n in range(1, most + 1))]
    lines = [[name, *map(number, scores), *[""] * (most - len(scores))] for name, scores in found.items()]
    text = (
        f"Expected score in `{MAIN}` of the best of n configurations that are tried online, drawn from those on the "
        "board (Kurenkov & Kolesnikov 2022)."
    )
    return "\n".join([text, "", *_table([head, *lines], left=(0,))])


def _made(entries: Sequence[Entry]) -> str:
    """Protocol, versions and episodes of the entries, and what the intervals are of."""
    text = (
        "Intervals are value +- t sqrt(variance), for the traffic by stratified bootstrap (strata: scenarios; the "
        "seeds of native DualPI2 and of random decisions are drawn together with the agent's), for the trainings by "
        "variance components. How often they hold the truth: `benchmarks/studies/intervals/results/intervals.json`."
    )
    if not entries:
        return text
    suites = {(r["suite"], r["scenario"]) for each in entries for r in each.results}
    seeds = {
        suite: sorted({r["seed"] for e in entries for r in e.results if r["suite"] == suite}) for suite, _ in suites
    }
    episodes = "; ".join(
        f"{suite}: {sum(name == suite for name, _ in suites)} scenarios, {len(found)} seeds from {found[0]}"
        for suite, found in sorted(seeds.items(), key=lambda item: SUITES.index(item[0]))
    )
    facts = [
        f"Size {', '.join(sorted({e.size for e in entries}))}; {episodes}.",
        f"Protocol {', '.join(sorted({e.protocol_digest[:12] for e in entries}))}; "
        f"l4s-gym {', '.join(sorted({e.environment.version for e in entries}))}; "
        f"simulator {', '.join(sorted({e.environment.simulator for e in entries}))}.",
        f"Datasets: {', '.join(sorted({f'{n} {s[:12]}' for e in entries for n, s in e.datasets.items()})) or 'none'}.",
    ]
    return "\n".join(f"- {fact}" for fact in facts) + "\n\n" + text


def verdict(over_native: Interval) -> str:
    """Whether a difference of scores is one."""
    if over_native.low is None or over_native.high is None:
        return "has one run only, which cannot be compared with"
    if over_native.low > 0.0:
        return "beats"
    return "falls short of" if over_native.high < 0.0 else "cannot be told from"


def order(board: Sequence[Row]) -> list[str]:
    """Whether rules and disciplines stand to each other as control theory says (`EXPECTED`); if not, what differs."""
    by_name = {row.name: row for row in board if MAIN in row.scores}
    units = {metric: (what, unit) for metric, what, unit, _ in CLEAR} | {"score": ("score", "")}
    found = []
    for *names, metric, why in EXPECTED:
        pair = [by_name[name] for name in names if name in by_name]
        values = [row.scores[MAIN] if metric == "score" else row.metrics[MAIN].get(metric) for row in pair]
        ends = [(each.low, each.high) for each in values if each and each.low is not None and each.high is not None]
        if len(ends) < 2:
            continue
        (low, high), (least, most) = ends
        held = "as expected" if high < least else "not as expected" if most < low else "cannot be told"
        what, unit = units[metric]
        seen = f"{span(values[0], digits=2)} and {span(values[1], digits=2)} {unit}".rstrip()
        text = f"{what[0].upper()}{what[1:]}, {names[0]} below {names[1]} ({why}): {held}, {seen}."
        other = next((row for row in pair if row.name != NATIVE), None)
        if held == "not as expected" and other and NATIVE in names:
            text += f" Compared with native, {other.name} has: {_clear(other, MAIN)}. {UNSEEN}"
        found.append(text)
    return found


def _clear(row: Row, suite: str) -> str:
    """What is clearly different from native DualPI2, and what has no value."""
    reasons, without = [], []
    for metric, what, unit, scale in CLEAR:
        found = row.differences[suite][metric]
        if found is None:
            without.append(what)
        elif found.sure:
            reasons.append(f"{what} {span(found, scale, '+', 2)} {unit}".rstrip())
    clear = "; ".join(reasons) or "no clear difference of what can be compared"
    starved = f"; no {', no '.join(without)}, for in some episodes no packet of a class came through" if without else ""
    return clear + starved


def _finding(row: Row) -> str:
    """One agent in words."""
    name = f"{who(row)}, {row.trainings} training{'s' if row.trainings > 1 else ''}"
    if row.interval > 1:
        name += f", deciding on {100.0 / row.interval:g} % of the packets (the scenario's own discipline on the others)"
    parts = []
    for suite in ("test", "shift"):
        if suite in row.scores:
            over = row.over_native[suite]
            parts.append(
                f"{suite}: {verdict(over)} native DualPI2 by score, {span(row.scores[suite])}, a difference of "
                f"{span(over, sign='+')}, better on the same traffic with probability "
                f"{span(row.improvements[suite], digits=2)}"
            )
    if not parts:
        return f"{name}: not all episodes are there."
    clear = f" In test, compared with native: {_clear(row, MAIN)}." if MAIN in row.scores else ""
    return f"{name}. {'; '.join(parts)}.{clear}"


def findings(board: Sequence[Row]) -> list[str]:
    """The order of rules and disciplines; whether each learned agent beats native DualPI2, how surely, and by what."""
    found = order(board)
    learned = [row for row in board if row.trainings and not row.failed]
    found += map(_finding, learned)
    if len(learned) > 1:
        count = sum(len(row.over_native.keys() & {"test", "shift"}) for row in learned)
        found.append(f"{count} comparisons at 95 % each: about one in twenty tells of a difference that is not there.")
    return found
