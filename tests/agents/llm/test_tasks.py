"""Other tasks than queues: spaces, heads, and the way from episodes to an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from l4s_gym import L4SError, netllm
from l4s_gym.agents.llm import tasks
from l4s_gym.agents.llm.agent import TaskAgent
from l4s_gym.agents.llm.network import DecisionModel
from l4s_gym.agents.llm.settings import LLMConfig, from_dict, to_dict
from tests.agents.llm.toys import MODEL, config

NODES = 4


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1.0, 1.0, shape, np.float32)


GRAPH = spaces.Dict({"adjacency": spaces.Box(0.0, 1.0, (NODES, NODES)), "nodes": box(NODES, 2)})
ACTIONS: dict[str, spaces.Space[Any]] = {
    "categorical": spaces.Discrete(NODES),
    "pointer": spaces.MultiDiscrete([NODES, 2]),
    "regression": box(2, 1),
}


class Toy(gym.Env[Any, Any]):
    """The right answer is the largest of some numbers that is allowed, or the numbers themselves.

    Args:
        head: What is decided.
        masked: Whether one of the choices is not allowed.
    """

    def __init__(self, head: str, masked: bool = False) -> None:
        self.head, self.masked = head, masked
        self.action_space = ACTIONS[head]
        parts: dict[str, spaces.Space[Any]] = {"numbers": box(NODES), "one": box(), "kind": spaces.Discrete(3)}
        parts |= {"picture": box(8, 8), "graph": GRAPH} if head == "pointer" else {}
        parts |= {"action_mask": spaces.MultiBinary(NODES)} if masked else {}
        self.observation_space = spaces.Dict(parts)

    def _look(self) -> tuple[Any, dict[str, Any]]:
        found = self.observation_space.sample()
        found["numbers"] = self.np_random.uniform(-1, 1, NODES).astype(np.float32)
        if self.masked:
            found["action_mask"] = np.ones(NODES, np.int8)
            found["action_mask"][self.np_random.integers(NODES)] = 0
        if self.head == "pointer":
            found["graph"]["nodes"][:, 0] = found["numbers"]
        allowed = found["action_mask"] > 0 if self.masked else np.ones(NODES, bool)
        best = int(np.where(allowed, found["numbers"], -2.0).argmax())
        self.allowed = allowed
        right = {"categorical": best, "pointer": (best, int(found["numbers"][best] > 0.5))}
        self.right: Any = right.get(self.head, found["numbers"][:2, None])
        return found, {"right": self.right}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = 10
        return self._look()

    def step(self, action: Any) -> Any:
        if self.head == "regression":
            reward = -float(np.abs(action - self.right).mean())
        else:
            reward = float(np.array_equal(action, self.right))
            assert self.allowed[np.ravel(action)[0]]
        self.left -= 1
        return *((found := self._look())[0], reward, self.left == 0, False), found[1]


def small(task: Toy) -> LLMConfig:
    return from_dict(MODEL | tasks.described(task.observation_space, task.action_space) | {"window": 3})


CASES = [("categorical", False), ("categorical", True), ("pointer", True), ("regression", False)]


@pytest.mark.parametrize(
    ("head", "masked"), [CASES[1], *(pytest.param(*each, marks=pytest.mark.slow) for each in CASES[2:])]
)
def test_a_task_is_learnt_from_episodes(head: str, masked: bool, tmp_path: Path) -> None:
    """From right answers to an agent that decides nearly as well in closed loop, and is the same when loaded again."""
    episodes = netllm.rl_collect(lambda: Toy(head, masked), netllm.RIGHT, 40)
    given = config(steps=160, batch_size=16, length=10, eval_every=160, checkpoint_every=160, learning_rate=1e-2)
    given["model"] = MODEL | {"encoder": {"hidden": 32, "kernels": [1]}}
    agent = netllm.adapt(episodes, given, tmp_path / "agent", rule="argmax")
    assert isinstance(agent, TaskAgent)
    tested = netllm.test(agent, lambda: Toy(head, masked), seeds=range(500, 510))
    mean = np.mean([each.rewards.mean() for each in tested])
    assert mean > (-0.25 if head == "regression" else 0.6)  # at random -.6, .25
    again = netllm.test(tmp_path / "agent", lambda: Toy(head, masked), seeds=range(500, 510))
    assert (tmp_path / "agent" / "README.md").read_text().count(head) == 1
    if head == "regression":
        assert all(np.array_equal(one.actions, two.actions) for one, two in zip(tested, again, strict=True))


@pytest.mark.parametrize(("head", "masked"), CASES)
def test_step_by_step_is_one_pass(head: str, masked: bool) -> None:
    torch.manual_seed(0)
    model = DecisionModel(small(Toy(head, masked))).eval()
    (episode,) = netllm.play(lambda: Toy(head, masked), netllm.RIGHT, [3])
    task = model.config.task
    assert task is not None
    seen, steps = torch.from_numpy(episode.observations[:-1]), len(episode)
    done = torch.from_numpy(tasks.labels(task, episode.actions))
    returns, mask = torch.linspace(1, 0, steps)[None], torch.ones(1, steps, dtype=torch.bool)
    with torch.no_grad():
        whole = model(returns, seen[None], done[None], torch.arange(steps)[None], mask)[0]
    state = model.start(1)
    for step in range(steps):
        told = model.step(state, returns[:, step], seen[step : step + 1], done[step - 1 : step] if step else done[:1])
        torch.testing.assert_close(told[0], whole[step], atol=1e-4, rtol=1e-4)
    if masked:
        chosen = tasks.actions_of(task, whole.argmax(-1).numpy()).reshape(steps, -1)[:, 0]
        assert episode.observations[np.arange(steps), model.config.encoder.size + chosen].all()
        assert (whole < -1e8).sum() == steps * task.options


def test_numbers_before_are_not_told() -> None:
    """A right answer of the step before would give away the next one."""
    torch.manual_seed(0)
    model = DecisionModel(small(Toy("regression"))).eval()
    given = torch.rand(1, 5), torch.rand(1, 5, 8)
    rest = torch.arange(5)[None], torch.ones(1, 5, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(*given, torch.rand(1, 5, 2), *rest), model(*given, torch.rand(1, 5, 2), *rest))


def test_spaces_become_features() -> None:
    found = tasks.described(Toy("pointer", masked=True).observation_space, ACTIONS["pointer"])
    kinds = {each["name"]: (each["kind"], tuple(each["shape"])) for each in found["encoder"]["features"]}
    assert kinds == {
        "graph": ("graph", (4, 6)),
        "kind": ("vector", (3,)),
        "numbers": ("vector", (4,)),
        "one": ("series", ()),
        "picture": ("image", (8, 8)),
    }
    env = Toy("pointer", masked=True)
    observation, _ = env.reset(seed=0)
    settings = small(env)
    assert settings.task is not None
    row = tasks.flat(settings.encoder.features, True, observation)
    assert row.dtype == np.float32
    wanted = [*np.concatenate((observation["graph"]["adjacency"], observation["graph"]["nodes"]), axis=1).ravel()]
    wanted += [*(np.arange(3) == observation["kind"]), *observation["numbers"], observation["one"]]
    wanted += [*observation["picture"].ravel(), *observation["action_mask"]]
    assert row.tolist() == wanted
    assert len(row) == settings.encoder.size + NODES
    assert from_dict(to_dict(settings)) == settings


def test_labels_are_actions() -> None:
    for head, space in ACTIONS.items():
        task = small(Toy(head)).task
        assert task is not None
        actions = np.array([space.sample() for _ in range(5)])
        assert np.array_equal(tasks.actions_of(task, tasks.labels(task, actions)), actions)


def test_misuse_is_refused(tmp_path: Path) -> None:
    for observed, acted, message in (
        (box(2, 2, 2, 2), spaces.Discrete(2), "no encoder"),
        (spaces.Dict({"text": spaces.Text(3)}), spaces.Discrete(2), "no encoder"),
        (box(2), spaces.MultiDiscrete([2, 2]), "no head"),
        (spaces.Dict({"graph": GRAPH}), spaces.MultiDiscrete([3, 2]), "no head"),
        (box(2), spaces.Discrete(2, start=1), "no head"),
        (spaces.Dict({"x": box(1), "action_mask": spaces.MultiBinary(2)}), box(2), "no head"),
    ):
        with pytest.raises(L4SError, match=message):
            tasks.described(observed, acted)
    episodes = netllm.rl_collect(lambda: Toy("categorical"), netllm.RIGHT, 4)
    other = netllm.rl_collect(lambda: Toy("regression"), netllm.RIGHT, 1)
    with pytest.raises(L4SError, match="different spaces"):
        netllm.adapt([*episodes, *other], config(), tmp_path / "a")
    with pytest.raises(L4SError, match="imbalance"):
        netllm.adapt(episodes, config(imbalance={"kind": "focal"}), tmp_path / "a")
    with pytest.raises(L4SError, match="noise"):
        netllm.adapt(episodes, config(augment={"noise": 0.1}), tmp_path / "a")
    with pytest.raises(L4SError, match="form"):
        netllm.test(netllm.adapt(episodes, config(steps=1), tmp_path / "b"), ["steps"], seconds=0.1)
    with pytest.raises(L4SError, match="diffuse"):
        netllm.adapt(episodes, config(steps=1), tmp_path / "a", rule="diffuse")
    with pytest.raises(L4SError, match="name the dataset"):
        netllm.rl_collect("l4s-llm-testbed", "random", 1)
