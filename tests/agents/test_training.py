"""What trainings share: the split, configurations, checkpoints, and the commands `train` and `test`."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, agents, cli
from l4s_gym.agents import saved, training
from l4s_gym.agents.logged import Stretch, cut, offline_decisions, split
from l4s_gym.agents.registry import KINDS, AgentKind
from l4s_gym.cli.common import console
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.envs.dualpi2 import DualPI2Env
from l4s_gym.sim import fingerprint
from tests.agents.conftest import DATASET, TINY

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]
Trained = Callable[[str], Path]


# -- what is held out


def test_episodes_are_held_out_whole() -> None:
    steps = [10, 20, 30, 40, 50]
    train, held = split(steps, 0.4, seed=1)
    assert sorted(train + held) == [Stretch(k, 0, n) for k, n in enumerate(steps)]
    assert len(held) == 2
    assert split(steps, 0.4, seed=1) == (train, held)
    assert len({tuple(split(steps, 0.4, seed=seed)[1]) for seed in range(9)}) > 1
    assert [len(part) for part in split([5, 5], 0.01)] == [1, 1]
    assert [len(part) for part in split([5, 5], 0.99)] == [1, 1]
    assert split([100], 0.25) == ([Stretch(0, 0, 75)], [Stretch(0, 75, 100)])
    for wrong in ((steps, 0.0), (steps, 1.0), ([], 0.5), ([2], 0.5)):
        with pytest.raises(L4SError):
            split(*wrong)


def test_a_cut_episode_has_its_own_rows(episodes: list[Trajectory]) -> None:
    (part,) = cut(episodes, [Stretch(1, 30, 80)])
    np.testing.assert_array_equal(part.observations, episodes[1].observations[30:81])
    np.testing.assert_array_equal(part.actions, episodes[1].actions[30:80])
    assert len(part) == len(part.rewards) == len(np.asarray(part.applied)) == 50
    assert len(part.known) == len(part.extras["time_us"]) == 51


def test_windows_do_not_straddle_episodes(episodes: list[Trajectory]) -> None:
    logged = Trajectory.joined(episodes)
    poisoned = Trajectory(logged.observations.copy(), logged.actions.copy(), logged.rewards.copy(), logged.starts)
    start, stop = logged.starts[1:3]
    for array in (poisoned.observations, poisoned.actions, poisoned.rewards):
        array[:start] = array[stop:] = 1
    index = np.array([start, start + 3, stop - 1])
    for name, values in logged.windows(index, 8).items():
        np.testing.assert_array_equal(poisoned.windows(index, 8)[name], values, err_msg=name)
    window = logged.windows(index, 8)
    assert window["mask"].sum(axis=1).tolist() == [1, 4, 8]
    assert window["timesteps"][1].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert window["returns_to_go"][0, -1] == pytest.approx(logged.rewards[start:stop].sum())
    assert not np.isin(logged.starts[1:] - 1, logged.followed).any()


@pytest.mark.parametrize("interval", [1, 10, 100])
def test_strided_steps_are_what_an_environment_shows_at_intervals(interval: int) -> None:
    """Under a FIFO and an agent that enqueues always, so that it makes no difference who decides in between."""

    def played(every: int) -> Trajectory:
        env = DualPI2Env("l4s-llm-testbed", aqm="fifo", decision_interval=every)
        observations, rewards = [env.reset(seed=3)[0]], np.zeros(3000 // every)
        for step in range(len(rewards)):
            observation, reward, *_ = env.step(0)
            observations.append(observation)
            rewards[step] = float(reward)
        steps = len(rewards)
        return Trajectory(np.stack(observations[:-1]), np.zeros(steps, np.int64), rewards, np.array([0, steps]))

    shown, found = played(interval), played(1).strided(interval)
    assert len(found) == 3000 and len(found.starts) == interval + 1
    assert len(shown) == found.starts[1] == 3000 // interval
    np.testing.assert_array_equal(found.observations[: len(shown)], shown.observations)
    np.testing.assert_allclose(found.rewards[: len(shown)], shown.rewards, rtol=1e-9, atol=1e-12)


def test_strided_windows_of_logged_steps_are_those_of_the_dataset(dataset: str, episodes: list[Trajectory]) -> None:
    from l4s_gym.data.windows import Windows

    windows, logged = Windows(dataset, 5, stride=7), Trajectory.joined(episodes, drop_missing=False)
    strided = logged.strided(7)
    assert strided.rewards[strided.starts[0] : strided.starts[1]].sum() == pytest.approx(logged.returns[0])
    place = [
        start + step
        for start, stop in zip(logged.starts[:-1], logged.starts[1:], strict=True)
        for first in range(7)
        for step in range(first, stop - start, 7)
    ]
    some = np.random.default_rng(0).permutation(len(strided))[:300]
    expected = windows.arrays(np.array(place)[some])
    for name, values in strided.windows(some, 5).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_some_steps(episodes: list[Trajectory]) -> None:
    logged = Trajectory.joined(episodes)
    some = logged.some(1000)
    assert 900 < len(some) <= 1000 and some[0] == 0 and some[-1] == len(logged) - 1
    assert len(np.unique(some)) == len(some)
    np.testing.assert_array_equal(logged.some(10**9), np.arange(len(logged)))
    assert len(logged.some(7)) == 7


def test_decisions_of_any_agent_are_compared(episodes: list[Trajectory]) -> None:
    said, was = offline_decisions(agents.make("enqueue"), Trajectory.joined(episodes), 6000)
    assert len(said) == len(was) == 6000
    assert not said.any() and was.any()


# -- configurations


@pytest.mark.parametrize("name", sorted(KINDS))
def test_the_file_says_what_the_code_does(name: str) -> None:
    path = ROOT / "agents" / name / training.FILE
    if not path.is_file():
        pytest.skip(f"{name} has no folder yet")
    learner: Any = training.learner(name)
    small = training.load_config(name, path, small=True)
    full = training.load_config(name, path)
    assert "small" not in full and small != full
    assert (path.parent / "README.md").is_file()
    if hasattr(learner, "defaults"):
        learner.configure(small)
        given = learner.plain(learner.configure(full))
        assert given == learner.plain(learner.configure({}))
        said = {key for key, value in given.items() if value is not None}  # TOML has no None
        assert set(tomllib.loads(path.read_text())) - {"small"} == said


def test_settings_come_last(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("steps = 5\n[algorithm]\na = 1\nb = 2\n[small]\nsteps = 3\n[small.algorithm]\nb = 9\n")
    config = training.load_config("bc", path, small=True, settings=("algorithm.a=0.5", "rule=argmax", "hidden=[3]"))
    assert config == {"steps": 3, "algorithm": {"a": 0.5, "b": 9}, "rule": "argmax", "hidden": [3]}
    for text, message in (("steps", "give key=value"), ("=3", "give key=value")):
        with pytest.raises(L4SError, match=message):
            training.load_config("bc", path, settings=(text,))
    path.write_text("steps = ")
    with pytest.raises(L4SError, match="is no TOML"):
        training.load_config("bc", path)
    path.write_text("steps = 1")
    with pytest.raises(L4SError, match=r"has no \[small\]"):
        training.load_config("bc", path, small=True)
    with pytest.raises(L4SError, match="cannot be read"):
        training.load_config("bc", tmp_path / "none.toml")
    with pytest.raises(L4SError, match="did you mean 'cql'"):
        training.load_config("cqll")


def test_what_a_kind_learns_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    """Offline kinds from a dataset, online ones from scenarios, and some of them from both."""
    for name, both in (("online", False), ("both", True)):
        monkeypatch.setitem(KINDS, name, AgentKind(f"{__name__}:Told", "", {}, online=True, starts_offline=both))
    assert training.sources("bc", "d") == ("d", {})
    assert training.sources("online", scenarios="suite:train") == ("suite:train", {})
    assert training.sources("both", "d", "s") == ("s", {"dataset": "d"})
    assert training.sources("both", "", "s") == ("s", {})
    for wrong, message in (
        (("bc", "", "s"), "learns offline: give a dataset"),
        (("bc", "d", "s"), "and no scenarios"),
        (("bc",), "give a dataset"),
        (("online", "d"), "give scenarios, such as random:train"),
        (("online", "d", "s"), "and no dataset"),
    ):
        with pytest.raises(L4SError, match=message):
            training.sources(*wrong)
    command = ("train", "both", "--scenarios", "suite:train", "--dataset", "d", "--out", tmp_path)
    code, text, _ = run(capsys, *command)
    assert (code, text) == (0, f"suite:train, {{'dataset': 'd'}}\n{tmp_path}: both\n")


class Told:
    """A learner that only says what it was told."""

    @staticmethod
    def train(source: str, config: Any, out: Path, *, resume: bool, progress: Any, say: Any, **more: str) -> Any:
        say(f"{source}, {more}")
        return {}


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("bc", {"stepz": 1}, "did you mean 'steps'"),
        ("bc", {"steps": "many"}, "bc: steps: Expected `int`, got `str`"),
        ("bc", {"steps": 0}, "1 or more"),
        ("bc", {"hidden": []}, "1 or more"),
        ("bc", {"rule": "most"}, "decision rule"),
        ("bc", {"temperature": 1.0}, "unknown key"),
        ("bc", {"algorithm": {"betta": 1.0}}, "did you mean 'beta'"),
        ("cql", {"algorithm": {"n_critics": 1.5}}, "cql: algorithm.n_critics: Expected `int`, got `float`"),
        ("cql", {"algorithm": 3}, "is a table"),
        ("cql", {"imbalance": {"kind": "weights"}}, "cannot apply imbalance kind 'weights'"),
        ("dt", {"imbalance": "focus"}, "kind of imbalance"),
    ],
)
def test_bad_configurations(name: str, config: dict[str, Any], message: str) -> None:
    pytest.importorskip("d3rlpy")
    learner: Any = training.learner(name)
    with pytest.raises(L4SError, match=message):
        learner.configure(config)


# -- learning with rare actions


@pytest.mark.parametrize(
    ("kind", "imbalance"), [("bc", "weights"), ("bc", "focal"), ("bc", "sample"), ("dt", "sample"), ("dt", "focal")]
)
def test_imbalance_is_undone(kind: str, imbalance: str, dataset: str, tmp_path: Path) -> None:
    """Trained for a while with rare actions made frequent, the mean probabilities are near the data's again."""
    config = TINY[kind] | {"steps": 100, "imbalance": {"kind": imbalance}, "batch_size": 64, "held_out_steps": 2000}
    config["algorithm"] = config.get("algorithm", {}) | {"learning_rate": 3e-3}
    metrics = training.learner(kind).train(dataset, config, tmp_path / "agent")["metrics"]
    assert abs(metrics["mean_probabilities"]["drop"] - metrics["shares"]["drop"]) < 0.06
    agent: Any = agents.make(str(tmp_path / "agent"))
    assert agent.imbalance.kind == imbalance and len(agent.imbalance.shares) == 3
    if imbalance != "focal":
        agent.imbalance = type(agent.imbalance)()
        from l4s_gym.data import minari_io

        logged = Trajectory.joined(list(minari_io.read_episodes(minari_io.load(dataset))))
        shifted = agent.logged_probabilities(logged, logged.some(500))
        assert shifted[:, 1].mean() > metrics["shares"]["drop"] + 0.1


@pytest.mark.parametrize("kind", ["cql", "bcq", "dqn", "sac"])
def test_greedy_decisions_are_d3rlpys(kind: str, trained: Trained) -> None:
    agent: Any = agents.make(str(trained(kind)))
    obs = np.random.default_rng(0).random((200, 8)).astype(np.float32)
    agent.reset(len(obs), 0)
    np.testing.assert_array_equal(agent.act(obs, np.zeros(len(obs))), agent.algo.predict(obs))


def test_options_of_learners_of_values(trained: Trained) -> None:
    obs = np.random.default_rng(0).random((20, 8)).astype(np.float32)
    soft, hot, even = (
        agents.make(f"{trained('cql')},rule=sample,{more}") for more in ("epsilon=0", "temperature=1e8", "epsilon=1")
    )
    p = [agent.probabilities(obs) for agent in (soft, hot, even)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(p[1], 1 / 3, atol=1e-5)
    np.testing.assert_allclose(p[2], 1 / 3)
    assert np.abs(p[0] - 1 / 3).max() > 1e-3
    for wrong in ("temperature=0", "epsilon=2", "temperature=nan", "epsilon=x"):
        with pytest.raises(L4SError, match="give"):
            agents.make(f"{trained('cql')},{wrong}")


# -- checkpoints


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "checkpoint.pt"
    training.save_checkpoint(path, {"step": 1, "config": {"a": 1}})

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(L4SError, match="No space left"):
        training.save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert training.load_checkpoint(path, config={"a": 1})["step"] == 1
    with pytest.raises(L4SError, match="another config"):
        training.load_checkpoint(path, config={"a": 2})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(L4SError, match="is damaged"):
        training.load_checkpoint(path)
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_crash_leaves_the_regular_checkpoint(dataset: str, trained: Trained, tmp_path: Path) -> None:
    def crash(share: float) -> None:
        if share > 0.7:
            raise RuntimeError("power cut")

    # The settings that do not change the result are part of the configuration all the same.
    config = TINY["bc"] | {"checkpoint_every": 5}
    with pytest.raises(RuntimeError, match="power cut"):
        training.learner("bc").train(dataset, config, tmp_path / "agent", progress=crash)
    assert training.load_checkpoint(tmp_path / "agent" / training.CHECKPOINT)["step"] == 5
    training.learner("bc").train(dataset, config, tmp_path / "agent", resume=True)
    found, whole = saved.read(tmp_path / "agent").tensors, saved.read(trained("bc")).tensors
    assert all(found[name].equal(whole[name]) for name in whole)


def test_a_loss_that_is_not_finite_ends_the_training(dataset: str, tmp_path: Path) -> None:
    config = TINY["dqn"] | {"algorithm": {"learning_rate": 1e30}}
    with pytest.raises(L4SError, match="not finite"):
        training.learner("dqn").train(dataset, config, tmp_path / "agent")


# -- the commands


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)


def run(capsys: Capture, *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    code = cli.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_train_and_test(dataset: str, tmp_path: Path, capsys: Capture, wide: None) -> None:
    out = tmp_path / "bc"
    config = ROOT / "agents" / "bc" / training.FILE
    words = (
        "--config",
        config,
        "--small",
        "--set",
        "steps=20",
        "hidden=[16]",
        "held_out_steps=500",
        "decision_interval=10",
    )
    code, text, err = run(capsys, "train", "bc", "--dataset", dataset, "--out", out, *words)
    assert (code, err) == (0, "")
    assert "macro-F1" in text and "held out: 500 steps" in text and f"{out}: bc, 20 steps" in text
    assert text.startswith("step 2/20, loss ") and text.count("s left\n") == 10
    result = tmp_path / "result.json"
    more = ("--scenario", "web", "--seconds", "0.3", "--seeds", "0", "1", "--steps", "400", "--out", result)
    code, text, err = run(capsys, "test", out, f"{out},rule=argmax", "threshold", "--dataset", dataset, *more)
    assert (code, err) == (0, "")
    assert "bc:bc (sample)" in text and "cross-entropy" in text and "web, 2 seeds" in text
    assert "bc:bc: is asked at every 1. packet, and was trained for --decision-interval 10\n" in text
    assert "is asked over" not in text  # no recipe made the dataset
    assert [training.trained_interval(each) for each in ({}, {"stride": 10}, {"decision_interval": 3})] == [1, 10, 3]
    body = json.loads(result.read_text())
    assert body["offline"]["bc:bc (sample)"]["part"] == "held out"
    assert body["offline"]["threshold (-)"]["part"] == "all"
    assert "cross_entropy" not in body["offline"]["threshold (-)"]
    assert len(body["closed_loop"]) == 6 and "versions" in body
    code, text, _ = run(capsys, "test", out, "--seconds", "0.3", "--scenario", "web", "--seeds", "0", "--steps", "400")
    assert code == 0 and "cross-entropy" in text  # the dataset of its training


@pytest.mark.parametrize("command", ["evaluate", "test"])
def test_what_an_agent_never_saw_is_told(
    command: str, dataset: str, trained: Trained, tmp_path: Path, capsys: Capture, wide: None
) -> None:
    """Data of RFC 9332's law, asked over the testbed's kernel."""
    out = tmp_path / "bc"
    shutil.copytree(trained("bc"), out)
    file = out / saved.ABOUT
    file.write_text(file.read_text().replace(DATASET, "l4s/dualpi2/mixed-v0"))
    told = "bc:bc: is asked over dualpi2_freebsd, and knows the probabilities of dualpi2_rfc9332 and dualpi2_linux"
    words = [command, out, *(("--dataset", dataset, "--steps", "400") if command == "test" else ())]
    for aqm in ((), ("--aqm", "dualpi2_linux")):
        code, text, err = run(capsys, *words, "--scenario", "web", "--seconds", "0.3", "--seeds", "0", *aqm)
        assert (code, err) == (0, "")
        assert (f"{told}: give --aqm dualpi2_rfc9332\n" in text) == (not aqm)


def test_what_is_stale_is_taken_by_an_option_and_the_results_say_so(
    dataset: str, trained: Trained, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, wide: None
) -> None:
    trained("bc")  # before the simulator is another
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    out, result = tmp_path / "bc", tmp_path / "result.json"
    train = ("train", "bc", "--dataset", dataset, "--out", out, "--set", "steps=10", "hidden=[16]")
    loop = (trained("bc"), "--scenario", "web", "--seconds", "0.3", "--seeds", "0", "--out", result)
    for words, what in ((train, dataset), (("test", *loop), "bc"), (("evaluate", *loop), "bc")):
        code, text, err = run(capsys, *words)
        assert code == 2 and f"{what}" in err and "is stale: made with simulator" in err and err.count("\n") == 1
        assert not out.exists() and not result.exists()
    for words in (train, ("test", *loop), ("evaluate", *loop)):
        code, text, err = run(capsys, *words, "--allow-stale")
        assert (code, err) == (0, "") and "is stale: made with simulator" in text
        if words is not train:
            stale = json.loads(result.read_text())["stale"]
            assert f"{trained('bc')}: is stale" in stale[0]
            assert len(stale) == (2 if words[0] == "test" else 1)  # the dataset of the offline metrics too
    with pytest.raises(fingerprint.StaleError):
        agents.make(str(out))
    code, text, err = run(capsys, "live", "control", out, "--socket", tmp_path / "none.sock")
    assert "is stale" in text and "is stale" not in err  # a real queue has no simulator beside the agent


def test_a_later_ctrl_c_ends_a_step_that_hangs() -> None:
    now = [0.0]
    with pytest.raises(KeyboardInterrupt), training.interruptible(lambda: now[0]) as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] = 1.0
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        now[0] = 60.0
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("presses", [1, 2, 5])
def test_ctrl_c_says_how_to_go_on(
    dataset: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, presses: int
) -> None:
    """Pressed once or several times at once, it leaves a checkpoint."""
    from contextlib import contextmanager

    from l4s_gym.cli import agents as commands

    @contextmanager
    def interrupting(_: str) -> Any:
        def show(share: float) -> None:
            for _ in range(presses if share == 0.5 else 0):
                signal.raise_signal(signal.SIGINT)

        yield show

    out = tmp_path / "my agents" / "bc"
    words = ("--dataset", dataset, "--out", out, "--set", "steps=10", "hidden=[16]")
    with monkeypatch.context() as patch:
        patch.setattr(commands, "progress_bar", interrupting)
        code, text, err = run(capsys, "train", "bc", *words)
    assert (code, err) == (130, "l4s-gym: interrupted\n")
    assert f"the checkpoint is in {out}. To go on: l4s-gym train bc" in text
    import shlex

    again = shlex.split(text.partition("To go on: ")[2])
    assert again[:2] == ["l4s-gym", "train"] and again[-1] == "--resume"
    assert run(capsys, *again[1:])[0] == 0
    assert agents.make(str(out)).name == "bc:bc"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "cqll", "--dataset", "x"), "did you mean 'cql'"),
        (("train", "bc", "--dataset", "l4s/dualpi2/nowhere-v0"), "not found"),
        (("train", "bc", "--dataset", "x", "--set", "steps"), "give key=value"),
        (("train", "bc", "--dataset", "l4s/dualpi2/nowhere-v0", "--resume"), "holds no checkpoint"),  # told first
        (("test",), "name at least one agent"),
        (("test", "random", "--seeds", "-1"), "0 or more"),
        (("test", "no/such/folder"), "name the folder of an agent"),
    ],
)
def test_refused(
    words: tuple[str, ...], message: str, dataset: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bc", "ppo"])
def test_learners_come_without_the_banners_of_others(kind: str) -> None:
    code = f"from l4s_gym.agents import training; training.learner({kind!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
