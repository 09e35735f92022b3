"""The board as tables: `leaderboard.md`, and the comparisons with native DualPI2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final, NamedTuple

from l4s_gym.evaluation.cells import NATIVE
from l4s_gym.evaluation.entry import Entry
from l4s_gym.evaluation.ranking import MAIN, Refusal, Row, check, online, rows
from l4s_gym.evaluation.statistics import Interval
from l4s_gym.markdown import table
from l4s_gym.sim.scenario import SUITES

__all__ = ["MAIN", "NATIVE", "Refusal", "Row", "check", "comparisons", "markdown", "rows"]

NONE: Final = "-"
COLUMNS: Final = (
    ("#", "Rank by the test score."),
    ("agent", "Name of the entry; (rule) is how its probabilities become decisions."),
    (
        "form",
        "What the agent decides: packets (/n: each n-th), or for intervals of so many milliseconds the probabilities "
        "of C and L, or the parameters of DualPI2; -: a discipline decides by itself.",
    ),
    (
        "test",
        "Normalised score in the suite test: 0 is random decisions, 100 native DualPI2 (RFC 9332). Interquartile mean "
        "over episodes, mean over trainings.",
    ),
    ("shift", "The same in the suite shift: rates, round-trip times, mixes and links that are not in train and test."),
    ("dyn", "The same in the suite dyn: rate, load or capacity vary."),
    (
        "C p50 / p99 ms",
        "Delay of Classic packets in the queue: median and 99th percentile of an episode, means over test.",
    ),
    ("L p50 / p99 ms", "The same of L4S packets."),
    ("util %", "Share of the link's capacity that was used, mean over test."),
    (
        "L/C",
        "Goodput of an L4S flow by that of a Classic flow, geometric mean over the scenarios of test that have both.",
    ),
    (
        "imbalance",
        "Mean of |ln(L/C)| over the same episodes, whichever class has more: 0 is equal shares, 0.69 a factor of two.",
    ),
    ("mean", "The score in test as the mean over episodes, which outliers move."),
    ("median", "The score in test of the median scenario."),
    (
        "beats native",
        "Probability of a better return than native DualPI2 on the same traffic, averaged over the scenarios of test.",
    ),
    ("test - shift", "The generalisation gap."),
    ("decision us", "Median time of one decision for one environment; 'engine': decided inside the simulator."),
    ("parameters", "Of the model, and of these the trained ones."),
    (
        "learned",
        "Class of the entry: offline (from logs and datasets), online (in closed loop), or none (not at all); of a "
        "language model also the weights that it started from.",
    ),
    ("training", "Trained agents, and the mean time of a training."),
)
FOLDED: Final = tuple(name for name, _ in COLUMNS).index("mean")
"""From this column on, they stand in a table that is folded."""
CLASSES: Final = {"none": "Not trained", "offline": "Trained offline", "online": "Trained online"}
DECIDED: Final = {"packet": "Packets", "probability": "Probabilities", "parameters": "Parameters"}
"""The forms, by what is decided."""
CLEAR: Final = (
    ("delay_c_p50_ms", "C p50, ms", 1.0),
    ("delay_c_p99_ms", "C p99, ms", 1.0),
    ("delay_l_p99_ms", "L p99, ms", 1.0),
    ("utilisation", "util, points", 100.0),
    ("imbalance", "imbalance", 1.0),
)
"""The measures whose differences are shown: metric, heading, scale."""
EXPECTED: Final = (
    ("random--uniform", "enqueue--default", "score", "whoever drops a third of all packets starves the senders"),
    ("enqueue--default", NATIVE, "score", "without signals only a full buffer stops the senders"),
    ("enqueue--default", "threshold--default", "score", "any signal of the delay is better than none"),
    ("threshold--default", NATIVE, "score", "a step has no integral: it signals too much or nothing"),
    (NATIVE, "threshold--default", "imbalance", "two steps are not coupled: nothing makes the rates equal"),
    (NATIVE, "native--fifo", "delay_c_p99_ms", "the control law leaves no standing queue of the buffer's size"),
    (NATIVE, "native--pie", "delay_l_p99_ms", "in one queue, L4S packets wait behind Classic ones"),
)
"""What control theory says of rules and disciplines in `MAIN`: who has less than whom, of what, and why."""

_TUNED: Final = "native--dualpi2_tuned"
_BEST: Final = "onestep--held"
CHANGES: Final = (
    ("law: another fixed setting", NATIVE, _TUNED),
    ("over that law: learning", _TUNED, _BEST),
    ("objective: imitation", _BEST, "bc_continuous--parameters"),
    ("objective: imitation, given the return", _BEST, "dt_continuous--parameters"),
    ("objective: implicit Q-learning", _BEST, "iql--parameters"),
    ("objective: conservative Q-learning", _BEST, "cql_continuous--parameters"),
    ("objective: TD3+BC", _BEST, "td3_bc--parameters"),
    ("data: a tenth of it", _BEST, "onestep--held-small"),
    ("as integers, for a kernel: perceptron", _BEST, "student--onestep-mlp"),
    ("as integers, for a kernel: linear", _BEST, "student--onestep-linear"),
    ("as integers, for a kernel: forest", _BEST, "student--onestep-forest"),
    ("as integers, for a kernel: tree", _BEST, "student--onestep-tree"),
    ("learner: SmolLM2 with LoRA", _BEST, "llm--smollm2-parameters"),
    ("pretraining: random weights", "llm--smollm2-parameters", "llm--random-parameters"),
    ("its student, as integers: perceptron", "llm--smollm2-parameters", "student--llm-mlp"),
    ("objective and data: imitation of `tuned`", "llm--smollm2-parameters", "llm--smollm2-parameters-imitation"),
    ("then online: evolution strategy", _BEST, "es--onestep"),
    ("online alone, over RFC 9332: evolution strategy", NATIVE, "es--parameters"),
    ("online alone, over RFC 9332: PPO", NATIVE, "ppo--parameters"),
    ("form: probabilities", "ppo--parameters", "ppo--probability"),
    ("form: packets", "ppo--parameters", "ppo--packet"),
)
"""What is changed, from which entry, to which."""


class Table(NamedTuple):
    """A table of the comparisons, and what to know when reading it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    @property
    def text(self) -> str:
        """The table as Markdown."""
        return "\n".join(table(self.head, self.rows, wide=True))


def number(value: float) -> str:
    """A number of about three digits."""
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def span(interval: Interval | None, scale: float = 1.0, sign: str = "", digits: int = 1) -> str:
    """Value and interval, as `98.2 [97.0, 99.4]`; without the interval where it is not known."""
    if interval is None:
        return NONE
    value = f"{scale * interval.value:{sign}z.{digits}f}"
    if interval.low is None or interval.high is None:
        return f"{value} [?]"
    return f"{value} [{scale * interval.low:{sign}z.{digits}f}, {scale * interval.high:{sign}z.{digits}f}]"


def who(row: Row) -> str:
    """Name of a row with rule and interval."""
    return row.name + (f" ({row.rule})" if row.rule != "-" else "")


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
        row.decides or NONE,
        "failed" if row.failed else span(row.scores.get("test")),
        span(row.scores.get("shift")),
        span(row.scores.get("dyn")),
        f"{mean('delay_c_p50_ms')} / {mean('delay_c_p99_ms')}",
        f"{mean('delay_l_p50_ms')} / {mean('delay_l_p99_ms')}",
        mean("utilisation", 100.0),
        mean("goodput_ratio"),
        mean("imbalance"),
        span(row.means.get(MAIN)),
        span(row.medians.get(MAIN)),
        span(row.improvement, digits=2),
        span(row.gap),
        NONE if row.failed else number(row.latency_us["p50"]) if row.latency_us else "engine",
        NONE if row.failed else parameters,
        row.how,
        f"{row.trainings} x {row.training_s:,.0f} s" if row.training_s is not None else NONE,
    ]


def _tables(board: Sequence[Row]) -> tuple[str, str]:
    """The board as a table of its first columns and one of the others."""
    ranked = [row.name for row in board if MAIN in row.scores]
    cells = [_cells(row, ranked.index(row.name) + 1 if row.name in ranked else None) for row in board]
    lines = [[name for name, _ in COLUMNS], *cells]
    without = () if any("dyn" in row.scores for row in board) else ("dyn",)
    first = [k for k, name in enumerate(lines[0][:FOLDED]) if name not in without]
    more = [1, *range(FOLDED, len(COLUMNS))]
    return (
        _drawn([[line[k] for k in first] for line in lines], left={1, 2}),
        _drawn([[line[k] for k in more] for line in lines], left={0}),
    )


def brief(board: Sequence[Row]) -> str:
    """The first columns of the board."""
    return _tables(board)[0]


def groups(board: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each of `CLASSES` and of `DECIDED`, by title; none of these where all rows are in one."""
    found: dict[str, list[Row]] = {}
    for titles, names in ((CLASSES, [row.learned for row in board]), (DECIDED, [row.form for row in board])):
        there = {
            title: [row for row, its in zip(board, names, strict=True) if its == name]
            for name, title in titles.items()
            if name in names
        }
        found |= there if len(there) > 1 else {}
    return found


def grouped(refused: Sequence[Refusal]) -> list[str]:
    """Who is not on the board and why, a line for each reason."""
    names: dict[str, list[str]] = {}
    for each in refused:
        names.setdefault(each.reason, []).append(each.name)
    return [f"{', '.join(sorted(several))}: not on the board: {reason}" for reason, several in names.items()]


def _drawn(lines: Sequence[Sequence[str]], left: Set[int]) -> str:
    """A table of numbers, but for some columns."""
    head, *rows = lines
    return "\n".join(table(head, rows, right=set(range(len(head))) - left, wide=True))


def oracle_line(scores: Mapping[str, Interval]) -> str:
    """The scores of the oracle in a sentence; empty without."""
    if not scores:
        return ""
    each = ", ".join(f"{suite} {span(score)}" for suite, score in scores.items())
    what = "the best static setting of DualPI2 (RFC 9332) for each scenario, which no agent is told"
    return f"Oracle (dotted lines in the report): {what}: {each}."


def markdown(
    board: Sequence[Row],
    entries: Sequence[Entry] = (),
    refused: Sequence[Refusal] = (),
    oracle: Mapping[str, Interval] = {},
) -> str:
    """The board as Markdown.

    Args:
        board: Rows, in order.
        entries: What they are made of, for the paragraph of how it was made.
        refused: Entries that are not on the board.
        oracle: Scores by suite of the best static setting for each scenario.
    """
    missing = [f"- {who(row)}: failed: `{row.failed}`" for row in board if row.failed]
    missing += [f"- {who(row)}: {text}." for row in board for text in row.lacks]
    missing += [f"- {line}." for line in grouped(refused)]
    first, more = _tables(board)
    sizes = sorted({each.size for each in entries} - {"standard"})
    parts = [
        "# Leaderboard" + "".join(f" of the size `{size}`" for size in sizes),
        first,
        "Brackets hold 95 % intervals; [?] is one run only, of which nothing can be said; - is none.",
        oracle_line(oracle),
        folded("More columns", more),
        *(folded(f"{title}, alone", brief(rows)) for title, rows in groups(board).items()),
        *(part for each in comparisons(board) for part in (f"## {each.title}", each.text, each.note)),
        "## Best of several configurations",
        _best_of(board),
        "## What is missing",
        "\n".join(missing) or "Nothing.",
        folded("What the columns mean", "\n".join(f"- **{name}**: {text}" for name, text in COLUMNS)),
        "## How it was made",
        _made(entries),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def folded(title: str, text: str) -> str:
    """A part of a page that opens on demand."""
    return f'<details markdown="1">\n<summary>{title}</summary>\n\n{text}\n\n</details>'


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
    return f"{text}\n\n{_drawn([head, *lines], left={0})}"


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
        f"Protocol {', '.join(sorted({f'{e.protocol} ({e.protocol_digest[:12]})' for e in entries}))}; "
        f"l4s-gym {', '.join(sorted({e.environment.version for e in entries}))}; "
        f"simulator {', '.join(sorted({e.environment.simulator for e in entries}))}.",
        f"Datasets: {', '.join(sorted({f'{n} {s[:12]}' for e in entries for n, s in e.datasets.items()})) or 'none'}.",
    ]
    return "\n".join(f"- {fact}" for fact in facts) + "\n\n" + text


def comparisons(board: Sequence[Row]) -> list[Table]:
    """Differences to native DualPI2, of one change, and to doing nothing; and whether control theory's order holds."""
    found = [_against_native(board), _changes(board), _idle(board), _order(board)]
    return [each for each in found if each.rows]


def _less(difference: Interval | None, scale: float = 1.0, digits: int = 1) -> str:
    """A difference, with a star where 0 is outside of its interval."""
    return span(difference, scale, "+", digits) + ("*" if difference and difference.sure else "")


def _differences(row: Row, other: Row) -> dict[str, Interval]:
    """The score of a row less that of another, in each suite that both have."""
    suites = [name for name in SUITES if name in row.over_native and name in other.over_native]
    return {name: row.over_native[name].less(other.over_native[name]) for name in suites}


def _compared(
    title: str, head: Sequence[str], rows: Sequence[tuple[Sequence[str], Mapping[str, Interval]]], note: str
) -> Table:
    """A table of differences by suite, with what stands before them."""
    suites = [name for name in SUITES if any(name in each for _, each in rows)]
    cells = [[*before, *(_less(each.get(name)) for name in suites)] for before, each in rows]
    return Table(title, [*head, *suites], cells, note)


def _scored(board: Sequence[Row]) -> dict[str, Row]:
    """The rows that have a score, by name."""
    return {row.name: row for row in board if MAIN in row.scores}


def _changes(board: Sequence[Row]) -> Table:
    """`CHANGES`, as far as the board has them."""
    by_name = _scored(board)
    rows = [
        ([what, old, new], _differences(by_name[new], by_name[old]))
        for what, old, new in CHANGES
        if {old, new} <= by_name.keys()
    ]
    note = "What one change does to the score, the rest being equal. A star: the interval leaves out 0."
    return _compared("What makes the difference", ["change", "from", "to"], rows, note)


def _idle(board: Sequence[Row]) -> Table:
    """Rows beside those that do nothing in their form."""
    by_name, rows = _scored(board), []
    for row in by_name.values():
        n = row.decision_interval
        under = row.aqm.removeprefix("dualpi2_") or "default"  # a discipline has a scheduler too
        idle = {
            "packet": [f"enqueue--{under}" if n == 1 else f"enqueue--every{n}"],
            "probability": ["zero--probability"],
            "parameters": ["zero--parameters", _TUNED],
        }.get(row.form, [])
        for name in idle if row.name not in idle else []:
            if name in by_name:
                found = _differences(row, by_name[name])
                verdict = "acts" if any(each.sure for each in found.values()) else "nothing shows"
                rows.append(([who(row), name, verdict], found))
    note = (
        "Score less that of an entry that does nothing in the same form: it enqueues each packet that it is asked "
        "about, sets no probability, or leaves the law its parameters, those of RFC 9332 or the tuned ones. Nothing "
        "shows where the interval holds 0 in every suite."
    )
    return _compared("Beside doing nothing", ["agent", "beside", "so it"], rows, note)


def _against_native(board: Sequence[Row]) -> Table:
    others = [row for row in board if MAIN in row.scores and row.name != NATIVE]
    dyn = any("dyn" in row.scores for row in others)

    rows = [
        [
            who(row),
            _less(row.over_native[MAIN]),
            *(_less(row.over_native.get(suite)) for suite in ("shift", "dyn")[: 1 + dyn]),
            *(_less(row.differences[MAIN][metric], scale, 2) for metric, _, scale in CLEAR),
        ]
        for row in others
    ]
    head = ["agent", "score, test", "score, shift", "score, dyn"][: 3 + dyn] + [title for _, title, _ in CLEAR]
    note = (
        "Differences on the same traffic, in test where nothing else is said. A star: the interval leaves out 0; of "
        "the others nothing can be told, and of the starred about one in twenty is none. -: in some episodes no packet "
        "of a class came through. The reward pays for use of the link times evenness of the flows, less the delays."
    )
    return Table("Differences to native DualPI2", head, rows, note)


def _order(board: Sequence[Row]) -> Table:
    """`EXPECTED`, as far as the board has it."""
    by_name = _scored(board)
    titles = {metric: title for metric, title, _ in CLEAR} | {"score": "score"}
    rows = []
    for *names, metric, why in EXPECTED:
        pair = [by_name[name] for name in names if name in by_name]
        values = [row.scores[MAIN] if metric == "score" else row.metrics[MAIN].get(metric) for row in pair]
        ends = [(each.low, each.high) for each in values if each and each.low is not None and each.high is not None]
        if len(ends) == 2:
            (low, high), (least, most) = ends
            held = "yes" if high < least else "no" if most < low else "cannot be told"
            rows.append([" < ".join(names), titles[metric], *(span(each, digits=2) for each in values), held, why])
    note = "What control theory says of rules and disciplines: who has less than whom, of what, and why."
    return Table("As expected?", ["expected", "of", "the first", "the second", "holds", "why"], rows, note)
