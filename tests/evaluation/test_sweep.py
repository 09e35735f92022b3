"""A sweep: entries that hold, cells that are kept, failures that cost one row, the same results wherever it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import AgentSpec, RandomAgent, training
from l4s_gym.agents.protocol import check_form
from l4s_gym.agents.registry import KINDS, AgentKind
from l4s_gym.agents.rules import ZeroAgent
from l4s_gym.data.build import checksum
from l4s_gym.evaluation import entry, sweep, work
from l4s_gym.evaluation.entry import Entry, Experiment, Protocol, Size, Training
from l4s_gym.evaluation.results import read, read_all, write
from l4s_gym.sim import fingerprint
from l4s_gym.tables import timeless

pytest.importorskip("pyarrow", reason="needs PyArrow: pip install 'l4s-gym[data]'")

TINY = Size(0.5, 2, ("test", "shift"), ("l4s-llm-testbed", "web", "grid-4m-10ms"))
NATIVE = Experiment("PIE", "native:pie", name="native", variant="pie")
RANDOM = Experiment("Random", "random", name="random", variant="uniform")
DRAWN = Experiment(
    "Drawn", "random:form=probability", name="random", variant="drawn", form="probability", control_interval_ms=50.0
)
THRESHOLD = Experiment("Threshold", "threshold", decision_interval=3, name="threshold", variant="third")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    first = {"train": 0, "test": 100, "shift": 200}
    return Protocol("balance", first, TINY, TINY, TINY)  # type: ignore[arg-type]


def bits(entries: list[Entry]) -> list[Any]:
    return [timeless(each) for each in entries]


def cell_keys(protocol: Protocol, experiment: Experiment, place: Path) -> list[str]:
    (part,) = sweep.Sweep(protocol, "quick", place, jobs=0, ray="").parts(experiment)
    part.know()
    return [cell.key for cell in part.cells]


@pytest.fixture(scope="module")
def done(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return sweep.run([NATIVE, RANDOM, THRESHOLD, DRAWN], protocol, "quick", tmp_path_factory.mktemp("work"), jobs=0)


def test_entries_are_valid_and_come_back_from_their_files(
    done: list[Entry], protocol: Protocol, tmp_path: Path
) -> None:
    for each in done:
        entry.validate(each, protocol)
        assert read(write(each, tmp_path)) == each
        assert len(each.results) == 3 * 2
    assert [each.id for each in read_all(tmp_path)] == [
        "native--pie",
        "random--drawn",
        "random--uniform",
        "threshold--third",
    ]


def test_finished_cells_are_not_run_again(
    done: list[Entry], protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[work.Cell] = []
    once = work.evaluate

    def counted(cell: work.Cell, files: None) -> dict[str, Any]:
        ran.append(cell)
        return once(cell, files)

    monkeypatch.setattr(work, "evaluate", counted)
    first = sweep.run([NATIVE, RANDOM], protocol, "quick", tmp_path, jobs=0)
    cells = len(ran)
    path = next((tmp_path / "cells").iterdir())
    path.write_bytes(path.read_bytes()[:-20])  # torn: as if it were not there
    again = sweep.run([NATIVE, RANDOM], protocol, "quick", tmp_path, jobs=0)
    assert cells == len(list((tmp_path / "cells").iterdir())) and len(ran) == cells + 1
    assert bits(first) == bits(again) == bits(done)[:2]


def test_control_intervals(done: list[Entry], protocol: Protocol, tmp_path: Path) -> None:
    """Cells carry form and interval."""
    rows = [row for row in done[-1].results if row["scenario"] == "web"]
    assert [row["decisions"] for row in rows] == [5, 5]  # of 50 ms, in the half of .5 s that is measured
    slower = msgspec.structs.replace(DRAWN, control_interval_ms=100.0)
    assert not set(cell_keys(protocol, DRAWN, tmp_path)) & set(cell_keys(protocol, slower, tmp_path))


def test_an_agent_is_asked_over_another_law(done: list[Entry], protocol: Protocol, tmp_path: Path) -> None:
    other = msgspec.structs.replace(RANDOM, aqm="dualpi2_rfc9332")
    (found,) = sweep.run([other], protocol, "quick", tmp_path, jobs=0)
    assert {row["aqm"] for row in found.results} == {"dualpi2_rfc9332"}
    assert {row["aqm"] for row in done[1].results} == {"dualpi2_freebsd"}
    assert not set(cell_keys(protocol, RANDOM, tmp_path)) & set(cell_keys(protocol, other, tmp_path))


def test_a_form_that_is_not_the_agents_costs_its_own_entry(protocol: Protocol, tmp_path: Path) -> None:
    wrong = msgspec.structs.replace(DRAWN, form="parameters")
    (found,) = sweep.run([wrong], protocol, "quick", tmp_path, jobs=0)
    assert found.failed is not None
    assert "decides in the form 'probability', not 'parameters'" in found.failed.traceback


def test_an_interval_that_an_agent_was_not_trained_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ZeroAgent()
    check_form(agent, "parameters", 16.0)  # a rule takes any
    monkeypatch.setattr(agent, "training", {"control_interval_ms": 500.0}, raising=False)
    check_form(agent, "parameters", 500.0)
    with pytest.raises(L4SError, match=r"trained for control intervals of 500 ms, not 16 ms: set control_interval_ms"):
        check_form(agent, "parameters", 16.0)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"form": "packets"}, "did you mean 'packet'"),
        ({"control_interval_ms": 100.0}, "control_interval_ms: is for the forms of control intervals"),
        ({"agent": "native:pie", "form": "parameters"}, "form: native:pie is a discipline"),
        ({"form": "probability", "decision_interval": 10}, "decision_interval: is for the form 'packet' alone"),
        ({"aqm": "dualpi2"}, "unknown discipline 'dualpi2'"),
        (
            {"aqm": "pie", "decision_interval": 10},
            "aqm: is for an agent of the form 'packet' that is asked at each one",
        ),
    ],
)
def test_experiments_of_no_form(how: dict[str, Any], text: str) -> None:
    with pytest.raises(L4SError, match=text):
        Experiment("Wrong", **({"agent": "random"} | how))


def test_a_machine_with_another_simulator_refuses_a_cell(protocol: Protocol, tmp_path: Path) -> None:
    (part,) = sweep.Sweep(protocol, "quick", tmp_path, jobs=0, ray="").parts(NATIVE)
    assert "results" in work.run(part.cells[0])
    assert "another version" in work.run(replace(part.cells[0], simulator="0123456789ab"))["traceback"]


def test_a_change_of_agent_or_protocol_is_another_cell(protocol: Protocol, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    keys = []
    for text, rules in (
        ("x = 1", protocol),
        ("x = 2", protocol),
        ("x = 2", msgspec.structs.replace(protocol, reward="power")),
        ("x = 2", msgspec.structs.replace(protocol, quick=msgspec.structs.replace(TINY, seconds=0.6))),
    ):
        file.write_text(text)
        own = Experiment("Mine", f"{file}:Mine", name="mine")
        keys += cell_keys(rules, own, tmp_path)
    assert len(keys) == len(set(keys)) == 4 * 3


def test_a_crash_costs_its_own_entry_only(done: list[Entry], protocol: Protocol, tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(
        "from l4s_gym.agents import RandomAgent\n"
        "class Crash(RandomAgent):\n"
        "    def act(self, obs, rewards):\n"
        "        raise RuntimeError('no idea')\n"
    )
    bad = Experiment("Crash", f"{tmp_path / 'crash.py'}:Crash", name="crash")
    none = Experiment("None", "no_such_module:Agent", name="none")
    lost = Experiment("Lost", "", training=Training("bc", "l4s/dualpi2/no-such-v0"), name="lost")
    entries = sweep.run([bad, RANDOM, none, lost], protocol, "quick", tmp_path / "work", jobs=0)
    assert bits(entries)[1] == bits(done)[1]
    for each, text in zip(entries[:1] + entries[2:], ("no idea", "no_such_module", "no-such-v0"), strict=True):
        assert each.failed is not None and text in each.failed.traceback and not each.results
        with pytest.raises(L4SError, match="failed in"):
            entry.validate(each, protocol)
        assert read(write(each, tmp_path)) == each


@pytest.mark.parametrize("kind", work.COSTS)
def test_cells_hold_every_episode_once_and_last_not_too_long(kind: str) -> None:
    rules, size = entry.read_protocol(), "full"
    seconds = rules.full.seconds
    for suite in rules.full.suites:
        numbers: list[int] = []
        episodes: list[tuple[str, int]] = []
        for first, names, seeds in work.batches(rules, size, suite, kind):
            numbers += range(first, first + len(names) * len(seeds))
            episodes += [(name, seed) for name in names for seed in seeds]
            rates = [work.rate_mbps(name) for name in names]
            assert max(rates) <= work.SPREAD * min(rates) and len(names) * len(seeds) <= work.LARGEST
            assert len(names) == 1 or len(seeds) == rules.full.seeds
            cost = work.COSTS[kind]
            assert len(names) == 1 or cost.call_us
            few = len(seeds) == 1 or cost.call_us > (len(names) * len(seeds) - 1) * cost.episode_us
            assert few or work.lasts_s(kind, max(rates), seconds, 1, len(names) * len(seeds)) <= work.LONGEST_S
        order = sorted(rules.members(suite), key=lambda name: (work.rate_mbps(name), name))
        assert numbers == list(range(len(episodes)))
        assert episodes == [(name, seed) for name in order for seed in rules.seeds(suite, size)]


class Asked(RandomAgent):
    """Random decisions, asked for from Python."""

    def act(self, obs: Any, rewards: Any) -> Any:
        return super().act(obs, rewards)


def test_how_episodes_are_split_into_cells_changes_nothing(
    done: list[Entry], protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = f"{Path(__file__)}:Asked"
    asked = Experiment("Asked", spec, name="asked")
    cells = len(cell_keys(protocol, asked, tmp_path))
    together = sweep.run([asked], protocol, "quick", tmp_path / "together", jobs=0)
    monkeypatch.setattr(work, "LONGEST_S", 0.0)
    monkeypatch.setitem(work.COSTS, "asked", work.Cost(1e-3, 1e-3))
    assert len(cell_keys(protocol, asked, tmp_path)) == 6 > cells
    alone = sweep.run([NATIVE, RANDOM, THRESHOLD, asked], protocol, "quick", tmp_path / "alone", jobs=0)
    assert bits(alone) == bits([*done[:3], *together])


def test_a_cell_of_another_simulator_is_run_again(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cell_keys(protocol, NATIVE, tmp_path)
    assert before == cell_keys(protocol, NATIVE, tmp_path)
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    assert not set(before) & set(cell_keys(protocol, NATIVE, tmp_path))


# -- with processes, trainings and kills


@pytest.fixture
def tiny_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A dataset that trains in a moment."""
    pytest.importorskip("d3rlpy")
    from l4s_gym.data import minari_io
    from l4s_gym.data.pools import make_rows
    from l4s_gym.data.simulated import simulate_log
    from l4s_gym.data.steps import episodes_from_rows

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "minari").mkdir()
    rows = [make_rows(simulate_log("web", seed=seed, seconds=1.0)) for seed in range(3)]
    name = "l4s/dualpi2/tiny-v0"
    episodes = [e for each in rows for e in episodes_from_rows(each)]
    about = {"env_kwargs": {"scenario": "web"}, "algorithm_name": "dualpi2_freebsd", "description": "For tests."}
    minari_io.create(name, episodes, **about)  # type: ignore[arg-type]
    return name


def trained(name: str, rule: str = "sample", variant: str = "sample") -> Experiment:
    how = Training("bc", name, settings=("steps=12", "batch_size=16", "hidden=[16]"), seeds=(0, 1))
    return Experiment("BC", f"rule={rule}", training=how, name="bc", variant=variant)


def test_trainings_are_shared_and_noted(tiny_dataset: str, protocol: Protocol, tmp_path: Path) -> None:
    both = [trained(tiny_dataset), trained(tiny_dataset, "argmax", "argmax")]
    entries = sweep.run(both, protocol, "quick", tmp_path / "work", jobs=0)
    for each in entries:
        entry.validate(each, protocol, {tiny_dataset: checksum(tiny_dataset)})
        assert [t.seed for t in each.training] == [0, 1] and each.training[0].parameters > 0
        assert {row["train_seed"] for row in each.results} == {0, 1} and len(each.results) == 2 * 6
        with pytest.raises(L4SError, match="checksum differs"):
            entry.validate(each, protocol, {tiny_dataset: "0" * 64})
    assert entries[0].training == entries[1].training
    assert len(list((tmp_path / "work" / "agents").glob("*/trained-*.json"))) == 2
    assert len({row["episode_return"] for row in entries[0].results}) == len(entries[0].results)


def student(teacher: Experiment, *settings: str, **more: Any) -> Experiment:
    brief = ("labels=300", "rounds=1", "packets=60", "leaves=[4]")
    how = Training(
        "student",
        scenarios="suite:train",
        teacher=teacher.training or "",
        settings=(*brief, *settings),
        seeds=(0, 1),
    )
    return Experiment("Student", "", training=how, name="student", **more)


def test_a_student_waits_for_its_teacher(tiny_dataset: str, protocol: Protocol, tmp_path: Path) -> None:
    """It is taught by the agent of its seed, which is trained once; its entry names the teacher's dataset."""
    teacher = trained(tiny_dataset)
    pupils = [student(teacher), student(teacher, "held_out=0.5", variant="other")]
    entries = sweep.run(pupils, protocol, "quick", tmp_path / "work", jobs=0)
    for each in entries:
        entry.validate(each, protocol, {tiny_dataset: checksum(tiny_dataset)})
        assert each.experiment.learned == "online" and [t.seed for t in each.training] == [0, 1]
        assert each.datasets == {tiny_dataset: checksum(tiny_dataset)}
        assert read(write(each, tmp_path / "entries")) == each
    homes = list((tmp_path / "work" / "agents").iterdir())
    assert len(homes) == 3 and sorted(len(list(home.glob("bc-*"))) for home in homes) == [0, 0, 2]
    told = [
        json.loads(path.read_text())["training"] for path in (tmp_path / "work").glob("agents/*/student-1/agent.json")
    ]
    assert [each["teacher"] for each in told] == ["bc:bc-1"] * 2
    (again,) = sweep.run([trained(tiny_dataset)], protocol, "quick", tmp_path / "work", jobs=0)
    assert again.failed is None and len(list((tmp_path / "work" / "agents").iterdir())) == 3  # the same training
    planned = sweep.Sweep(protocol, "quick", tmp_path, jobs=0, ray="")
    planned.need_datasets(pupils, sweep.silent)
    first, second = (planned.trainings(each)[1] for each in pupils)
    assert first.teacher == second.teacher and first.teacher is not None and first.teacher.seed == 1
    assert first.home != second.home and first.teacher.home == planned.trainings(teacher)[1].home


def test_a_teacher_that_fails_costs_its_students(tiny_dataset: str, protocol: Protocol, tmp_path: Path) -> None:
    how = Training("bc", tiny_dataset, settings=("no_such_key=1",))
    (found,) = sweep.run([student(Experiment("BC", "", training=how))], protocol, "quick", tmp_path / "work", jobs=0)
    assert found.failed is not None and "no_such_key" in found.failed.traceback and found.training == ()


def test_a_student_learns_away_from_its_teachers_machine(
    tiny_dataset: str, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = sweep.Sweep(protocol, "quick", tmp_path / "here", jobs=0, ray="")
    experiment = student(trained(tiny_dataset))
    planned.need_datasets([experiment], sweep.silent)
    job = planned.trainings(experiment)[0]
    assert job.teacher is not None
    work.train(job.teacher)
    name, files = job.parcel
    assert name == f"agent {AgentSpec.of_folder(job.teacher.folder).digest()}"
    packed = files()
    work.train(job)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    away = replace(job, home=tmp_path / "apart", teacher=replace(job.teacher, home=tmp_path / "nowhere"))
    made = work.run(away, packed)
    assert made["files"]["model.bin"] == (job.folder / "model.bin").read_bytes()


def test_nothing_is_run_beside_a_stale_dataset_or_agent(
    tiny_dataset: str, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l4s_gym.data import minari_io

    experiment, place = trained(tiny_dataset), tmp_path / "work"
    sweep.run([experiment], protocol, "quick", place, jobs=0)
    (folder,) = (place / "agents").glob("*/bc-0")
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    monkeypatch.setattr("l4s_gym.evaluation.work.evaluate", None)
    with pytest.raises(fingerprint.StaleError, match=f"dataset '{tiny_dataset}': is stale"):
        sweep.run([NATIVE, experiment], protocol, "quick", place, jobs=0)
    own = Experiment("Of one's own", str(folder), name="own")
    with pytest.raises(fingerprint.StaleError, match="bc-0: is stale"):
        sweep.run([NATIVE, own], protocol, "quick", place, jobs=0)
    # The same data made anew: agents of the older data are not taken for its own.
    minari_io.load(tiny_dataset).storage.update_metadata({"simulator": "0123456789ab"})
    made = sweep.Sweep(protocol, "quick", place, jobs=0, ray="")
    made.need_datasets([experiment], sweep.silent)
    assert not any(job.folder.exists() for job in made.trainings(experiment))


@pytest.mark.slow
def test_processes_and_dead_ones_change_nothing(tiny_dataset: str, protocol: Protocol, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        "import os, signal\n"
        "from l4s_gym.agents import RandomAgent\n"
        "class Dies(RandomAgent):\n"
        "    def act(self, obs, rewards):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    dies = Experiment("Dies", f"{tmp_path / 'dies.py'}:Dies", name="dies")
    good = [NATIVE, RANDOM, THRESHOLD, trained(tiny_dataset)]
    here = sweep.run(good, protocol, "quick", tmp_path / "here", jobs=0)
    apart = sweep.run([*good, dies], protocol, "quick", tmp_path / "apart", jobs=2)
    assert bits(apart)[:-1] == bits(here)
    assert apart[-1].failed is not None and "Process" in apart[-1].failed.traceback


ON_RAY = """
import sys, threading, time
from ray.cluster_utils import Cluster
from pathlib import Path
from l4s_gym.data import build, minari_io, recipes
from l4s_gym.evaluation import results, sweep
from tests.evaluation.test_sweep import NATIVE, RANDOM, TINY, trained
from l4s_gym.evaluation.entry import Experiment, Protocol

place, dataset = Path(sys.argv[1]), sys.argv[2]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
apart = {"SECOND": "1", "MINARI_DATASETS_PATH": str(place / "nothing"), "XDG_CACHE_HOME": str(place / "second")}
node = cluster.add_node(num_cpus=1, env_vars=apart)

with minari_io.datasets_in(place / "there"):
    made = build.build(recipes.load("tiny", place / "recipes"), "small", ray=cluster.address)
    print("built", build.checksum(made.id))

def kill():
    while not (place / "hangs").exists():
        time.sleep(0.1)
    cluster.remove_node(node, allow_graceful=False)
    print("killed", flush=True)

threading.Thread(target=kill, daemon=True).start()
hangs = Experiment("Hangs", f"{place / 'hangs.py'}:Hangs", name="hangs")
protocol = Protocol("balance", {"train": 0, "test": 100, "shift": 200}, TINY, TINY, TINY)
every = [NATIVE, RANDOM, hangs, trained(dataset)]
for each in sweep.run(every, protocol, "quick", place / "work", ray=cluster.address):
    assert each.failed is None, each.failed.traceback
    results.write(each, place / "entries")
cluster.shutdown()
"""
HANGS = """
import os, time
from pathlib import Path
from l4s_gym.agents import RandomAgent

class Hangs(RandomAgent):
    def act(self, obs, rewards):
        mark = Path(os.environ.get("HANGS", __file__))
        if "SECOND" in os.environ:
            mark.touch()
            time.sleep(3600.0)
        while not mark.exists():
            time.sleep(0.1)
        return super().act(obs, rewards)
"""
RECIPE = """
title = "Tiny"
description = "For tests."
scenarios = ["web", "l4s-llm-testbed"]
behaviours = [{}]
small = {episodes = 4, seconds = 0.5, per_shard = 1}
full = {episodes = 4, seconds = 0.5}
"""


@pytest.mark.slow
def test_a_node_of_ray_that_dies_changes_nothing(tiny_dataset: str, protocol: Protocol, tmp_path: Path) -> None:
    """A dataset, trainings and cells on two nodes that share no data; the second is killed while a cell hangs there."""
    pytest.importorskip("ray")
    pytest.importorskip("matplotlib")
    from l4s_gym.data import build, minari_io, recipes

    (tmp_path / "recipes" / "tiny").mkdir(parents=True)
    (tmp_path / "recipes" / "tiny" / recipes.FILE).write_text(RECIPE)
    (tmp_path / "hangs.py").write_text(HANGS)
    more = {"PYTHONPATH": str(ROOT), "HANGS": str(tmp_path / "hangs"), "XDG_CACHE_HOME": str(tmp_path / "first")}
    ran = subprocess.run(
        [sys.executable, "-c", ON_RAY, str(tmp_path), tiny_dataset],
        env=os.environ | more | {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert ran.returncode == 0 and "killed" in ran.stdout, ran.stdout + ran.stderr[-3000:]
    with minari_io.datasets_in(tmp_path / "here"):
        made = build.build(recipes.load("tiny", tmp_path / "recipes"), "small", workers=1)
        assert f"built {build.checksum(made.id)}" in ran.stdout
    hangs = Experiment("Hangs", f"{tmp_path / 'hangs.py'}:Hangs", name="hangs")
    here = sweep.run([NATIVE, RANDOM, hangs, trained(tiny_dataset)], protocol, "quick", tmp_path / "alone", jobs=0)
    on_ray = {each.id: each for each in read_all(tmp_path / "entries")}
    assert bits([on_ray[each.id] for each in here]) == bits(here)


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_board(
    tiny_dataset: str, protocol: Protocol, tmp_path: Path
) -> None:
    experiments = [NATIVE, RANDOM, THRESHOLD, trained(tiny_dataset)]
    plain = json.dumps([msgspec.to_builtins(each) for each in experiments])
    rules = msgspec.json.encode(protocol).decode()
    code = """
import sys, msgspec
from pathlib import Path
from l4s_gym.evaluation import entry, results, sweep

if __name__ == "__main__":
    experiments = msgspec.json.decode(sys.argv[1], type=list[entry.Experiment])
    protocol = msgspec.json.decode(sys.argv[2], type=entry.Protocol)
    for each in sweep.run(experiments, protocol, "quick", Path(sys.argv[3]), jobs=2):
        results.write(each, Path(sys.argv[3]) / "entries")
"""
    script = tmp_path / "run.py"
    script.write_text(code)
    killed, delay = 0, 1.0
    while True:
        command = [sys.executable, str(script), plain, rules, str(tmp_path / "work")]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
        try:
            assert process.wait(delay) == 0
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            delay *= 1.3
            assert delay < 600
    assert killed >= 3
    whole = {each.id: each for each in sweep.run(experiments, protocol, "quick", tmp_path / "here", jobs=0)}
    found = read_all(tmp_path / "work" / "entries")
    assert {each.id: timeless(each) for each in found} == {i: timeless(e) for i, e in whole.items()}


def test_checkpoints_are_gone_on_from(
    tiny_dataset: str, protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was killed before and after a checkpoint ends with the same agent, here and on a cluster."""
    planned = sweep.Sweep(protocol, "quick", tmp_path, jobs=0, ray="")
    planned.datasets[tiny_dataset] = checksum(tiny_dataset)
    first, _ = planned.trainings(trained(tiny_dataset))
    first.folder.mkdir(parents=True)
    (first.folder / "something").write_text("of a training without a checkpoint")
    assert work.train(first)["seed"] == 0
    before = (first.folder / "weights.safetensors").read_bytes()
    learner = training.learner("bc")
    config = dict(first.config) | {"checkpoint_every": 5}

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = first.parcel[1]()
    here, apart = tmp_path / "other", tmp_path / "l4s-gym" / "trainings" / "apart-0"
    for home in (here, apart):
        begun = replace(first, config=config, home=home)
        with pytest.raises(KeyboardInterrupt):
            learner.train(tiny_dataset, config, begun.folder, progress=stop)
        assert (begun.folder / training.CHECKPOINT).is_file()
    work.train(replace(first, config=config, home=here))
    assert (here / first.folder.name / "weights.safetensors").read_bytes() == before
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))  # the data comes with the job
    made = work.run(replace(first, config=config, home=tmp_path / "apart"), data)
    assert made["files"]["weights.safetensors"] == before and not apart.exists()


def test_a_learner_that_is_online_gets_scenarios(
    protocol: Protocol, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dataset is looked for; other scenarios are another training; the entry is one of the class `online`."""
    monkeypatch.setitem(KINDS, "mine", AgentKind("", "", {}, online=True))
    told: list[Any] = []

    def learn(source: str, *_: Any, **more: Any) -> dict[str, float]:
        told.append((source, more))
        return {"seconds": 1.0}

    monkeypatch.setattr(training, "learner", lambda _: SimpleNamespace(train=learn))
    cost = {"parameters": 3.0, "trainable_parameters": 2.0}
    monkeypatch.setattr("l4s_gym.agents.saved.load", lambda _: SimpleNamespace(cost=lambda: cost))
    planned = sweep.Sweep(protocol, "quick", tmp_path, jobs=0, ray="")
    homes = set()
    for where in ("suite:train", "random:train:3"):
        each = Experiment("Mine", "", training=Training("mine", scenarios=where), name="mine")
        assert each.learned == "online"
        planned.need_datasets([each], sweep.silent)
        (job,) = planned.trainings(each)
        homes.add(job.home)
        assert job.parcel[1]() == {} and work.train(job)["seconds"] == 1.0
    assert len(homes) == 2 and planned.datasets == {}
    assert told == [("suite:train", {"resume": False}), ("random:train:3", {"resume": False})]
    with pytest.raises(L4SError, match="give a dataset, or scenarios"):
        Training("mine")


def test_the_weights_of_a_language_model_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the learner says stands in the entry; other learners say nothing."""
    for said in ({"weights": "random"}, {}):
        learner = SimpleNamespace(train=lambda *_, said=said, **__: {"seconds": 1.0, **said})
        monkeypatch.setattr(training, "learner", lambda _, learner=learner: learner)
        cost = {"parameters": 3.0, "trainable_parameters": 2.0}
        monkeypatch.setattr("l4s_gym.agents.saved.load", lambda _, cost=cost: SimpleNamespace(cost=lambda: cost))
        found = work.train(work.Training("llm", "l4s/dualpi2/x-v0", "", {}, 0, tmp_path))
        assert entry.TrainedAgent(**found).weights == said.get("weights", "")
