"""Values that are missing: how many, in which actions, and what the commands say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.data.columns import FEATURES
from l4s_gym.data.convert import convert
from l4s_gym.data.inspect import inspect_rows
from l4s_gym.data.logs import write_log
from l4s_gym.data.pools import load_rows, make_rows
from l4s_gym.data.records import save_records
from l4s_gym.data.report import Missing
from l4s_gym.data.stream import RunSplitter, open_stream
from l4s_gym.schema import DROP, ENQUEUE
from tests.data.conftest import make_kernel_log
from tests.data.test_meaning import pickled
from tests.data.test_pools import save


def counted(rows: tuple[int, int, int], missing: tuple[int, int, int]) -> Missing:
    """Counts of enqueued, dropped and marked packets."""
    return Missing(np.array(rows), np.array(missing))


@pytest.mark.parametrize(
    ("rows", "missing", "uneven"),
    [
        ((10_000, 400, 100), (300, 300, 70), True),  # the authors' pools without the length of the packets
        ((10_000, 400, 100), (300, 12, 3), False),
        ((10_000, 400, 0), (3, 20, 0), True),
        ((10_000, 400, 0), (300, 0, 0), True),  # the other way round it tells as much
        ((10_000, 4, 0), (300, 1, 0), False),  # chance
        ((100_000, 4000, 0), (10, 12, 0), False),  # less than a hundredth
        ((0, 40, 10), (0, 20, 0), False),  # nothing to compare with
        ((0, 0, 0), (0, 0, 0), False),
    ],
)
def test_uneven(rows: tuple[int, int, int], missing: tuple[int, int, int], uneven: bool) -> None:
    found = counted(rows, missing)
    assert found.uneven == uneven
    assert (found.warning is not None) == uneven


def test_the_shares_are_shown() -> None:
    text = counted((1000, 100, 0), (10, 60, 0)).warning
    assert text is not None
    assert text.startswith("warning: ") and "missing in 6.36% of the rows (enqueue 1.00%, drop 60.00%)" in text


def _short_pool(path: Path) -> Path:
    """A table of a log that lost rows, without the length of the packets: hits are seldom told."""
    log = make_kernel_log(5, load=2.0)
    log = log[np.random.default_rng(0).random(len(log)) > 0.1]
    names = tuple(name for name in FEATURES[7] if name not in ("packet_length", "burst_allowance"))
    columns = ",".join([*names, "action"])
    np.savetxt(path, np.stack([log[name] for name in (*names, "action")], 1), "%d", ",", header=columns, comments="")
    return path


def test_inspect_warns(tmp_path: Path) -> None:
    text = inspect_rows(load_rows(_short_pool(tmp_path / "rows.csv")))
    assert "warning: the accumulated probability before the decision is missing in" in text
    assert "rebuilt, missing in" in text and "drop" in text
    whole = inspect_rows(make_rows(make_kernel_log(5)))
    assert "recorded, missing in 0.00% of the rows (enqueue 0.00%, drop 0.00%" in whole and "warning" not in whole


@pytest.mark.parametrize("target", ["pool", "minari", "rec"])
def test_convert_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    path = _short_pool(tmp_path / "rows.csv")
    where = ["--out", str(tmp_path / {"pool": "a.json", "rec": "a.rec"}.get(target, ""))]
    if target == "minari":
        pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
        where = ["--id", "l4s/dualpi2/short-v0"]
    assert cli.main(["log", "convert", str(path), "--to", target, *where]) == 0
    shown = capsys.readouterr().out
    assert ("warning: the accumulated probability before the decision is missing in" in shown) == (target != "rec")
    assert ("warning: the source lacks packet_length, so the rewards mean nothing" in shown) == (target != "rec")


def test_nothing_to_warn_of(tmp_path: Path) -> None:
    write_log(tmp_path / "a.log", make_kernel_log(1))
    assert convert(tmp_path / "a.log", "pool", tmp_path / "a.json").notes == ()
    assert convert(tmp_path / "a.log", "rec", tmp_path / "a.rec").notes == ()
    old = make_kernel_log(1)
    write_log(tmp_path / "b.log", old, fields=23)
    (note,) = convert(tmp_path / "b.log", "pool", tmp_path / "b.json").notes
    assert note.startswith("warning: the source lacks packet_length")


def test_how_columns_were_told_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "pool.pkl", pickled(make_kernel_log(1), FEATURES[8]))
    for target, name in (("pool", "a.json"), ("rec", "a.rec"), ("parquet", "a.parquet")):
        out = str(tmp_path / name)
        assert cli.main(["log", "convert", str(tmp_path / "pool.pkl"), "--to", target, "--out", out]) == 0
        assert "(the 9 without packet_length) is length_in_bytes" in capsys.readouterr().out
    assert load_rows(tmp_path / "a.rec").present == {*FEATURES[8], "action"}
    hits = make_kernel_log(1)["action"] != ENQUEUE
    before = load_rows(tmp_path / "a.json").records["accumulated_probability_before"]
    assert (before[hits] > 0).any()


def test_counters_that_are_absent_count_nothing(tmp_path: Path) -> None:
    """No repeated rows, lost rows or runs are told without the queue and its counter."""
    log: Any = make_kernel_log(0, 500)
    for names in ({"queue_type", "action"}, {"total_packets", "action"}):
        few = log.copy()
        for name in set(few.dtype.names) - names:
            few[name] = 0
        save_records(tmp_path / "a.rec", few, present=frozenset(names))
        stream = open_stream(tmp_path / "a.rec")
        splitter = RunSplitter(stream.present)
        assert [splitter.starts(block) for block in stream.blocks()] == [[0]]
        assert stream.report is not None
        assert (stream.report.duplicates, stream.report.gaps, stream.report.restarts) == ((0, 0),) * 3
    assert (log["action"] == DROP).any()
