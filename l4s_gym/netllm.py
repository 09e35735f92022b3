"""The three calls of NetLLM: collect experience with a policy, adapt a model to it, test the agent.

```python
from l4s_gym import netllm

dataset = netllm.rl_collect("l4s-llm-testbed", "native:dualpi2_freebsd", episodes=4, dataset_id="l4s/dualpi2/mine-v0")
agent = netllm.adapt(dataset, {"train": {"steps": 500}}, "runs/mine")
results = netllm.test(agent, ["l4s-llm-testbed"], seeds=(0, 1))
```

Another task than queues is a function that makes a Gymnasium environment: `docs/tasks.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import msgspec
import numpy as np

from l4s_gym import agents, forms
from l4s_gym.agents.llm import tasks
from l4s_gym.agents.llm.agent import open_agent
from l4s_gym.agents.llm.settings import from_dict
from l4s_gym.agents.llm.train import train
from l4s_gym.agents.protocol import Agent, control_interval_ms, form_of
from l4s_gym.agents.training import Progress, Say
from l4s_gym.data import minari_io
from l4s_gym.data.files import PathLike
from l4s_gym.data.simulated import Behaviour, SimulatedRun
from l4s_gym.data.steps import EXTRAS, STEP
from l4s_gym.data.storage import Shard, shard_name, write_shard
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.envs.simulated import SimulatedEnv
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.harness import Result, evaluate
from l4s_gym.forms import PACKET
from l4s_gym.rewards import COMPONENTS, DEFAULT
from l4s_gym.schema import DECIDED_BY
from l4s_gym.sim import disciplines, fingerprint, scenario

RIGHT: Final = "right"
"""The policy of supervised learning: the answers that the environment tells."""


def rl_collect(
    env_or_scenario: Any,
    policy: str | Agent,
    episodes: int,
    dataset_id: str = "",
    *,
    seed: int = 0,
    reward: str = DEFAULT,
    seconds: float | None = None,
    overwrite: bool = False,
    description: str | None = None,
) -> Any:
    """Let a policy decide, and write its decisions as a Minari dataset; of another task, return its episodes.

    Args:
        env_or_scenario: Name, path, fields or `Scenario`; or a Gymnasium environment of the agent's form. Of another
            task: a function that makes an environment; then only `policy`, as of `play`, `episodes` and `seed` count.
        policy: `native:AQM` (a scenario's discipline decides, in the engine), a spec of `agents.make`, or
            an agent, in whose form the actions are stored.
        episodes: Number of episodes.
        dataset_id: ``l4s/dualpi2/NAME-v0``.
        seed: Seed of the first episode; it increases by 1 for each next one.
        reward: Reward of a scenario; an environment has its own.
        seconds: Length of an episode instead of the scenario's.
        overwrite: Replace the dataset of this id.
        description: Description of the data.

    Returns:
        The `minari.MinariDataset`, or the episodes.

    Raises:
        L4SError: An argument makes no sense, or the dataset exists.
    """
    if episodes < 1 or seed < 0:
        raise L4SError(f"rl_collect: episodes={episodes}, seed={seed}: give 1 or more, and 0 or more")
    if callable(env_or_scenario):
        return play(env_or_scenario, policy, range(seed, seed + episodes))
    if not dataset_id:
        raise L4SError("rl_collect: name the dataset: dataset_id='l4s/dualpi2/NAME-v0'")
    name = policy if isinstance(policy, str) else policy.name
    about: minari_io.About = {
        "algorithm_name": name,
        "description": description or f"{episodes} episodes decided by {name}",
        "reward": reward,
    }
    seeds = range(seed, seed + episodes)
    if hasattr(env_or_scenario, "step"):
        agent, spec = _agent(policy), getattr(env_or_scenario, "spec", None)
        kwargs = {} if spec is None else spec.kwargs
        about["form"], about["reward"] = form_of(agent), str(kwargs.get("reward") or reward)
        about["env_kwargs"] = {name: kwargs[name] for name in ("control_interval_ms",) if name in kwargs}
        ours = isinstance(getattr(env_or_scenario, "unwrapped", None), SimulatedEnv)
        about["simulator"] = fingerprint.FINGERPRINT if ours else fingerprint.KERNEL_LOG
        played = _played(env_or_scenario, agent, seeds, "environment")
        return minari_io.create(dataset_id, played, overwrite=overwrite, **about)
    chosen = scenario.load(env_or_scenario)
    if seconds is not None:
        chosen = chosen.replace(horizon_s=seconds)
    plain = msgspec.to_builtins(chosen)
    env_kwargs = about["env_kwargs"] = {"scenario": plain}
    aqm = agents.AgentSpec.parse(policy).native if isinstance(policy, str) else None
    if aqm is None:
        agent = _agent(policy)
        about["form"] = form_of(agent)
        if form_of(agent) != PACKET:
            env_kwargs["control_interval_ms"] = control_interval_ms(agent)
        env = gym.make(f"l4s_gym:{forms.get(form_of(agent)).env_id}", reward=reward, **env_kwargs)
        played = _played(env, agent, seeds, chosen.name)
        return minari_io.create(dataset_id, played, overwrite=overwrite, **about)
    disciplines.get(aqm)
    runs = [SimulatedRun(chosen, Behaviour(aqm), each, reward) for each in seeds]

    def fill(data: Path) -> list[Shard]:
        return [write_shard(data / shard_name(0), 0, runs)]

    return minari_io.publish(dataset_id, fill, overwrite=overwrite, **about)


def _agent(policy: str | Agent) -> Agent:
    if not isinstance(policy, str):
        return policy
    if agents.AgentSpec.parse(policy).native:
        raise L4SError(f"{policy}: decides in the engine: give a scenario, not an environment")
    return agents.make(policy)


def _played(env: Any, agent: Agent, seeds: range, source: str) -> Iterator[Trajectory]:
    """Yield the episodes of an environment, one after another."""
    form = form_of(agent)
    for seed in seeds:
        agent.reset(1, seed)
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards, infos = [np.array(observation, np.float32)], [], [], []
        reward, over = 0.0, False
        while not over:
            decided = agent.act(observations[-1][None], np.array([reward]))[0]
            action: Any = int(decided) if form == PACKET else np.asarray(decided, np.float32)
            observation, earned, terminated, truncated, info = env.step(action)
            reward, over = float(earned), bool(terminated or truncated)
            observations.append(np.array(observation, np.float32))
            actions.append(action)
            rewards.append(reward)
            infos.append(info)
        more: dict[str, Any] = {"extras": _components(infos)}
        if form == PACKET:
            applied = [int(info.get("applied_action", action)) for info, action in zip(infos, actions, strict=True)]
            more = {"applied": np.array(applied, np.int64), "extras": _extras(len(observations))}
        yield Trajectory(
            observations=np.stack(observations),
            actions=np.array(actions, np.int64 if form == PACKET else np.float32),
            rewards=np.array(rewards),
            source=source,
            about={"seed": seed, "policy": agent.name},
            features=minari_io.observed_by(form),
            **more,
        )


def play(make_env: Callable[[], Any], policy: Any, seeds: Sequence[int]) -> list[Trajectory]:
    """Play episodes of another task, one in each of several environments.

    Args:
        make_env: Makes an environment.
        policy: A function from an observation to an action; an agent, such as `adapt` returns; or `RIGHT`: what the
            environment's `info["right"]` tells, to be learnt by supervision.
        seeds: Seeds of the episodes; an agent's draws are those of the first one and those after it.

    Returns:
        The episodes; their `about` has seed and spaces (`task`).

    Raises:
        L4SError: The environment has spaces of another kind.
    """
    envs, count = [make_env() for _ in seeds], len(seeds)
    spaces = tasks.described(envs[0].observation_space, envs[0].action_space)
    config = from_dict(spaces)
    features, task = config.encoder.features, config.task
    assert task is not None
    started = [env.reset(seed=int(seed)) for env, seed in zip(envs, seeds, strict=True)]
    seen, infos = ([each[part] for each in started] for part in (0, 1))
    rows = [[tasks.flat(features, task.masked, each)] for each in seen]
    actions: list[list[Any]] = [[] for _ in seeds]
    rewards: list[list[float]] = [[] for _ in seeds]
    earned, live = np.zeros(count), list(range(count))
    asked = hasattr(policy, "act")
    if asked:
        policy.reset(count, int(seeds[0]))
    while live:
        if asked:
            decided = policy.act(seen, earned)
        else:
            decided = {at: infos[at]["right"] if policy is RIGHT else policy(seen[at]) for at in live}
        for number in list(live):
            actions[number].append(decided[number])
            found = envs[number].step(decided[number])
            seen[number], earned[number], terminated, truncated, infos[number] = found
            rewards[number].append(float(earned[number]))
            rows[number].append(tasks.flat(features, task.masked, seen[number]))
            if terminated or truncated:
                live.remove(number)
    kind = np.float32 if task.head == "regression" else np.int64
    return [
        Trajectory(
            observations=np.stack(rows[number]),
            actions=np.array(actions[number], kind),
            rewards=np.array(rewards[number]),
            about={"seed": int(seed), "task": spaces},
            features=tuple(map(str, range(len(rows[number][0])))),
        )
        for number, seed in enumerate(seeds)
    ]


def _components(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the components of the rewards of steps as columns (T + 1,); 0 where the environment does not tell them."""
    told = [info.get("components", {}) for info in infos]
    return {name: np.array([0.0, *(each.get(name, 0.0) for each in told)], np.float32) for name in COMPONENTS}


def _extras(rows: int) -> dict[str, Any]:
    """Return extra columns: 0 for what the environment does not provide; the agent decided everything."""
    extras = {name: np.zeros(rows, STEP[name]) for name in EXTRAS}
    extras["decided_by"][:-1] = DECIDED_BY.index("agent")
    return extras


def adapt(
    dataset: Any,
    config: Mapping[str, Any],
    out: PathLike,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
    **options: Any,
) -> Any:
    """Train an agent on experience.

    Args:
        dataset: A dataset, several, or a mapping of ids to weights; or episodes of another task.
        config: The tables `model` and `train`, or of control intervals `model` and `intervals`, see
            `settings.settings`.
        out: Folder of the agent.
        resume: Continue from the checkpoint in `out`.
        progress: Called with the share of the training that is done.
        say: Called with each line of text for the user.
        **options: Options of `agent.open_agent`, such as ``rule="diffuse"``.

    Returns:
        The agent, as loaded from `out`.

    Raises:
        L4SError: As `train.train`.
    """
    train(dataset, config, out, resume=resume, progress=progress, say=say)
    return open_agent(out, **options)


def test(  # not a test for pytest, despite its name
    agent: str | PathLike | Agent,
    suite: str | Sequence[str] | Callable[[], Any],
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),  # noqa: PT028
    reward: str = DEFAULT,  # noqa: PT028
    decision_interval: int = 1,  # noqa: PT028
    control_interval_ms: float | None = None,  # noqa: PT028
    seconds: float | None = None,  # noqa: PT028
    progress: Progress | None = None,  # noqa: PT028
) -> Any:
    """Evaluate an agent in closed loop.

    Args:
        agent: An agent, a spec of `agents.make`, or the folder of an LLM agent.
        suite: `train`, `test` or `shift`, or names of scenarios; or, of another task, a function that makes an
            environment (see `play`; only `seeds` counts then).
        seeds: Seeds of the episodes in each scenario.
        reward: Name of the reward.
        decision_interval: Ask the agent at each n-th packet.
        control_interval_ms: As in `l4s_gym.evaluation.harness.evaluate`.
        seconds: Length of the episodes instead of the scenarios'.
        progress: Called with the share of the scenarios that is done.

    Returns:
        A result for each scenario and seed; of another task, the episodes.

    Raises:
        L4SError: There is no such agent, suite or scenario.
    """
    who: Any = agent
    if not isinstance(agent, Agent) and not callable(agent):
        who = open_agent(agent) if Path(agent).is_dir() else agents.make(str(agent))
    if callable(suite):
        return play(suite, who, seeds)
    names = scenario.suite(suite) if isinstance(suite, str) else tuple(suite)
    results: list[Result] = []
    for done, name in enumerate(names, 1):
        chosen = scenario.load(name)
        if seconds is not None:
            chosen = chosen.replace(horizon_s=seconds)
        results += evaluate(
            who,
            chosen,
            seeds=seeds,
            reward=reward,
            decision_interval=decision_interval,
            control_interval_ms=control_interval_ms,
        )
        if progress is not None:
            progress(done / len(names))
    return results


test.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test
