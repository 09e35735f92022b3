"""The command line: every command, its help, its errors in one line, its exit status."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import cli
from l4s_gym.cli import common
from l4s_gym.cli.common import console
from l4s_gym.data.logs import read_log
from l4s_gym.data.pools import load_rows
from l4s_gym.data.records import load_records
from l4s_gym.evaluation import native
from l4s_gym.schema import PRINTED
from l4s_gym.sim import options, scenario
from l4s_gym.sim.disciplines import AQMS, BUILT_IN

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are printed whole, whatever the terminal of the tests."""
    monkeypatch.setattr(console, "width", 160)


def run(capsys: Capture, *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def refuse(capsys: Capture, *args: object) -> str:
    """A command that is refused: status 2, nothing on stdout, one line on stderr."""
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("l4s-gym: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("scenarios",),
        ("simulate",),
        ("log",),
        ("log", "inspect"),
        ("log", "convert"),
        ("log", "audit"),
        ("train",),
        ("distil",),
        ("test",),
        ("evaluate",),
        ("leaderboard",),
        ("demo",),
    ],
)
def test_help(command: tuple[str, ...], capsys: Capture) -> None:
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert "usage: " + " ".join(("l4s-gym", *command)) in out and "{None}" not in out


def test_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "l4s_gym.cli", "simulate", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("l4s-gym: unknown scenario 'nowhere'")
    assert "Traceback" not in done.stderr


def test_output_to_a_pipe_is_not_cut() -> None:
    program = [sys.executable, "-m", "l4s_gym.cli"]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}

    def output(*args: str, **more: str) -> str:
        env = environment | more
        return subprocess.run([*program, *args], capture_output=True, text=True, check=True, env=env).stdout

    assert "native:dualpi2_freebsd" in output("evaluate", "native:dualpi2_freebsd", "--seconds", "1", "--seeds", "0")
    assert json.loads(output("scenarios", "--name", "web", COLUMNS="40"))["name"] == "web"


# -- scenarios


def test_trace_of_a_link(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "link.csv"
    path.write_text("s,Mbit/s\n0,10\n10,30\n20,0\n")
    code, out, err = run(capsys, "scenarios", "--trace", str(path))
    assert (code, err) == (0, "")
    assert "3 rates, 30 s" in out and "mean 13.33 Mbit/s" in out and "0 to 30 Mbit/s, nothing in 33.3% of them" in out
    chart = [line.split("|")[1] for line in out.splitlines() if "|" in line]
    assert chart[0] == " " * 24 + "#" * 24 and chart[-1] == "#" * 48 and len(chart) == 8
    assert "mean 8.554 Mbit/s" in run(capsys, "scenarios", "--trace", "lte")[1]
    assert "did you mean 'wifi'" in run(capsys, "scenarios", "--trace", "wify")[2]
    path.write_text("1\n-1\n")
    code, out, err = run(capsys, "scenarios", "--trace", str(path))
    assert (code, out) == (2, "") and "link.csv:2: '-1' is not a time" in err


def test_scenarios(capsys: Capture) -> None:
    code, out, err = run(capsys, "scenarios")
    assert (code, err) == (0, "")
    for name in scenario.names():
        assert f" {name} " in out
    shift = run(capsys, "scenarios", "--suite", "shift")[1]
    assert " overload-early " in shift and " mixed " not in shift


@pytest.mark.parametrize("name", scenario.names())
def test_scenario_as_json(name: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, "scenarios", "--name", name)
    assert code == 0
    assert scenario.from_dict(json.loads(out)) == scenario.load(name)


def test_disciplines(capsys: Capture) -> None:
    code, out, err = run(capsys, "disciplines")
    assert (code, err) == (0, "")
    for each in BUILT_IN:
        assert each.name in out
        assert all(what for what, _ in options.words(each).values())
    one = run(capsys, "disciplines", "--name", "fq_codel")[1]
    assert "ce_threshold_ms" in one and "FQ-CoDel, RFC 8290" in one and "1514" in one and "cobalt" not in one
    assert "did you mean 'cobalt'" in run(capsys, "disciplines", "--name", "cobolt")[2]


# -- simulate


def test_simulate(capsys: Capture) -> None:
    code, out, err = run(capsys, "simulate", "l4s-llm-testbed", "--seconds", 2, "--seed", 3)
    assert (code, err) == (0, "")
    assert "l4s-llm-testbed, dualpi2_freebsd, seed 3" in out
    assert "utilisation" in out and "cubic 4 x" in out and "figures of 1 s" in out
    assert run(capsys, "simulate", "l4s-llm-testbed", "--seconds", 2, "--seed", 3)[1] == out
    assert run(capsys, "simulate", "l4s-llm-testbed", "--seconds", 2, "--seed", 4)[1] != out


@pytest.mark.parametrize("aqm", AQMS)
def test_simulate_disciplines(aqm: str, capsys: Capture) -> None:
    code, out, _ = run(capsys, "simulate", "overload", "--aqm", aqm, "--seconds", 1)
    assert code == 0
    assert f"overload, {aqm}, seed 0" in out


def test_simulate_a_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('horizon_s = 1.0\n[[sources]]\nkind = "prague"\n')
    code, out, _ = run(capsys, "simulate", path)
    assert code == 0
    assert "mine, dualpi2_freebsd" in out and "prague 1 x" in out


def test_logs(tmp_path: Path, capsys: Capture) -> None:
    text, packed = tmp_path / "run.log", tmp_path / "run.rec"
    for path in (text, packed):
        code, out, _ = run(capsys, "simulate", "--seconds", 3, "--log", path)
        assert code == 0
        assert f"records in {path}" in out.replace("\n", "")
    stored, (read, _) = load_records(packed), read_log([text])
    assert len(stored) == len(read) > 1000
    for field in PRINTED:
        assert np.array_equal(stored[field.name], read[field.name])
    for path, fields in ((text, 24), (packed, 32)):
        code, out, err = run(capsys, "log", "inspect", path)
        assert (code, err) == (0, "")
        assert f"{len(stored)} rows, {fields} of 32 fields" in out
        assert "queue C" in out and "queue L" in out and "as logged" in out


def test_convert(tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "run.log.gz"
    assert run(capsys, "simulate", "--seconds", 2, "--log", text)[0] == 0
    stored = load_rows(text)
    for kind, name in (("rec", "run.rec.zst"), ("parquet", "run.parquet"), ("pool", "run.json"), ("csv", "run.csv")):
        code, out, err = run(capsys, "log", "convert", text, "--to", kind, "--out", tmp_path / name)
        assert (code, err) == (0, "")
        assert f"{len(stored)} records (24 fields)" in out
        assert f"{len(stored)} rows, 1 run: {tmp_path / name}" in out
        assert len(load_rows(tmp_path / name)) == len(stored)
        message = refuse(capsys, "log", "convert", text, "--to", kind, "--out", tmp_path / name)
        assert "--overwrite" in message
        again = ("log", "convert", text, "--to", kind, "--out", tmp_path / name, "--overwrite")
        assert run(capsys, *again)[0] == 0
        assert run(capsys, "log", "inspect", tmp_path / name)[0] == 0


def test_convert_to_minari(tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    path = tmp_path / "run.rec"
    assert run(capsys, "simulate", "--seconds", 1, "--log", path)[0] == 0
    args = ("log", "convert", path, "--to", "minari", "--id", "l4s/dualpi2/cli-v0")
    code, out, err = run(capsys, *args)
    assert (code, err) == (0, "")
    rows = len(load_rows(path))
    assert f"{rows - 1} steps, 1 episodes: l4s/dualpi2/cli-v0 in {tmp_path / 'sets'}" in out
    refuse(capsys, *args)
    assert run(capsys, *args, "--overwrite")[0] == 0


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
def test_picture(ending: str, start: bytes, tmp_path: Path, capsys: Capture) -> None:
    paths = [tmp_path / f"{k}.{ending}" for k in range(2)]
    for path in paths:
        assert run(capsys, "simulate", "web", "--seconds", 1, "--picture", path)[0] == 0
        assert path.read_bytes().startswith(start)
        assert path.stat().st_size > 10_000
    if ending != "SVG":  # whose ids are random
        assert paths[0].read_bytes() == paths[1].read_bytes()


# -- tables


Columns = dict[str, Any]


def columns(path: Path) -> Columns:
    """The columns of a csv file; an empty cell is NaN."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    head, *rows = (line.split(",") for line in text.splitlines())
    cells = zip(*rows, strict=True)
    words = {name: np.array(column) for name, column in zip(head, cells, strict=True)}
    return {n: c if n in ("flow", "queue") else np.where(c == "", "nan", c).astype(float) for n, c in words.items()}


def simulated(capsys: Capture, folder: Path, *args: object) -> tuple[Columns, Columns]:
    """Series and packets of a run."""
    series, packets = folder / "series.csv", folder / "packets.csv.gz"
    code, out, err = run(capsys, "simulate", *args, "--series", series, "--packets", packets)
    assert (code, err) == (0, "")
    found = columns(series), columns(packets)
    assert f"steps: {len(found[0]['time_s'])} in {series}" in out
    assert f"packets: {len(found[1]['time_us'])} in {packets}" in out
    return found


@pytest.mark.parametrize("aqm", AQMS)
def test_tables_add_up_to_the_statistics(aqm: str, tmp_path: Path, capsys: Capture) -> None:
    chosen = scenario.load("overload").replace(horizon_s=4.0, warmup_s=0.0)
    args = ("overload", "--aqm", aqm, "--seconds", 4, "--set", "warmup_s=0")
    series, packets = simulated(capsys, tmp_path, *args)
    statistics = native.simulate(chosen, aqm).summary
    assert series["time_s"] == pytest.approx(np.arange(1, 41) * 0.1)
    for name, classes in statistics["classes"].items():
        prefix, own = name.lower(), {key: column[packets["queue"] == name] for key, column in packets.items()}
        sojourn_us = own["sojourn_us"][~np.isnan(own["sojourn_us"])]
        counted = (classes["offered"], classes["marked"], classes["dropped"])
        assert (len(own["time_us"]), own["marked"].sum(), own["dropped"].sum()) == counted
        steps = (f"{prefix}_{what}_packets" for what in ("offered", "marked", "dropped"))
        assert tuple(series[step].sum() for step in steps) == counted
        assert own["size_bytes"].sum() == series[f"{prefix}_offered_bytes"].sum()
        assert len(sojourn_us) == series[f"{prefix}_left_packets"].sum() > 0
        assert sojourn_us.mean() * 1e-3 == pytest.approx(statistics["delay_ms"][name]["mean"])
        assert sojourn_us.max() * 1e-3 == pytest.approx(statistics["delay_ms"][name]["max"])
        p99_ms = np.quantile(sojourn_us, 0.99) * 1e-3
        assert p99_ms == pytest.approx(statistics["delay_ms"][name]["p99"], rel=0.05)
    waiting = np.isnan(packets["sojourn_us"]).sum() - packets["dropped"].sum()
    assert waiting == series["c_queued_packets"][-1] + series["l_queued_packets"][-1]
    for flow, rate in zip(statistics["flows"], statistics["goodput_mbps"], strict=True):
        assert series[f"{flow}_goodput_mbps"].mean() == pytest.approx(rate)
        for what in ("marked", "dropped"):
            assert packets[what][packets["flow"] == flow].sum() == series[f"{flow}_{what}_packets"].sum()
    carried, could = ((series[name] * series["step_s"]).sum() for name in ("carried_mbps", "capacity_mbps"))
    assert carried / could == pytest.approx(statistics["utilisation"])


def test_the_measured_steps_are_those_of_the_statistics(tmp_path: Path, capsys: Capture) -> None:
    """Also where the warm-up is no multiple of the step, which changes nothing of the statistics."""
    args = ("l4s-llm-testbed", "--seconds", "2.05", "--step-ms", "50")
    series, packets = simulated(capsys, tmp_path, *args)
    summary = native.simulate(scenario.load("l4s-llm-testbed").replace(horizon_s=2.05)).summary
    measured = series["measured"] == 1
    assert series["time_s"][0] == pytest.approx(0.025) and series["step_s"][1] == pytest.approx(0.05)
    assert series["step_s"][measured].sum() == pytest.approx(summary["duration_s"]) == pytest.approx(1.025)
    assert series["c_offered_packets"][measured].sum() == summary["classes"]["C"]["offered"]
    assert series["l_marked_packets"][measured].sum() == summary["classes"]["L"]["marked"] > 0
    after = packets["time_us"] * 1e-6 >= 1.025
    assert after.sum() == sum(c["offered"] for c in summary["classes"].values())
    assert series["cubic0_cwnd_packets"][-1] > 1 and series["dctcp0_srtt_ms"][-1] > 1


def test_traffic_without_a_window(tmp_path: Path, capsys: Capture) -> None:
    series, _ = simulated(capsys, tmp_path, "overload", "--seconds", 1)
    flows = [name.removesuffix("_cwnd_packets") for name in series if name.endswith("_cwnd_packets")]
    assert all(np.isnan(series[f"{flow}_cwnd_packets"]).all() == flow.startswith("cbr") for flow in flows)
    assert any(flow.startswith("cbr") for flow in flows)


def test_tables_as_parquet(tmp_path: Path, capsys: Capture) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for ending in ("csv", "parquet"):
        files = ("--series", tmp_path / f"s.{ending}", "--packets", tmp_path / f"p.{ending}")
        assert run(capsys, "simulate", "overload", "--seconds", 1, *files)[0] == 0
    for name in "sp":
        stored = parquet.read_table(tmp_path / f"{name}.parquet").to_pydict()
        for column, values in columns(tmp_path / f"{name}.csv").items():
            if values.dtype.kind == "f":
                given = np.array([np.nan if value is None else value for value in stored[column]])
                np.testing.assert_allclose(given, values, rtol=1e-9)
            else:
                assert stored[column] == values.tolist()


# -- evaluate


def test_evaluate(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "results" / "fifo.json"
    args = ("evaluate", "native:fifo", "native:pie", "--seconds", 2, "--seeds", 0, 1, "--out", path)
    code, out, err = run(capsys, *args)
    assert (code, err) == (0, "")
    assert "native:fifo" in out and "native:pie" in out and "2 seeds" in out
    data = json.loads(path.read_text())
    assert [(r["agent"], r["seed"]) for r in data["results"]] == [
        ("native:fifo", 0), ("native:fifo", 1), ("native:pie", 0), ("native:pie", 1),
    ]  # fmt: skip
    assert {"versions", "host", "command", "time"} <= set(data)
    # Pure results do not depend on the run.
    again = tmp_path / "again.json"
    run(capsys, *args[:-1], again)
    results = json.loads(again.read_text())["results"]
    for old, new in zip(data["results"], results, strict=True):
        assert {k: v for k, v in old.items() if k != "wall_s"} == {k: v for k, v in new.items() if k != "wall_s"}


def test_evaluate_by_weights(tmp_path: Path, capsys: Capture) -> None:
    returns = {}
    for reward in ("balance", "used=1,delay_c=-.25,delay_l=-.25", "used=1", "evenness=1"):
        path = tmp_path / "results.json"
        args = ("evaluate", "native:fifo", "--seconds", 3, "--seeds", 0, "--reward", reward, "--out", path)
        assert run(capsys, *args)[0] == 0
        (result,) = json.loads(path.read_text())["results"]
        returns[result["reward"]] = result["episode_return"]
    names = ["balance", "used=1.0,delay_c=-0.25,delay_l=-0.25", "used=1.0", "evenness=1.0"]
    assert list(returns) == names
    assert returns[names[0]] == returns[names[1]] < returns["evenness=1.0"] < returns["used=1.0"]


def test_evaluate_an_agent(capsys: Capture) -> None:
    code, out, _ = run(capsys, "evaluate", "enqueue", "--seconds", 1, "--seeds", 0, "--decision-interval", 10)
    assert code == 0
    assert "enqueue" in out and "1 seeds" in out


def test_evaluate_agents_of_control_intervals(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    whos = ("native:dualpi2_rfc9332", "zero", "random:form=probability")
    how = ("--seconds", 1, "--seeds", 0, "--control-interval-ms", 100)
    assert run(capsys, "evaluate", *whos, *how, "--out", path)[0] == 0
    native, zero, drawn = json.loads(path.read_text())["results"]
    assert (zero["agent"], zero["decisions"]) == ("zero:form=parameters", 5)
    assert zero["delay_ms"] == native["delay_ms"] != drawn["delay_ms"]


# -- bad input


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("simulate", "l4s-llm-testbad"), "did you mean 'l4s-llm-testbed'"),
        (("simulate", "none.toml"), "no such scenario file"),
        (("simulate", "--aqm", "dualpi"), "unknown discipline 'dualpi'"),
        (("simulate", "--seconds", "nan"), "horizon_s"),
        (("simulate", "--seconds", "-1"), "horizon_s"),
        (("simulate", "--seconds", "0"), "horizon_s"),
        (("simulate", "--log", "a.parquet"), "l4s-gym log convert"),
        (("simulate", "--seed", "-1"), "seed -1: give 0 or more"),
        (("simulate", "--series", "a.xlsx"), "a.xlsx: unknown ending: end the name in .csv, .csv.gz or .parquet"),
        (("simulate", "--packets", "a"), "end the name in .csv, .csv.gz or .parquet"),
        (("simulate", "--picture", "a.jpg"), "a.jpg: unknown ending: end the name in .png, .pdf or .svg"),
        (("simulate", "--step-ms", "0"), "step-ms"),
        (("scenarios", "--suite", "tests"), "did you mean 'test'"),
        (("scenarios", "--name", "wbe"), "did you mean 'web'"),
        (("log", "inspect", "none.log"), "none.log"),
        (("log", "inspect", "none.rec"), "none.rec"),
        (("log", "inspect", "none.pkl"), "none.pkl"),
        (("log", "inspect"), "name at least one"),
        (("log", "convert", "none.log", "--to", "rec"), "--out PATH"),
        (("log", "convert", "none.log", "--to", "rec", "--out", "a.rec", "--id", "x"), "no --id"),
        (("log", "convert", "none.log", "--to", "rec", "--out", "a.json"), "end it in .rec"),
        (("log", "convert", "none.log", "--to", "parquet", "--out", "a.parquet"), "none.log: cannot be read"),
        (("log", "convert", "none.log", "--to", "rec", "--out", "a.rec", "--as-logged"), "--as-logged"),
        (("log", "convert", "none.log", "--to", "minari", "--out", "a"), "--id l4s/dualpi2/NAME-v0"),
        (("log", "convert", "none.log", "--to", "minari", "--id", "l4s/dualpi2/x-v0"), "none.log: cannot be read"),
        (("evaluate", "native:fif"), "did you mean 'fifo'"),
        (("evaluate", "native:fifo", "--reward", "used=1,delay=-1"), "unknown component of a reward 'delay'"),
        (("evaluate", "nobody"), "nobody"),
        (("evaluate", "no.module:Agent"), "no module"),
        (("evaluate", "enqueue", "--decision-interval", "0"), "--decision-interval 0"),
        (("evaluate", "enqueue", "--control-interval-ms", "16"), "decides in the form 'packet'"),
        (("evaluate", "enqueue", "--seeds", "-3"), "seed -3: give 0 or more"),
        (("evaluate", "enqueue", "--scenario", "wbe"), "did you mean 'web'"),
        (("evaluate", "native:fifo", "--reward", "balanc"), "did you mean 'balance'"),
        (("evaluate", "native:fifo", "--seconds", "nan"), "horizon_s"),
    ],
)
def test_bad_input(args: tuple[str, ...], message: str, capsys: Capture, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refuse(capsys, *args)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "name"),
    [("--log", "a.log"), ("--log", "a.rec"), ("--picture", "a.png"), ("--series", "a.csv"), ("--packets", "a.parquet")],
)
def test_output_that_cannot_be_written(option: str, name: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "no" / "such" / name
    code, _, err = run(capsys, "simulate", "--seconds", 0.1, option, path)
    assert code == 2
    assert err.startswith(f"l4s-gym: {path}: cannot be written") and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "nothing of a log\n", "l4s_ecn_marking-start,1,2,3,end\n"])
def test_inspect_a_file_without_records(text: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "other.txt"
    path.write_text(text)
    code, out, err = run(capsys, "log", "inspect", path)
    assert code == 2 or "0 rows" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [(), ("simulat",), ("simulate", "--sed", "3"), ("log",), ("simulate", "--seed", "x")])
def test_usage_errors(args: tuple[str, ...], capsys: Capture) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert "--help" in err or "Perhaps you meant" in err or "Expected" in err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "run.log"), 1, "run.log: No space"),
    ],
)
def test_other_failures(error: BaseException, code: int, text: str, capsys: Capture, monkeypatch: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("l4s_gym.evaluation.native.simulate", fail)
    got, _, err = run(capsys, "simulate", "--seconds", 1)
    assert got == code
    assert err.startswith("l4s-gym: ") and text in err and err.count("\n") == 1


def test_own_agent_by_name(tmp_path: Path, capsys: Capture, monkeypatch: Any) -> None:
    (tmp_path / "my_agents.py").write_text("from l4s_gym.agents import EnqueueAgent\n\nmine = EnqueueAgent()\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = run(capsys, "evaluate", "my_agents:mine", "--seconds", 1, "--seeds", 0)
    assert (code, err) == (0, "")
    assert "enqueue" in out


def test_main_reads_the_command_line(monkeypatch: Any, capsys: Capture) -> None:
    monkeypatch.setattr(sys, "argv", ["l4s-gym", "scenarios", "--suite", "nothing"])
    assert cli.main() == 2
    assert "unknown suite 'nothing'" in capsys.readouterr().err


def test_progress_is_a_line_a_minute_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 30.0, 90.0, 100.0, 240.0])
    monkeypatch.setattr("l4s_gym.cli.common.time.monotonic", lambda: next(seconds))
    with common.progress_bar("cells") as show:
        for share in (0.1, 0.25, 0.3, 0.5):
            show(share)
    assert capsys.readouterr().err == "cells: 25%, about 4 min left\ncells: 50%, about 4 min left\n"


# -- names and pipes that are not as they should be


def program(command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    """What a shell makes of a command, in which L4S is the program."""
    run_it = f"{sys.executable} -m l4s_gym.cli"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "L4S": run_it}
    command = f"set -o pipefail; {command}"
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, check=False)


def test_version(capsys: Capture) -> None:
    import l4s_gym
    from l4s_gym.sim import fingerprint

    code, out, err = run(capsys, "--version")
    assert (code, err) == (0, "")
    assert out == f"l4s-gym {l4s_gym.__version__}, simulator {fingerprint.FINGERPRINT}\n"


@pytest.mark.parametrize("command", ["scenarios", "scenarios --name web", "scenarios --help"])
def test_who_reads_the_output_has_enough(command: str, tmp_path: Path) -> None:
    done = program(f"$L4S {command} | true", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"")


def test_stdout_that_takes_nothing(tmp_path: Path) -> None:
    done = program("$L4S scenarios > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (1, b"l4s-gym: stdout: No space left on device\n")
    done = program("$L4S scenarios >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["a[b]c", "[bold]x", "[red]", "a[", "no:smile:"])
def test_square_brackets_in_names(name: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no markup: what is printed is the name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.toml").write_text('horizon_s = 1.0\n[[sources]]\nkind = "prague"\n')
    code, out, err = run(capsys, "simulate", f"{name}.toml", "--log", f"{name}.log", "--picture", f"{name}.png")
    assert (code, err) == (0, "")
    assert f"{name}, dualpi2_freebsd" in out and f"in {name}.log" in out and f"picture: {name}.png" in out
    (tmp_path / "own.py").write_text(
        "from l4s_gym.agents import EnqueueAgent\n\nclass Own(EnqueueAgent):\n    name = '[/x]" + name + "'\n"
    )
    words = ("evaluate", "own.py:Own", "--scenario", f"{name}.toml", "--seeds", "0", "--out", f"{name}.json")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert f"[/x]{name}" in out and f"results: {name}.json" in out


def test_a_bar_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with common.progress_bar("evaluating [/x][red]a") as show:
        show(0.5)
    assert "evaluating [/x][red]a" in capsys.readouterr().err


@pytest.mark.slow
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    text = 'horizon_s = 1.0\n[[sources]]\nkind = "prague"\n'
    (tmp_path / "plain.toml").write_text(text)
    name = "$'n\\xff'"
    for command in (
        f"cp plain.toml {name}.toml && $L4S simulate {name}.toml --log {name}.rec",
        f"$L4S scenarios --name {name}.toml",
        f"$L4S evaluate native:fifo --scenario {name}.toml --seeds 0 --out {name}.json",
        f"$L4S log inspect {name}.rec",
        f"$L4S log convert {name}.rec --to pool --out {name}.pool.json",
        f"MINARI_DATASETS_PATH=here $L4S log convert {name}.rec --to minari --id l4s/dualpi2/x-v0",
    ):
        done = program(command, tmp_path)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, (command, done)
    for command in (f"$L4S train bc --dataset {name}", f"$L4S evaluate {name}:x", f"$L4S evaluate ./{name}"):
        done = program(command, tmp_path)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, (command, done)
