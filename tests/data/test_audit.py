"""The audit: it finds the leak of the kernel's log, and takes no honest feature for one."""

from __future__ import annotations

import json
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, cli
from l4s_gym.data import minari_io
from l4s_gym.data.audit import Audit, audit, macro_f1
from l4s_gym.data.causal import as_logged_observation, causal_observation
from l4s_gym.data.inspect import NAMES, Sample, sample_dataset, sample_stream
from l4s_gym.data.logs import write_log
from l4s_gym.data.pools import Rows, make_rows
from l4s_gym.data.simulated import simulate_log
from l4s_gym.data.steps import MISSING, episodes_from_rows
from l4s_gym.data.stream import Blocks, RowStream, open_stream
from l4s_gym.schema import BY_NAME, MAX_PROB, OBSERVED, RECORD

metrics = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn: pip install 'l4s-gym[data]'")

LOGGED, BEFORE = "as logged", "before the decision"


def _stream(rows: Rows, block: int = 1000) -> RowStream:
    def blocks() -> Blocks:
        for at in range(0, len(rows), block):
            yield rows.records[at : at + block]
        return None

    return RowStream(rows.source, rows.present, blocks())


def _check(found: Audit) -> None:
    """A log as the kernel prints it: only what was printed after the decision gives it away."""
    logged, before = found.findings[LOGGED], found.findings[BEFORE]
    assert logged.leaks
    assert logged.given_away_by == ("accumulated_probability",)
    assert logged.told > 0.9
    assert logged.told_without < 0.2
    assert logged.macro_f1 > 0.9
    shuffled = {feature.name: feature.shuffled for feature in logged.features}
    assert min(shuffled, key=shuffled.__getitem__) == "accumulated_probability"
    assert not before.leaks
    assert before.told < 0.2
    assert before.given_away_by == ()
    assert before.macro_f1 < logged.macro_f1
    assert "LEAK: the labels can be read off accumulated_probability (told" in logged.verdict
    assert "no leak: no feature gives the label away" in before.verdict
    assert found.verdict == f"{LOGGED}: {logged.verdict}\n{BEFORE}: {before.verdict}"
    assert found.table().endswith(found.verdict)


def test_the_command(tmp_path: Path, kernel_log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    write_log(tmp_path / "a.log", kernel_log(1, 400))
    figures = tmp_path / "figures.json"
    assert cli.main(["log", "audit", str(tmp_path / "a.log"), "--rows", "300", "--json", str(figures)]) == 0
    assert "as logged: cannot tell" in capsys.readouterr().out
    found = json.loads(figures.read_text(), parse_constant=pytest.fail)["findings"]
    assert list(found) == [LOGGED, BEFORE]
    assert 150 < found[LOGGED]["rows"] <= 300
    assert [feature["name"] for feature in found[LOGGED]["features"]] == list(OBSERVED)
    for bad in ([str(tmp_path / "none.log")], [], [str(tmp_path / "a.log"), "--rows", "1"]):
        assert cli.main(["log", "audit", *bad]) == 2


@pytest.mark.slow
def test_the_bundled_log_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with as_file(files("l4s_gym.data") / "bundled/sim-testbed.log.gz") as path:
        assert cli.main(["log", "audit", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "as logged: LEAK: the labels can be read off accumulated_probability" in shown
    assert "before the decision: no leak: no feature gives the label away" in shown


@pytest.mark.slow
def test_the_authors_pool(pools_dir: Path) -> None:
    found = audit(sample_stream(open_stream(pools_dir / "exp_pool_l4s_train_7feat.pkl")))
    _check(found)
    logged = found.findings[LOGGED]
    assert logged.rows == 2490
    # Figures of another run of the same method: .988 / .922, recall .999 .934 .875.
    assert (logged.accuracy, logged.macro_f1) == pytest.approx((0.988, 0.922), abs=0.01)
    assert logged.majority == pytest.approx(0.828, abs=0.001)
    assert list(logged.recall.values()) == pytest.approx([0.999, 0.934, 0.9], abs=0.03)


@pytest.mark.slow
def test_logs_of_the_simulator() -> None:
    _check(audit(sample_stream(_stream(make_rows(simulate_log("l4s-llm-testbed", seconds=20.0))))))


@pytest.mark.slow
def test_a_dataset_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kernel_log: Any
) -> None:
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = episodes_from_rows([make_rows(kernel_log(seed, 2500, load=1.5)) for seed in range(3)])
    minari_io.create("l4s/dualpi2/a-v0", episodes, algorithm_name="dualpi2_freebsd", description="for tests")
    assert cli.main(["log", "audit", "l4s/dualpi2/a-v0"]) == 0
    shown = capsys.readouterr().out
    assert "observations: no leak" in shown
    assert "observations and logged fields: LEAK: the labels can be read off" in shown
    assert "logged_accumulated_probability" in shown.splitlines()[-1]


# -- samples


@pytest.mark.parametrize("rows", [10_000, 1000])
def test_a_sample_is_of_evenly_spaced_stretches(kernel_log: Any, rows: int) -> None:
    source = make_rows(kernel_log(2, 4000))
    sample = sample_stream(_stream(source, 700), rows)
    wanted = {LOGGED: as_logged_observation(source), BEFORE: causal_observation(source)}
    if rows > 4000:
        kept = np.arange(4000)
    else:
        assert rows / 2 < len(sample.actions) <= rows
        kept = np.arange(4000).reshape(-1, rows // 50)[:: 4000 // len(sample.actions)].ravel()
    for name, values in sample.tables.items():
        np.testing.assert_array_equal(values, wanted[name][kept])
    np.testing.assert_array_equal(sample.actions, source.records["action"][kept])


def test_a_sample_of_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_log: Any) -> None:
    pytest.importorskip("minari", reason="needs Minari: pip install 'l4s-gym[data]'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    sources = [make_rows(kernel_log(seed, 300)) for seed in (1, 2)]
    episodes = episodes_from_rows(sources)
    episodes[1].missing[MISSING][7] = True
    made = minari_io.create("l4s/dualpi2/a-v0", episodes, algorithm_name="x", description="for tests")
    sample = sample_dataset("l4s/dualpi2/a-v0")
    before = np.concatenate([causal_observation(source)[:-1] for source in sources])
    before[299 + 7, NAMES.index("accumulated_probability")] = np.nan
    np.testing.assert_allclose(sample.tables["observations"], before, rtol=1e-6)
    both = sample.tables["observations and logged fields"]
    logged = np.concatenate([source.records["accumulated_probability"][:-1] for source in sources])
    np.testing.assert_array_equal(both[:, 8], logged.astype(np.float64))
    np.testing.assert_array_equal(sample.actions, np.concatenate([e.actions for e in episodes]))
    assert 250 <= len(sample_dataset(made, 300).actions) <= 350


def test_a_source_without_actions_is_refused() -> None:
    rows = make_rows(np.zeros(3, RECORD), "x", ["queue_type"])
    with pytest.raises(L4SError, match="has no actions"):
        sample_stream(_stream(rows))


# -- the measure


def test_macro_f1_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for high in (1, 2, 3):
        true, predicted = rng.integers(0, high, (2, 60))
        assert macro_f1(true, predicted) == pytest.approx(metrics.f1_score(true, predicted, average="macro"))


def _honest(rows: int, hit_share: float = 0.3, seed: int = 0) -> Sample:
    """Rows whose hits are drawn with a probability that the features show."""
    rng = np.random.default_rng(seed)
    values = np.full((rows, 8), np.nan)
    values[:, NAMES.index("queue_type")] = rng.integers(0, 2, rows)
    share = rng.uniform(0, 2 * hit_share, rows)
    values[:, NAMES.index("drop_probability")] = share / 2 * MAX_PROB
    values[:, NAMES.index("accumulated_probability")] = rng.uniform(1, 8, rows) * MAX_PROB
    return Sample("made", (rng.random(rows) < share).astype(np.int64), {"x": values})


def test_a_class_in_the_majority_is_no_leak_and_a_given_away_one_is() -> None:
    sample = _honest(600, 0.49)
    sample.actions[:540] = 1  # nine in ten rows are hits
    assert not audit(sample).findings["x"].leaks
    sample = _honest(600)
    sample.tables["x"][:, NAMES.index("packet_length")] = 1500 - sample.actions
    found = audit(sample).findings["x"]
    assert found.leaks
    assert found.given_away_by == ("packet_length",)


def test_what_cannot_be_told() -> None:
    sample = _honest(200)
    sample.actions[:] = 0
    found = audit(sample).findings["x"]
    assert found.verdict == "cannot tell: 0 hits are left to chance, 20 are needed"
    assert found.accuracy == 1.0
    assert audit(sample).as_dict()["findings"]["x"]["recall"] == {"enqueue": 1.0, "drop": None, "mark": None}
    settled = _honest(200)
    settled.tables["x"][:, NAMES.index("accumulated_probability")] = BY_NAME["accumulated_probability"].scale
    assert audit(settled).findings["x"].chance_hits == 0
    with pytest.raises(L4SError, match="has 40 rows, an audit needs 50"):
        audit(_honest(40))


def _with_missing(hits: float, enqueued: float, rows: int = 800) -> Sample:
    """Honest rows, in a share of which the accumulated probability is not known."""
    sample = _honest(rows)
    share = np.where(sample.actions > 0, hits, enqueued)
    gone = np.random.default_rng(1).random(rows) < share
    sample.tables["x"][gone, NAMES.index("accumulated_probability")] = np.nan
    return sample


def test_that_a_value_is_missing_is_a_feature() -> None:
    """In most hits, and seldom else: a learner reads the label off it. All rows are judged."""
    name = "accumulated_probability: missing"
    found = audit(_with_missing(0.75, 0.04)).findings["x"]
    assert found.rows == 800
    assert found.missing["drop"] == pytest.approx(0.75, abs=0.05)
    assert [feature.name for feature in found.features][-1] == name
    assert found.missing_told[name] == pytest.approx(0.71, abs=0.05)
    assert found.leaks and found.uneven
    assert found.given_away_by == (name,)
    assert found.told_without < 0.1
    assert f"LEAK: the labels can be read off {name}" in found.verdict


@pytest.mark.slow
def test_a_share_that_tells_little_is_pointed_out() -> None:
    found = audit(_with_missing(0.3, 0.03)).findings["x"]
    assert not found.leaks and found.uneven
    assert "no leak" in found.verdict and found.verdict.endswith("of drop: leave such rows out")
    even = audit(_with_missing(0.2, 0.2)).findings["x"]
    assert not even.leaks and not even.uneven
    assert not even.verdict.endswith("leave such rows out")
    nothing = audit(_with_missing(0.0, 0.0)).findings["x"]
    assert nothing.missing_told == {} and not nothing.uneven


def test_a_sample_of_nothing_is_refused() -> None:
    sample = _honest(100)
    sample.tables["x"][:] = np.nan
    with pytest.raises(L4SError, match="has none of"):
        audit(sample)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(L4SError, match=r"pip install 'l4s-gym\[data\]'"):
        audit(_honest(200))
