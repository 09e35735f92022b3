"""The environments, baselines and readers of `examples/netllm`."""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

FOLDER = Path(__file__).parents[1] / "examples" / "netllm"


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def _task(name: str) -> Any:
    __import__(name)
    return sys.modules[name]


ENVIRONMENTS = {"abr": "Streaming", "cjs": "Cluster", "vp": "Viewer"}
CASES = [(name, setting) for name in ENVIRONMENTS for setting in ("same", "unseen both")]


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_environments_keep_the_rules_of_gymnasium(name: str, setting: str) -> None:
    make = getattr(_task(name), ENVIRONMENTS[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*alternative render modes.*")
        check_env(make(setting), skip_render_check=True)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_policies_decide_within_the_spaces(name: str) -> None:
    task = _task(name)
    env = getattr(task, ENVIRONMENTS[name])("unseen both")
    for policy in task.POLICIES.values():
        observation, _ = env.reset(seed=3)
        for _ in range(15):
            action = np.asarray(policy(observation), env.action_space.dtype)
            assert env.action_space.contains(action if action.ndim else action[()])
            observation, *_ = env.step(action)
            assert env.observation_space.contains(observation)


def test_robust_mpc_tries_every_plan() -> None:
    """On a link without change it takes the first step of the best of all plans, found one by one."""
    abr = _task("abr")
    env = abr.Streaming(abr.Setting(traces=((2.0,) * 50,)))
    observation, _ = env.reset(seed=1)
    for level in (1, 1, 2, 2, 3, 3, 2, 2, 2, 2, 2, 2):
        observation, *_ = env.step(level)
    known = 10.0 * observation["throughput"].astype(float)
    mean = [5 / np.sum(1 / known[at : at + 5]) for at in range(6)]
    rate = mean[5] / (1 + max(abs(mean[at] - known[at + 5]) / known[at + 5] for at in range(5)))

    def score(plan: tuple[int, ...]) -> float:
        buffer, last, total = env.buffer_s, env.bitrates[env.level], 0.0
        for at, level in enumerate(plan):
            took = 8 * env.sizes[env.chunk + at, level] / rate
            total += env.bitrates[level] - abr.STALL * max(took - buffer, 0.0) - abs(env.bitrates[level] - last)
            buffer, last = max(buffer - took, 0.0) + abr.CHUNK_S, env.bitrates[level]
        return total

    best = max(product(range(6), repeat=5), key=score)
    assert abr.robust_mpc(observation) == best[0]


def test_what_a_chunk_earns() -> None:
    abr = _task("abr")
    env = abr.Streaming(abr.Setting(traces=((1.0,) * 50,), vary=0.0))
    env.reset(seed=0)
    size = env.sizes[0, 3]
    _, reward, _, _, info = env.step(3)
    took = abr.RTT_S + 8 * size / abr.PAYLOAD
    assert info["stall"] == pytest.approx(took)  # nothing was loaded before
    assert reward == pytest.approx(1.85 - 4.3 * took - (1.85 - 0.75))
    assert env.buffer_s == abr.CHUNK_S


def test_links_are_read(tmp_path: Path) -> None:
    abr = _task("abr")
    texts = {
        "mahimahi": ("0\n1\n999\n1500\n2999\n", (0.036, 0.012, 0.012)),
        "pensieve": ("0 1.5\n1 2.5\n3 4\n", (1.5, 2.5, 2.5, 4.0, 4.0)),
        "norway": ("1 0 59 10 250000 1000\n2 0 59 10 125000 2000\n", (2.0, 0.5, 0.5)),
        "fcc": ("unit_id,bytes_sec\n1,125000\n1,250000\n", (1.0,) * 5 + (2.0,) * 5),
    }
    for name, (text, rates) in texts.items():
        (tmp_path / name).write_text(text)
        assert abr.read_trace(tmp_path / name) == pytest.approx(rates), name
    (tmp_path / "other").write_text("a b c\n")
    with pytest.raises(ValueError, match="no trace"):
        abr.read_trace(tmp_path / "other")


@pytest.mark.parametrize("policy", ["fifo", "fair", "weighted fair", "shortest job first", "critical path"])
def test_rewards_are_job_completion_times(policy: str) -> None:
    """Whatever the scheduler: each task runs once, after the parents of its stage; rewards add up to the mean time."""
    cjs = _task("cjs")
    env, ends, jobs = cjs.Cluster(), [], []
    finish, later = env._finish, env._later

    def noted_finish(executor: int, stage: int) -> None:
        job = env.slots[env.at[executor]]
        finish(executor, stage)
        if not job.left.any():
            ends.append(env.now - job.arrived)

    def noted_later(time: float, executor: int, stage: int, job: Any) -> None:
        if job is not None:
            jobs.append(job)
        else:
            working = env.slots[env.at[executor]]
            assert not (working.parents[stage] & (working.left > 0)).any()
        later(time, executor, stage, job)

    env._finish, env._later = noted_finish, noted_later
    observation, _ = env.reset(seed=4)
    total, over = 0.0, False
    while not over:
        observation, reward, over, _, _ = env.step(cjs.POLICIES[policy](observation))
        total += reward
        assert env.busy.sum() == sum(job.running.sum() for job in env.slots if job is not None)
    assert len(ends) == len(jobs) == cjs.JOBS
    assert not any(job.left.any() for job in jobs)
    assert -total == pytest.approx(np.mean(ends))


def test_what_schedulers_choose() -> None:
    cjs = _task("cjs")
    nodes = np.zeros((cjs.NODES, len(cjs.VALUES)), np.float32)
    values = {0: (5.0, 3.0, 2.0, 0.4), 5: (1.0, 1.0, 1.0, 0.2), 6: (1.0, 2.0, 1.0, 0.2), 10: (2.0, 9.0, 3.0, 0.1)}
    for row, numbers in values.items():
        for name, value in zip(("job work", "path", "age", "on job"), numbers, strict=True):
            nodes[row, cjs.VALUES.index(name)] = value
    mask = np.isin(np.arange(cjs.NODES), list(values))
    observation = {"action_mask": mask, "stages": {"nodes": nodes}, "free": np.float32(1.0)}
    wanted = {"fifo": (10, 4), "shortest job first": (6, 4), "critical path": (10, 4), "fair": (10, 0)}
    for name, action in wanted.items():
        assert cjs.POLICIES[name](observation) == action, name
    assert cjs.POLICIES["weighted fair"](observation) == (6, 0)  # the least work, the largest share


def test_the_right_answer_has_no_error() -> None:
    vp = _task("vp")
    env = vp.Viewer()
    observation, info = env.reset(seed=0)
    for _ in range(5):
        before = observation
        observation, reward, _, _, later = env.step(info["right"])
        assert reward == 0.0
        # The answer is a movement from the direction at that time; now one sample later.
        assert before["yaw"][-1] == 0.0
        assert -observation["yaw"][-2] == pytest.approx(info["right"][0, 0], abs=1e-5)
        info = later


def test_saliency_shows_the_hot_spot() -> None:
    vp = _task("vp")
    env = vp.Viewer()
    env.reset(seed=2)
    env.view[env.at], env.spot[env.at] = (170.0, 0.0), (-160.0, 40.0)  # 30 degrees to the right, over the seam
    image = env._observation()["saliency"]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert abs((column + 0.5) * 360 / 32 - 180 - 30) <= 360 / 32
    assert abs(90 - (row + 0.5) * 180 / 32 - 40) <= 180 / 32


def test_viewers_are_read(tmp_path: Path) -> None:
    vp = _task("vp")
    path = tmp_path / "viewer.csv"
    path.write_text("time, yaw, pitch\n0,170,0\n0.4,-170,10\n")
    assert vp.read_views(path) == pytest.approx(np.array([[170, 0], [180, 5], [190, 10]]))
    path.write_text("time,x,y,z\n0,1,0,0\n0.2,0,1,1\n")
    assert vp.read_views(path) == pytest.approx(np.array([[0, 0], [90, 45]]))
    env = vp.Viewer(vp.Setting(views=(vp.read_views(path),)))
    observation, _ = env.reset(seed=0)
    assert not observation["saliency"].any()
    path.write_text("yaw,pitch\n0,0\n")
    with pytest.raises(ValueError, match="time"):
        vp.read_views(path)


def test_answers_in_words_are_read() -> None:
    pytest.importorskip("transformers")
    costs = _task("costs")
    answer = np.arange(20.0).reshape(10, 2) / costs.vp.UNIT_DEG
    assert costs.parsed(costs.said(-answer)) == pytest.approx(-answer)
    for wrong in ("", "1 2, 3 4", costs.said(answer) + ", 1 2", costs.said(answer).replace("3", "x")):
        assert costs.parsed(wrong) is None


def test_returns_are_told_relative_to_other_teachers() -> None:
    for name in ("torch", "transformers", "stable_baselines3"):
        pytest.importorskip(name)
    run = _task("run")
    task = run.TASKS["abr"]
    data = run.collected(task, 6)  # 2 links, 3 teachers
    gains = np.array([each.rewards[-1] for each in data]).reshape(3, 2)
    assert gains.sum(axis=0) == pytest.approx([0.0, 0.0])
    assert not any(each.rewards[:-1].any() for each in data)
    sums, steps = _task("play").play(task.make("same"), task.policies["bba"], [0, 1])
    other = _task("play").play(task.make("same"), task.policies["rate"], [0, 1])[0]
    assert gains[1] - gains[2] == pytest.approx((sums - other) / steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_comparison_runs(name: str) -> None:
    for needed in ("torch", "transformers", "accelerate", "stable_baselines3"):
        pytest.importorskip(needed)
    run = _task("run")
    result = run.compare(name, "small", trainings=2, size=0.02, say=lambda _: None)
    assert all(np.isfinite(values).all() for each in result["scores"].values() for values in each.values())
    page = run.page({"origin": {"command": "x", "time": "y", "host": {"cpu": "z"}}, **result})
    assert page.count("+-") == 3 * len(run.TASKS[name].settings)
    assert "| adapted transformer (`small`) |" in page
