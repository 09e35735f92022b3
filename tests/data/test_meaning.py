"""What the columns of a pool and of a csv file are: told by form, by data, by name, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.data.causal import causal_accumulated
from l4s_gym.data.columns import AUTHORS, FEATURES, columns_of, named_columns, unknown_field
from l4s_gym.data.inspect import inspect_rows
from l4s_gym.data.pickles import load_pickle
from l4s_gym.data.pools import Rows, load_rows
from l4s_gym.data.stream import kind_of
from l4s_gym.errors import L4SError
from l4s_gym.schema import BY_NAME, ENQUEUE, OBSERVED
from tests.data.conftest import make_kernel_log
from tests.data.test_causal import windows_of
from tests.data.test_pools import dump, save

LENGTH = FEATURES[8]
TOTAL = tuple("total_bytes" if name == "length_in_bytes" else name for name in LENGTH)


def states_of(records: Any, names: tuple[str, ...]) -> Any:
    """Features (T, d) as the pools have them."""
    return np.stack([records[name].astype(np.float32) for name in names], axis=1)


def pickled(records: Any, names: tuple[str, ...], module: str = "__main__") -> bytes:
    """A pool made in a notebook."""
    states = list(states_of(records, names))
    actions, count = [np.int64(action) for action in records["action"]], len(records)
    return dump({"states": states, "actions": actions, "rewards": [0.0] * count, "dones": [0] * count}, module=module)


def runs(seeds: int = 3, count: int = 2000) -> Any:
    """Runs one after the other: the counts begin anew."""
    return np.concatenate([make_kernel_log(seed, count, load=1.2) for seed in range(seeds)])


@pytest.mark.parametrize("cut", ["whole", "windows", "start"])
@pytest.mark.parametrize("names", [LENGTH, TOTAL])
def test_the_byte_column_is_told_by_the_data(tmp_path: Path, names: tuple[str, ...], cut: str) -> None:
    log = runs()
    log = {"whole": log, "windows": log[windows_of(log)], "start": log[:400]}[cut]
    save(tmp_path / "pool.pkl", pickled(log, names))
    rows = load_rows(tmp_path / "pool.pkl")
    assert rows.present == {*names, "action"}
    byte_column = names[6]
    np.testing.assert_array_equal(rows.records[byte_column], log[byte_column].astype(np.float32).astype(np.int64))
    other = "length_in_bytes" if byte_column == "total_bytes" else "total_bytes"
    assert not rows.records[other].any()
    assert len(rows.notes) == 1 and f"(the 9 without packet_length) is {byte_column}: of " in rows.notes[0]
    assert rows.notes[0] in inspect_rows(rows)


@pytest.mark.parametrize("cut", ["whole", "windows"])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("lacks", ["average_dequeue_time", "total_drops"])
def test_other_forms_of_eight(lacks: str, counted: bool, cut: str) -> None:
    log = runs()
    log = log[windows_of(log)] if cut == "windows" else log
    swap = {"length_in_bytes": "total_bytes"} if counted else {}
    names = tuple(swap.get(name, name) for name in FEATURES[9] if name != lacks)
    found, note = columns_of(states_of(log, names).astype(float))
    assert found == names
    assert note is not None and f"the 9 without {lacks}" in note


@pytest.mark.parametrize("files", [["exp_pool_l4s_train_9feat.pkl"], ["consecutive_rows_first6000.csv"]])
def test_real_rows_with_eight_features(pools_dir: Path, tmp_path: Path, files: list[str]) -> None:
    """Derived from the authors' rows with 9: lengths, and counts that they would have had."""
    records = load_rows(pools_dir / files[0]).records
    assert columns_of(states_of(records, LENGTH).astype(float))[0] == LENGTH
    if files[0].endswith("csv"):  # consecutive
        for queue in (0, 1):
            rows = np.flatnonzero(records["queue_type"] == queue)
            lengths = records["packet_length"][rows].astype(np.int64)
            records["total_bytes"][rows] = 40_000_000 * queue + np.cumsum(lengths) - lengths
        assert columns_of(states_of(records, TOTAL).astype(float))[0] == TOTAL


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    few = make_kernel_log(0, 30, load=3.0)
    rising = make_kernel_log(0, 2000)
    unclear = states_of(rising, TOTAL).astype(float)
    unclear[200::200, 6] = unclear[np.arange(200, 2000, 200) - 9, 6] - 1  # falls a little, now and then
    timed = states_of(rising, LENGTH).astype(float)
    timed[5, 5] = 1
    for states, message in (
        (
            states_of(few, TOTAL)[:12].astype(float),
            r"cannot tell whether column 7 .* is length_in_bytes or total_bytes",
        ),
        (unclear, "cannot tell whether column 7"),
        (timed, "the data does not show which of the usual 9 is missing"),
        (np.zeros((4, 8)), "cannot tell whether column 7"),
        (np.zeros((4, 6)), "7, 8 or 9 features are known, others need --columns"),
    ):
        with pytest.raises(L4SError, match=message) as caught:
            columns_of(states)
        assert "--columns" in str(caught.value) and "\n" not in str(caught.value)


def test_the_user_names_the_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = make_kernel_log(0, 300)
    named = ("previous_queue_delay", *OBSERVED)
    stored = ("queue_delay_old", *OBSERVED)
    save(tmp_path / "nine.pkl", pickled(log, stored))
    with pytest.raises(L4SError, match="queue_type is 10000"):
        load_rows(tmp_path / "nine.pkl")  # taken for the 9 that are known
    rows = load_rows(tmp_path / "nine.pkl", columns=named)
    assert rows.present == {*stored, "action"} and rows.notes == ()
    np.testing.assert_array_equal(rows.records["queue_delay_old"], log["queue_delay_old"])
    left = load_rows(tmp_path / "nine.pkl", columns=("-", *OBSERVED[:-1], "-"))
    assert left.present == {*OBSERVED[:-1], "action"}
    option = ["--columns", ",".join(named)]
    assert cli.main(["log", "inspect", str(tmp_path / "nine.pkl"), *option]) == 0
    assert "queue_delay_old" not in capsys.readouterr().out.split("absent:")[1].split("\n")[0]
    out = tmp_path / "pool.json"
    assert cli.main(["log", "convert", str(tmp_path / "nine.pkl"), *option, "--to", "pool", "--out", str(out)]) == 0
    capsys.readouterr()
    for bad, message in (
        ("queue_type,queue_typ", "did you mean 'queue_type'"),
        ("queue_type,queue_type", "a field comes twice"),
        ("queue_type,action", "a field comes twice, or action"),
        ("queue_type,alpha", "are 2, but the pool has 9 features"),
    ):
        assert cli.main(["log", "inspect", str(tmp_path / "nine.pkl"), "--columns", bad]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["log", "inspect", str(out), *option]) == 2
    assert "give --columns for pickled pools only" in capsys.readouterr().err
    with pytest.raises(L4SError, match="are 1, but"):
        named_columns(["alpha"], 2)


@pytest.mark.parametrize("module", ["__main__", "utils.exp_pool"])
def test_an_empty_pool_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], module: str) -> None:
    path = save(tmp_path / "empty.pkl", dump({"states": [], "actions": [], "rewards": [], "dones": []}, module=module))
    assert cli.main(["log", "inspect", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "empty.pkl: is an empty pool, it holds no step" in shown and shown.count("\n") == 1


def test_only_that_class_of_a_notebook(tmp_path: Path) -> None:
    data = pickled(make_kernel_log(0, 20), FEATURES[7])
    assert len(load_pickle(save(tmp_path / "a.pkl", data)).records) == 20
    with pytest.raises(L4SError, match=r"names the global __main__\.ExperiencePoo1"):
        load_pickle(save(tmp_path / "b.pkl", data.replace(b"ExperiencePool", b"ExperiencePoo1")))


# -- csv files of the authors


def authors_csv(path: Path, records: Any, names: tuple[str, ...], shift: int = 0, index: str = "") -> Path:
    """A csv file as pandas writes it: numbers of the rows first, with an empty head."""
    ours = {theirs: name for theirs, name in AUTHORS.items() if theirs in names}
    table = np.stack([records[ours.get(name, name)].astype(np.int64) for name in names], 1)
    table[:, names.index("dequeue_action")] += shift
    numbered = np.concatenate([np.arange(len(table))[:, None], table], 1)
    np.savetxt(path, numbered, "%d", ",", header=",".join([index, *names]), comments="")
    return path


CSV = (
    *("queue_type", "burst_allowance", "drop_probability", "current_queue_delay", "previous_queue_delay"),
    *("accumulated_probability", "measurement_start_time", "average_dequeue_time", "dequeue_count", "status_flags"),
    *("total_packets", "total_bytes", "queue_length", "length_in_bytes", "total_drops", "packet_length"),
    "dequeue_action",
)


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
@pytest.mark.parametrize("shift", [0, 1])
def test_the_authors_csv(tmp_path: Path, shift: int, index: str) -> None:
    log = make_kernel_log(1)
    rows = load_rows(authors_csv(tmp_path / "rows.csv", log, CSV, shift, index))
    assert rows.present == {AUTHORS.get(name, name) for name in CSV}
    for name in rows.present:
        np.testing.assert_array_equal(rows.records[name], log[name])
    assert (len(rows.notes) == 1) == (shift == 1)
    (tmp_path / "rows.csv").rename(tmp_path / "rows")
    assert kind_of(tmp_path / "rows") == "csv"
    before = causal_accumulated(rows)  # without the parameters that they left out
    known = ~np.isnan(before)
    np.testing.assert_array_equal(before[known], log["accumulated_probability_before"][known])
    assert known.mean() > 0.99 and known[log["action"] != ENQUEUE].mean() > 0.9


def test_numbers_of_actions_are_not_guessed(tmp_path: Path) -> None:
    """Ours are 0, 1, 2 always; theirs are as printed only where none is 0."""
    for name, values, actions in (
        ("action", [1, 2], [1, 2]),
        ("dequeue_action", [1, 2], [0, 1]),
        ("dequeue_action", [0, 2], [0, 2]),
        ("dequeue_action", [1, 3], [0, 2]),
    ):
        text = f"queue_type,{name}\n" + "".join(f"0,{value}\n" for value in values)
        (tmp_path / "rows.csv").write_text(text)
        assert load_rows(tmp_path / "rows.csv").records["action"].tolist() == actions
    (tmp_path / "rows.csv").write_text("queue_type,dequeue_action\n0,0\n0,3\n")
    with pytest.raises(L4SError, match="action is 3"):
        load_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("queue_typ", "queue_type"),
        ("total_byte", "total_bytes"),
        ("drop_prob", "drop_probability"),
        ("packet_lenght", "packet_length"),
        ("next_queue_delay", None),
        ("old_queue_delay", None),
        ("total_length", None),
        ("mean_bytes", None),
        ("queue_bytes", None),
        ("max_bytes", None),
        ("reward", None),
    ],
)
def test_hints_name_the_same_quantity(name: str, hint: str | None) -> None:
    text = str(unknown_field("column", name, BY_NAME))
    assert ("did you mean" in text) == (hint is not None)
    assert hint is None or f"did you mean {hint!r}" in text


def test_hints_stay_apart_among_few_names() -> None:
    """Even where the field that is meant is not among the choices."""
    for name in BY_NAME:
        text = str(unknown_field("column", name, [other for other in BY_NAME if other != name]))
        assert "did you mean" not in text, text


# -- what is absent is not shown as 0


def test_inspect_says_what_is_absent() -> None:
    log = make_kernel_log(1)
    for names, shown in (
        (("action", "accumulated_probability", "queue_type"), "unknown, as the source lacks drop_probability"),
        (("action", "drop_probability", "accumulated_probability"), "lacks queue_type"),
        (("queue_type", "accumulated_probability_before"), "recorded, missing in 0 rows"),
        (("queue_type", "drop_probability"), "actions: not in the source"),
        (("queue_type", "action"), "accumulated probability: not in the source"),
        (("action",), "queue not told: 4000 rows"),
    ):
        text = inspect_rows(Rows(log, frozenset(names), "x"))
        assert shown in text, text
