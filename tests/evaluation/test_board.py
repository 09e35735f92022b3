"""The board: what its figures are made of, what it refuses, and what it says of what is missing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from l4s_gym.errors import L4SError
from l4s_gym.evaluation import board, ranking, statistics
from l4s_gym.evaluation.board import Row
from l4s_gym.evaluation.entry import Entry
from tests.evaluation.conftest import PLAYERS, synthetic_entries


def rows(entries: Sequence[Entry]) -> dict[str, Row]:
    return {row.name: row for row in board.rows(entries, resamples=100)}


@pytest.fixture(scope="module")
def table(board_entries: list[Entry]) -> dict[str, Row]:
    return rows(board_entries)


def changed(entries: Sequence[Entry], name: str, **fields: object) -> list[Entry]:
    """The entries, one of them with other fields."""
    return [msgspec.structs.replace(each, **fields) if each.id == name else each for each in entries]


def returns(entry: Entry, suite: str, scenario: str) -> list[float]:
    return [r["episode_return"] for r in entry.results if (r["suite"], r["scenario"]) == (suite, scenario)]


def test_scores_are_by_random_and_native_of_the_same_scenario(
    board_entries: list[Entry], table: dict[str, Row]
) -> None:
    by_id = {entry.id: entry for entry in board_entries}
    native, random, pie = (by_id[name] for name in ("native--dualpi2_rfc9332", "random--uniform", "native--pie"))
    scaled: list[float] = []
    for scenario in {r["scenario"] for r in pie.results if r["suite"] == "test"}:
        low, high = (float(np.mean(returns(one, "test", scenario))) for one in (random, native))
        scaled += [100.0 * (value - low) / (high - low) for value in returns(pie, "test", scenario)]
    middle = sorted(scaled)[len(scaled) // 4 : len(scaled) - len(scaled) // 4]
    assert table["native--pie"].scores["test"].value == pytest.approx(np.mean(middle))
    assert table["native--dualpi2_rfc9332"].over_native["test"] == statistics.Interval(0.0, 0.0, 0.0)
    assert table["native--dualpi2_rfc9332"].improvement is None


def test_intervals_hold_what_the_model_was_made_of(table: dict[str, Row]) -> None:
    for player in PLAYERS:
        row = table[f"{player.agent}--{player.variant}"]
        gap = row.gap
        assert gap is not None and gap.low is not None and gap.high is not None
        assert gap.low - 1.0 <= -100.0 * player.shift <= gap.high + 1.0
        assert all(i.low is not None and i.low <= i.value for i in row.scores.values())
    assert table["native--pie"].improvement == pytest.approx(table["native--pie"].improvements["test"])
    assert table["native--fifo"].improvements["test"].value == 0.0


def test_rows_are_sorted_by_the_test_score_and_failed_ones_come_last(board_entries: list[Entry]) -> None:
    found = board.rows(board_entries, resamples=50)
    scores = [row.scores["test"].value for row in found if not row.failed]
    assert scores == sorted(scores, reverse=True)
    assert [row.name for row in found if row.failed] == [found[-1].name] == ["dt--crash"]
    assert found[-1].failed == "test grid-12m-20ms: ValueError: it is a model"
    assert not found[-1].scores


def test_a_row_depends_on_itself_and_the_references_alone(board_entries: list[Entry], table: dict[str, Row]) -> None:
    fewer = rows(board_entries[2::-1])
    assert set(fewer) == {"native--dualpi2_rfc9332", "random--uniform", "native--pie"}
    assert all(row == table[name] for name, row in fewer.items())


def test_missing_episodes_cost_the_suite_and_are_told(board_entries: list[Entry], table: dict[str, Row]) -> None:
    pie = next(entry for entry in board_entries if entry.id == "native--pie")
    without = [r for r in pie.results if not (r["suite"] == "test" and r["seed"] == 1002)]
    row = rows(changed(board_entries, pie.id, results=tuple(without)))["native--pie"]
    assert row.lacks == ("test: 4 of 20 episodes are missing",)
    assert "test" not in row.scores and "test" not in row.metrics
    assert row.gap is None and row.improvement is None
    assert row.scores["shift"].value == table["native--pie"].scores["shift"].value
    text = board.markdown(board.rows(changed(board_entries, pie.id, results=tuple(without)), resamples=50))
    assert "native--pie: test: 4 of 20 episodes are missing" in text


def test_metrics_are_means_over_the_scenarios_that_define_them(
    board_entries: list[Entry], table: dict[str, Row]
) -> None:
    pie = next(entry for entry in board_entries if entry.id == "native--pie")
    delays = [r["delay_ms"]["L"]["p99"] for r in pie.results if r["suite"] == "test"]
    found = table["native--pie"].metrics["test"]["delay_l_p99_ms"]
    assert found is not None and found.value == pytest.approx(np.mean(delays))
    # What native DualPI2 has and this one lacks (a class that starves) leaves no mean.
    scenario = pie.results[-1]["scenario"]

    def without_ratio(entry: Entry) -> Entry:
        results = [{**r, "goodput_ratio": None} if r["scenario"] == scenario else r for r in entry.results]
        return msgspec.structs.replace(entry, results=tuple(results))

    row = rows([without_ratio(entry) if entry is pie else entry for entry in board_entries])["native--pie"]
    assert row.metrics["shift"]["goodput_ratio"] is None
    assert row.lacks == ("shift: no goodput_ratio, imbalance in 5 of 20 episodes",)
    # A scenario that has no ratio for anybody is no part of the mean.
    ratio = rows([without_ratio(entry) for entry in board_entries])["native--pie"].metrics["shift"]["goodput_ratio"]
    rest = [r for r in pie.results if r["suite"] == "shift" and r["scenario"] != scenario]
    logs = np.log([r["goodput_ratio"] for r in rest])
    assert ratio is not None and ratio.value == pytest.approx(np.exp(np.mean(logs)))
    assert ratio.low is not None and ratio.low < ratio.value


def test_shares_that_are_unequal_both_ways_do_not_cancel(board_entries: list[Entry]) -> None:
    def ratios(*values: float) -> Row:
        """The row of an entry whose scenarios have these ratios in turn."""
        pie = next(entry for entry in board_entries if entry.id == "native--pie")
        names = sorted({r["scenario"] for r in pie.results})
        by_name = {name: values[k % len(values)] for k, name in enumerate(names)}
        results = [{**r, "goodput_ratio": by_name[r["scenario"]]} for r in pie.results]
        return rows(changed(board_entries, pie.id, results=tuple(results)))["native--pie"]

    def values(row: Row) -> list[float]:
        found = [row.metrics["test"][name] for name in ("goodput_ratio", "imbalance")]
        return [each.value for each in found if each is not None]

    assert values(ratios(0.25, 4.0)) == pytest.approx([1.0, np.log(4.0)])
    assert values(ratios(0.0)) == pytest.approx([1e-3, np.log(1e3)])  # a class that starves counts, and is finite


def test_mean_and_median_stand_beside_the_score(board_entries: list[Entry]) -> None:
    pie = next(entry for entry in board_entries if entry.id == "native--pie")
    name = sorted({r["scenario"] for r in pie.results if r["suite"] == "test"})[0]
    bad = [{**r, "episode_return": -30.0} if r["scenario"] == name else r for r in pie.results]
    row, was = (rows(changed(board_entries, pie.id, results=tuple(each)))[pie.id] for each in (bad, pie.results))
    scaled = was.means["test"].value - row.means["test"].value
    assert scaled > 50.0 and abs(was.medians["test"].value - row.medians["test"].value) < 5.0
    assert all(each.low is not None and each.low < each.value for each in (row.means["test"], row.medians["test"]))


def test_classes_and_forms_have_tables_of_their_own(table: dict[str, Row]) -> None:
    ordered = list(table.values())
    found = board.groups(ordered)
    assert list(found) == ["Not trained", "Trained offline", "Packets", "Parameters"]
    assert {row.learned for row in found["Not trained"]} == {"none"}
    assert {row.learned for row in found["Trained offline"]} == {"offline"}
    assert [row.name for row in found["Parameters"]] == ["zero--parameters"]
    assert not any(row.agent in ("native", "zero") for row in found["Packets"])
    _, none, offline, packets, parameters = board.markdown(ordered).split("<summary>")[1:6]
    assert none.startswith("Not trained, alone") and "native--pie" in none and "bc--diffuse" not in none
    assert offline.startswith("Trained offline, alone") and "|   1 | bc--diffuse" in offline
    assert packets.startswith("Packets, alone") and parameters.startswith("Parameters, alone")
    assert board.groups([row for row in ordered if row.learned == "none" and row.form == "packet"]) == {}


def test_the_form_is_a_column(table: dict[str, Row]) -> None:
    found = {name: row.decides for name, row in table.items()}
    assert (found["native--pie"], found["bc--diffuse"]) == ("", "packet")
    assert (found["llm--gpt2"], found["zero--parameters"]) == ("packet /10", "parameters 100 ms")
    lines = board.brief(list(table.values())).splitlines()
    assert lines[0].split("|")[3].strip() == "form"
    assert next(line for line in lines if "zero--" in line).split("|")[3].strip() == "parameters 100 ms"
    assert next(line for line in lines if "native--pie" in line).split("|")[3].strip() == "-"


def test_the_weights_of_a_language_model_are_told(board_entries: list[Entry]) -> None:
    learned = next(entry for entry in board_entries if entry.id == "bc--diffuse")
    weights = "SmolLM2-135M-Instruct (pretrained)"
    known = [msgspec.structs.replace(each, weights=weights) for each in learned.training]
    found = rows(changed(board_entries, learned.id, training=tuple(known)))
    assert found[learned.id].how == f"offline, weights {weights}"
    assert found["native--pie"].how == "none"
    assert board.markdown(list(found.values())).count(f"| offline, weights {weights} |") == 1


def test_a_suite_of_varying_conditions_is_a_column(board_entries: list[Entry]) -> None:
    assert "dyn" not in board.brief(board.rows(board_entries, resamples=50))
    found = board.rows(synthetic_entries(scenarios=2, runs=3, suites=("test", "dyn"), failed=False), resamples=50)
    assert board.brief(found).splitlines()[0].split("|")[5].strip() == "shift"
    assert board.brief(found).splitlines()[0].split("|")[6].strip() == "dyn"
    assert board.comparisons(found)[0].head[3] == "score, dyn"
    assert all(len(line) == len(each.head) for each in board.comparisons(found) for line in each.rows)


def test_a_class_of_which_nothing_came_through_has_no_delay(board_entries: list[Entry]) -> None:
    pie = next(entry for entry in board_entries if entry.id == "native--pie")
    lost = [{**r, "classes": {**r["classes"], "L": {**r["classes"]["L"], "dropped": 3000}}} for r in pie.results]
    row = rows(changed(board_entries, pie.id, results=tuple(lost)))["native--pie"]
    assert row.metrics["test"]["delay_l_p50_ms"] is None
    assert row.metrics["test"]["delay_c_p50_ms"] is not None


def test_one_seed_and_one_training_are_told_as_such() -> None:
    found = rows(synthetic_entries(runs=1, failed=False))
    assert all(row.scores["test"].low is None for row in found.values())
    assert all(row.improvement is None or row.improvement.low is None for row in found.values())
    assert any("one training only" in text for text in found["cql--kernel"].lacks)
    assert all("[?]" in line[1] for line in board.comparisons(list(found.values()))[0].rows)
    assert "[?]" in board.markdown(list(found.values()))


def test_ties_are_half_an_improvement(board_entries: list[Entry]) -> None:
    native = next(entry for entry in board_entries if entry.id == "native--dualpi2_rfc9332")
    row = rows(changed(board_entries, "native--pie", results=native.results))["native--pie"]
    assert row.improvement is not None and row.improvement.value == 0.5
    assert row.over_native["test"] == statistics.Interval(0.0, 0.0, 0.0)
    assert not row.over_native["test"].sure


def test_differences_to_native_are_starred_where_they_are_sure(table: dict[str, Row]) -> None:
    head, rows = board.comparisons(list(table.values()))[0][1:3]
    by_name = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert len(rows) == len(table) - 2  # native itself, and one that failed
    poor, same = by_name["bc--argmax (argmax)"], by_name["cql--kernel (argmax)"]
    assert poor["score, test"].startswith("-") and poor["score, test"].endswith("]*")
    assert poor["L p99, ms"].startswith("+") and not same["score, test"].endswith("*")


def test_markdown_is_a_table_of_equal_columns(board_entries: list[Entry]) -> None:
    text = board.markdown(
        board.rows(board_entries, resamples=50), board_entries, [board.Refusal("x--y", "size is full")]
    )
    lines = [line for line in text[: text.index("<details")].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(board_entries)
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ") and all(len(cell.strip()) >= 3 for cell in lines[1].strip("|").split("|"))
    assert "| failed |" in " ".join(lines[-1].split())
    for part in (
        "x--y: not on the board: size is full",
        "dt--crash (sample): failed",
        "4 scenarios, 5 seeds from 1000",
    ):
        assert part in text
    assert "Nothing." in board.markdown(board.rows(board_entries[:3], resamples=50))


def test_entries_of_other_conditions_are_refused_with_the_reason(board_entries: list[Entry]) -> None:
    kept, refused = board.check(board_entries)
    assert (kept, refused) == (board_entries, [])
    learned = next(entry for entry in board_entries if entry.id == "cql--kernel")
    there = learned.environment
    for fields, reason in (
        ({"size": "full"}, "size is full, not quick"),
        ({"protocol_digest": "1" * 64}, f"protocol digest is {'1' * 64}, not {'0' * 64}"),
        ({"environment": msgspec.structs.replace(there, version="9")}, "version of the environment is 9, not"),
        (
            {"environment": msgspec.structs.replace(there, simulator="9")},
            "is stale: made with simulator 9",
        ),
        ({"environment": msgspec.structs.replace(there, schema_version=99)}, "version of the schema is 99, not"),
        ({"environment": msgspec.structs.replace(there, scenarios={"lte": "2"})}, "scenario 'lte' is 2, not"),
        ({"datasets": dict.fromkeys(learned.datasets, "3")}, "dataset 'l4s/dualpi2/testbed-small-v0' is 3, not 1111"),
    ):
        kept, refused = board.check(changed(board_entries, "cql--kernel", **fields))
        assert [each.name for each in refused] == ["cql--kernel"]
        assert refused[0].reason.startswith(reason)
        assert len(kept) == len(board_entries) - 1
    _, refused = board.check(board_entries, datasets=dict.fromkeys(learned.datasets, "4"))
    assert {each.name for each in refused} == {entry.id for entry in board_entries if entry.datasets}
    _, refused = board.check([*board_entries, learned])
    assert refused == [board.Refusal("cql--kernel", "is there twice")]


def test_a_board_without_whole_references_is_refused(board_entries: list[Entry]) -> None:
    native, random = board_entries[:2]
    half = msgspec.structs.replace(random, results=random.results[:30])
    level = [{**r, "episode_return": 9.0} for r in random.results]
    for entries, reason in (
        ([native], "random--uniform: is missing"),
        ([native, random, native], "native--dualpi2_rfc9332: is there twice"),
        ([native, half], "random--uniform: lacks episodes of 'test'"),
        ([native, msgspec.structs.replace(random, results=tuple(level))], "scores have no scale"),
        ([native, random, *board_entries[2:4], board_entries[3]], "an entry is there twice"),
        ([native, random, msgspec.structs.replace(board_entries[2], results=native.results * 2)], "an episode twice"),
    ):
        with pytest.raises(L4SError, match=reason):
            board.rows(entries, resamples=10)


def test_rules_stand_in_the_order_of_control_theory(table: dict[str, Row]) -> None:
    board_ = list(table.values())

    def held(of: list[Row]) -> dict[str, str]:
        return {row[0]: row[4] for each in board.comparisons(of) if each.title == "As expected?" for row in each.rows}

    pair = f"{board.NATIVE} < native--fifo"
    assert held(board_)[pair] == "yes"
    native, fifo = table[board.NATIVE], table["native--fifo"]
    swapped = [
        dataclasses.replace(native, metrics=fifo.metrics) if row is native
        else dataclasses.replace(fifo, metrics=native.metrics) if row is fifo
        else row
        for row in board_
    ]  # fmt: skip
    assert held(swapped)[pair] == "no"
    assert held([row for row in board_ if row is native]) == {}


def test_whoever_cannot_be_told_from_doing_nothing_is_said_to(table: dict[str, Row]) -> None:
    def verdicts(*rows: Row) -> dict[tuple[str, ...], str]:
        (found,) = (each for each in board.comparisons(rows) if each.title == "Beside doing nothing")
        return {tuple(row[:2]): row[2] for row in found.rows}

    def moved(row: Row, by: float, name: str, **fields: Any) -> Row:
        suites = {suite: statistics.Interval(by, by - 1.0, by + 1.0) for suite in row.scores}
        return dataclasses.replace(row, name=name, variant=name, over_native=suites, **fields)

    like = table["zero--parameters"]
    idle, better = moved(like, 0.0, like.name), moved(like, 3.0, "onestep--held")
    same, tuned = moved(like, 1.2, "a--same"), moved(like, 2.5, "native--dualpi2_tuned", form="")
    assert verdicts(idle, better, same, tuned) == {
        ("onestep--held", idle.name): "acts",
        ("onestep--held", tuned.name): "nothing shows",
        ("a--same", idle.name): "nothing shows",
        ("a--same", tuned.name): "nothing shows",
    }
    tenth = moved(better, 0.0, "enqueue--every10", form="packet", decision_interval=10)
    asked = moved(tenth, -9.0, "b--asked")
    assert verdicts(tenth, asked, idle) == {("b--asked", tenth.name): "acts"}
    over = moved(better, 0.0, "enqueue--rfc9332", form="packet", aqm="dualpi2_rfc9332")
    bc = moved(over, 9.0, "b--mixed")
    assert verdicts(over, bc, tenth, asked) == {("b--asked", tenth.name): "acts", ("b--mixed", over.name): "acts"}
    assert bc.decides == "packet, dualpi2_rfc9332"
    (found,) = (each for each in board.comparisons([better, tuned]) if each.title == "What makes the difference")
    assert [row[1:3] for row in found.rows] == [[tuned.name, better.name]] and found.rows[0][3] == "+0.5 [-0.9, +1.9]"


def test_profile_and_optimality_gap_agree_with_the_score(table: dict[str, Row]) -> None:
    for row in table.values():
        for suite, (shares, low, high) in row.profiles.items():
            assert len(shares) == len(ranking.THRESHOLDS) and np.all(np.diff(shares) <= 0.0)
            assert np.all(np.asarray(low) <= shares) and np.all(shares <= np.asarray(high))
            assert row.shortfall[suite].value >= 100.0 - row.scores[suite].value - 15.0
    assert table["native--fifo"].shortfall["test"].value > table[board.NATIVE].shortfall["test"].value


def test_the_best_of_several_configurations(table: dict[str, Row]) -> None:
    found = ranking.online(list(table.values()))
    learned = [row.scores["test"].value for row in table.values() if row.trainings and "test" in row.scores]
    assert found["all learned"][0] == pytest.approx(np.mean(learned))
    assert found["all learned"][-1] == pytest.approx(max(learned))
    assert all(len(scores) > 1 for scores in found.values())
