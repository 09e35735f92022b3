"""The leaderboard's commands: experiments that ship, an agent of one's own in one command, checks of entries."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import msgspec
import pytest

from l4s_gym import L4SError
from l4s_gym.agents import training
from l4s_gym.cli import main
from l4s_gym.data.build import recipe_of
from l4s_gym.evaluation import entry, leaderboard, results
from l4s_gym.evaluation.entry import Entry, Experiment, Protocol, Training
from l4s_gym.evaluation.results import read, read_all, write
from l4s_gym.forms import PACKET
from l4s_gym.sim import fingerprint, scenario

pytest.importorskip("pyarrow", reason="needs PyArrow: pip install 'l4s-gym[data]'")

ROOT = Path(__file__).parents[2]
RULES = """
reward = "balance"
[first_seed]
train = 0
test = 100
shift = 200
[quick]
seconds = 0.4
seeds = 2
suites = ["test", "shift"]
scenarios = ["l4s-llm-testbed", "web", "grid-4m-10ms"]
[standard]
seconds = 0.4
seeds = 2
[full]
seconds = 0.4
seeds = 2
"""
MINE = """
import numpy as np

class Mine:
    name = "mine"
    rule = "-"

    def reset(self, n, seed):
        self.n = n

    def act(self, obs, rewards):
        return np.where(obs[:, 3] > 0.02, 2, 0)

    def cost(self):
        return {"parameters": 1.0, "trainable_parameters": 0.0}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    (folder / "protocol.toml").write_text(RULES)
    (folder / "mine.py").write_text(MINE)
    return folder


@pytest.fixture(scope="module")
def protocol(place: Path) -> Protocol:
    return entry.read_protocol(place / "protocol.toml")


def command(place: Path, *more: str) -> list[str]:
    rules = ["--protocol", str(place / "protocol.toml")]
    return ["leaderboard", *rules, "--size", "quick", "--out", str(place / "out"), "--jobs", "0", *more]


@pytest.fixture(scope="module")
def mine(place: Path) -> Path:
    """The entry of an agent of a file outside of the repository."""
    assert main(command(place, "--add", f"{place / 'mine.py'}:Mine")) == 0
    return place / "out" / "entries" / "mine--Mine.json"


def test_an_agent_of_ones_own_enters_by_one_command(mine: Path, place: Path, protocol: Protocol) -> None:
    there = read(mine)
    entry.validate(there, protocol)
    assert {each.id for each in read_all(mine.parent)} == {
        "mine--Mine",
        "native--dualpi2_rfc9332",
        "random--uniform",
    }
    board = (place / "out" / "leaderboard.md").read_text()
    assert board.startswith("# Leaderboard of the size `quick`\n")
    assert "mine--Mine" in board and "native--dualpi2_rfc9332" in board
    assert "mine--Mine" in (place / "out" / "index.html").read_text()


def test_some_experiments_come_with_what_their_scores_refer_to(mine: Path, place: Path) -> None:
    assert main([*command(place), "native/pie"]) == 0
    names = {"mine--Mine", "native--dualpi2_rfc9332", "native--pie", "random--uniform"}
    assert {each.id for each in read_all(mine.parent)} == names
    (mine.parent / "native--pie.json").unlink()
    (mine.parent / "episodes" / "native--pie.parquet").unlink()


def test_what_is_there_is_not_run_again(mine: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mine.read_bytes()
    monkeypatch.setattr("l4s_gym.evaluation.sweep.run", None)
    assert main(command(place, "--add", f"{place / 'mine.py'}:Mine")) == 0
    assert mine.read_bytes() == before


def test_an_entry_is_checked_by_running_a_part_again(
    mine: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(place, "--check", str(mine))) == 0
    assert "the same to the bit" in capsys.readouterr().out


def test_a_return_that_was_touched_is_found(mine: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = read(mine)

    def changed(by: float, cpu: str) -> Entry:
        rows = tuple({**row, "episode_return": row["episode_return"] + by} for row in whole.results)
        origin = whole.origin | {"host": whole.origin["host"] | {"cpu": cpu}}
        return msgspec.structs.replace(whole, results=rows, origin=origin)

    touched = write(changed(0.01, whole.origin["host"]["cpu"]), place / "touched")
    assert main(command(place, "--check", str(touched))) == 2
    assert "comes out otherwise" in capsys.readouterr().err
    for by, found in ((0.0, "the same to the bit"), (1e-9, "the same within 5 standard errors")):
        write(changed(by, "another"), place / "touched")
        assert main(command(place, "--check", str(touched))) == 0
        assert found in capsys.readouterr().out
    write(changed(1e6, "another"), place / "touched")  # whose sums may end otherwise, but not so
    assert main(command(place, "--check", str(touched))) == 2
    assert "a mean return of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("protocol_digest", "0" * 64, "protocol: is"),
        ("environment.version", "0.0.1", "version of the environment"),
        ("environment.schema_version", 99, "version of the schema"),
        ("environment.simulator", "older", "is stale: made with simulator older, .*: l4s-gym leaderboard mine/Mine$"),
        ("environment.simulator", "delete", "is stale: made with simulator none"),
        ("environment.scenarios.web", "0" * 64, "scenario 'web'"),
        ("failed", {"where": "test", "traceback": "..."}, "failed in test"),
        ("agent", "other", "its experiment of"),
        ("format", 1, "format"),
        ("wall_s", "long", "wall_s"),
        ("new", 1, "unknown field"),
        ("episodes.sha256", "0" * 64, "mine--Mine.parquet: sha256: is not the one in mine--Mine.json"),
        ("episodes.count", 3, "does not hold the 3 episodes of mine--Mine"),
        ("means.test.web.jain", 0.5, "means: are not those of its episodes"),
    ],
)
def test_what_is_refused_and_why(
    mine: Path, protocol: Protocol, tmp_path: Path, path: str, value: object, text: str
) -> None:
    tree = json.loads(mine.read_text())
    *above, last = (int(name) if name.isdigit() else name for name in path.split("."))
    at = tree
    for name in above:
        at = at[name]
    if value == "delete":
        del at[last]
    else:
        at[last] = value
    (tmp_path / mine.name).write_text(json.dumps(tree))
    (tmp_path / "episodes").symlink_to(mine.parent / "episodes")
    with pytest.raises(L4SError, match=text):
        entry.validate(read(tmp_path / mine.name), protocol)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("seed", 5, "is no cell of this protocol"),
        ("scenario", "lte", "is no cell of this protocol"),
        ("jain", None, r"\.jain: is not a finite number"),
        ("episode_return", float("nan"), r"\.episode_return: is not a finite number"),
        ("delay_quantiles", {"C": [None] * 26, "L": [0.0] * 26}, r"\.delay_quantiles\.C\[0\]: is not"),
        ("jain", "delete", "jain: is missing"),
        ("", "delete", "1 cells are missing"),
    ],
)
def test_episodes_that_are_refused_and_why(
    mine: Path, protocol: Protocol, tmp_path: Path, field: str, value: object, text: str
) -> None:
    whole = read(mine)
    first, *others = whole.results
    kept = {name: each for name, each in first.items() if name != field} | ({} if value == "delete" else {field: value})
    rows = [kept, *others] if field else others
    bad = msgspec.structs.replace(whole, results=tuple(rows))
    with pytest.raises(L4SError, match=text):
        entry.validate(bad if field and value == "delete" else read(write(bad, tmp_path)), protocol)


def test_the_files_of_entries_hold_together(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(mine)
    other = msgspec.structs.replace(
        whole, agent="other", experiment=msgspec.structs.replace(whole.experiment, name="other")
    )
    paths = [write(each, tmp_path) for each in (whole, other)]
    parts = [tmp_path / "episodes" / f"{path.stem}.parquet" for path in paths]
    kept = [path.read_bytes() for path in (paths[0], parts[0])]
    assert results.arrow()[1].read_table(tmp_path / "episodes").num_rows == 2 * len(whole.results)
    # Killed between the two files: the entry is not there, and others are as they were.
    with monkeypatch.context() as patch:
        patch.setattr(results, "means", None)
        with pytest.raises(TypeError):
            write(other, tmp_path)
    assert read_all(tmp_path) == [whole] and [path.read_bytes() for path in (paths[0], parts[0])] == kept
    write(other, tmp_path)
    assert read_all(tmp_path) == [whole, other]
    paths[1].with_name("x--y.json").write_bytes(paths[0].read_bytes())
    with pytest.raises(L4SError, match=r"x--y.parquet: cannot be read"):
        read_all(tmp_path)
    parts[1].write_bytes(kept[1])
    with pytest.raises(L4SError, match=r"other--Mine.parquet: sha256: is not the one in other--Mine.json"):
        read(paths[1])


def test_what_an_agent_says_of_its_cost_is_a_number(mine: Path, tmp_path: Path) -> None:
    whole = read(mine)
    rows = tuple({**row, "cost": {"parameters": "many"}} for row in whole.results)
    with pytest.raises(L4SError, match="let the agent's `cost` give numbers"):
        write(msgspec.structs.replace(whole, results=rows), tmp_path)
    assert read_all(tmp_path) == []


def test_what_another_simulator_made_is_not_on_the_board(
    mine: Path, place: Path, protocol: Protocol, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    good, refused = leaderboard.valid(read_all(mine.parent), protocol, "quick")
    assert not good and {each.reason.partition(":")[0] for each in refused} == {"is stale"}
    assert main(command(place, "--add", f"{place / 'mine.py'}:Mine")) == 2
    assert "is there already (is stale: made with simulator" in capsys.readouterr().err
    assert main(command(place, "--check", str(mine))) == 2
    assert "mine--Mine: is stale" in capsys.readouterr().err
    # Beside new ones, an old one is listed, and has no row.
    old = place / "results"
    old.mkdir()
    (old / mine.name).write_bytes(mine.read_bytes())
    shutil.copytree(mine.parent / "episodes", old / "episodes")
    assert main(command(place, "native/pie", "--results", str(old))) == 0
    told = "mine--Mine: not on the board: is stale: made with simulator"
    board = (place / "out" / "leaderboard.md").read_text()
    assert f"- {told}" in board and "simulator 0123456789ab." in board and "| mine--Mine" not in board
    assert told in (place / "out" / "index.html").read_text()


def test_entries_are_not_replaced(mine: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = place / "other" / "mine.py"
    changed.parent.mkdir(exist_ok=True)
    changed.write_text(MINE)
    assert main(command(place, "--add", f"{changed}:Mine")) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("my_agent:MyAgent", "my_agent--MyAgent"),
        ("a/b/my_agent.py:MyAgent", "my_agent--MyAgent"),
        ("bc:runs/x,rule=diffuse", "x--rule-diffuse"),
        ("threshold:l_us=500", "threshold--l_us-500"),
        ("native:pie", "native--pie"),
        ("enqueue", "enqueue--default"),
    ],
)
def test_names_of_agents_that_are_added(spec: str, name: str) -> None:
    assert leaderboard.added(spec).id == name


def test_the_form_of_agents_that_are_added() -> None:
    assert leaderboard.added("threshold").form == "packet"
    assert leaderboard.added("random:form=probability").form == "probability"


def test_training_on_what_is_to_be_unseen_is_refused() -> None:
    for dataset, good in (("testbed", True), ("mixed", True), ("epsilon", True), ("grid", False), ("overload", False)):
        how = Training("bc", f"l4s/dualpi2/{dataset}-small-v0")
        experiment = Experiment("BC", "", training=how, name="bc", aqm="dualpi2_rfc9332" if dataset == "mixed" else "")
        if good:
            leaderboard.check_training(experiment)
        else:
            with pytest.raises(L4SError, match="to be unseen"):
                leaderboard.check_training(experiment)


def test_an_agent_is_asked_over_a_law_of_its_data() -> None:
    """What it sees of the law underneath is what it learned from."""
    how = Training("bc", "l4s/dualpi2/mixed-small-v0")
    for aqm in ("", "dualpi2_freebsd", "pie"):
        with pytest.raises(L4SError, match='give aqm = "dualpi2_rfc9332" or "dualpi2_linux"'):
            leaderboard.check_training(Experiment("BC", "", training=how, name="bc", aqm=aqm))
    for aqm in ("dualpi2_rfc9332", "dualpi2_linux"):
        leaderboard.check_training(Experiment("BC", "", training=how, name="bc", aqm=aqm))


def test_experiments_that_ship() -> None:
    every = leaderboard.experiments(folder=ROOT / "benchmarks" / "experiments")
    ids = [each.id for each in every]
    assert len(ids) == len(set(ids)) and {"random--uniform", "native--dualpi2_rfc9332"} <= set(ids)
    for each in every:
        leaderboard.check_training(each, entry.read_protocol())
        if each.training:
            how = training.load_config(
                each.training.learner, small=each.training.small, settings=each.training.settings
            )
            if each.form == PACKET and each.name != "llm":  # the paper's model learns from each packet
                assert how.get("decision_interval", 1) == each.decision_interval, each.id
        for trained in each.training.every if each.training and each.interval_ms else ():
            recipe = recipe_of(trained.dataset) if trained.dataset else None
            assert recipe is None or recipe.control_interval_ms == each.interval_ms, each.id
    with pytest.raises(L4SError, match="did you mean 'native/pie'"):
        leaderboard.experiments(["native/pi"], ROOT / "benchmarks" / "experiments")
    assert len(leaderboard.experiments(["native"], ROOT / "benchmarks" / "experiments")) == 12


def test_protocol_that_ships() -> None:
    path = ROOT / "benchmarks" / "protocol.toml"
    rules = entry.read_protocol(path)
    seeds = [seed for suite in scenario.SUITES for seed in rules.seeds(suite, "full")]
    assert len(seeds) == len(set(seeds))
    assert {suite for suite, _ in rules.cells("quick")} == {"test", "shift", "dyn"}
    plain = tomllib.loads(path.read_text())
    assert len(list(rules.cells("full"))) == 59 and len(list(rules.cells("standard"))) == 34
    assert plain["standard"]["seeds"] == 10
    assert len({rules.digest(size) for size in entry.SIZES}) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("shift = 200", "shift = 101"), "share seeds"),
        (('"web"', '"wbe"'), "did you mean 'web'"),
        (("seconds = 0.4", "seconds = -1"), "quick.seconds"),
        (("reward", "rewards"), "reward"),
        (("shift = 200", ""), "lacks shift"),
    ],
)
def test_protocols_that_are_refused(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    path = tmp_path / "protocol.toml"
    path.write_text(RULES.replace(*change))
    with pytest.raises(L4SError, match=text):
        entry.read_protocol(path)


@pytest.mark.parametrize(
    ("size", "folder"), [("standard", "results"), pytest.param("full", "results/full", marks=pytest.mark.slow)]
)
def test_the_committed_boards_are_whole_and_valid(size: str, folder: str) -> None:
    rules = entry.read_protocol(ROOT / "benchmarks" / "protocol.toml")
    entries = {each.id: each for each in read_all(ROOT / "benchmarks" / folder)}
    good, refused = leaderboard.valid(list(entries.values()), rules, size)
    assert refused == [] and len(good) == len(entries) and not any(each.failed for each in good)
    wanted = {each.id: each for each in leaderboard.experiments(folder=ROOT / "benchmarks" / "experiments")}
    if size == "full":  # not all: some would take days
        wanted = {name: wanted[name] for name in wanted if name.startswith("native") or name in entries}
    assert {name: each.experiment for name, each in entries.items()} == wanted


@pytest.mark.slow
def test_a_committed_entry_comes_out_again(tmp_path: Path) -> None:
    rules = entry.read_protocol(ROOT / "benchmarks" / "protocol.toml")
    each = read(ROOT / "benchmarks" / "results" / "native--dualpi2_linux.json")
    said: list[str] = []
    leaderboard.rerun(each, rules, tmp_path, say=said.append)
    assert said[-1].startswith("native--dualpi2_linux: the same")
