"""Files of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from l4s_gym.evaluation.origin import append_run, origin, write_run


def test_runs_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    first = append_run(path, {**origin(), "figure": (1, 2)})
    assert first[0]["figure"] == [1, 2] and "versions" in first[0]
    assert append_run(path, {"figure": 3}) == [*first, {"figure": 3}]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        append_run(path, {"figure": object()})
    assert path.read_bytes() == before


def test_a_page_stands_beside_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        write_run(tmp_path / "new", "study", {"figure": number}, f"page {number}\n")
    assert append_run(tmp_path / "new" / "study.json", {})[:2] == [{"figure": 1}, {"figure": 2}]
    assert (tmp_path / "new" / "study.md").read_text() == "page 2\n"
    assert capsys.readouterr().out.splitlines()[-1] == f"run 2 in {tmp_path / 'new' / 'study.json'}"


def test_a_command_says_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    told = ["--results", f"{tmp_path}/benchmarks/results", "--out=/somewhere/else", "a=b", "runs/x,rule=argmax", "10"]
    told += [
        "name=/srv/me/agent,rule=argmax",
        f"{tmp_path}/runs/y,rule=sample",
        "unix:/run/me/queue.sock",
        "ray://host:1",
    ]
    monkeypatch.setattr("sys.argv", [f"{tmp_path}/run.py", *told])
    command = "run.py --results benchmarks/results --out=else a=b runs/x,rule=argmax 10 "
    command += "name=agent,rule=argmax runs/y,rule=sample unix:queue.sock ray://host:1"
    assert origin()["command"] == command
    monkeypatch.setattr("sys.argv", ["/opt/bin/l4s-gym"])
    assert origin()["command"] == "l4s-gym"
