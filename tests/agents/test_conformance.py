"""What every agent has to do, of whatever kind. Kinds that are trained come from the registry."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from l4s_gym import L4SError, agents
from l4s_gym.agents import Agent, saved, training
from l4s_gym.agents.logged import offline_probabilities
from l4s_gym.agents.protocol import form_of
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.forms import FORMS, PACKET
from l4s_gym.schema import OBS_HIGH
from l4s_gym.sim import fingerprint
from tests.agents.conftest import ONLINE, TINY, form_for, kind_of

OWN = """
import numpy as np
class Own:
    name, rule = "own", "-"
    def reset(self, n, seed): self.n = n
    def act(self, obs, rewards): return np.ones(self.n, np.int64)
    def cost(self): return {"parameters": 0.0, "trainable_parameters": 0.0}
class Gains(Own):
    form = "parameters"
    def act(self, obs, rewards): return np.full((self.n, 5), 0.5, np.float32)
"""
UNTRAINED = (
    *("random", "enqueue", "threshold", "threshold:l_us=500,c_us=10000", "conforming_agent:Own"),
    *(f"{rule}:form={form}" for rule in ("random", "zero") for form in ("probability", "parameters")),
    *("zero", "pfed", "pfed:target_ms=15", "conforming_agent:Gains"),
)
OF_PACKETS = [name for name in TINY if form_for(name) == PACKET]
OFFLINE = [name for name in TINY if name not in ONLINE]
SLOW = {"llm+text": [pytest.mark.slow]}
"""It writes a dozen tokens for each decision."""
PLAYED = [pytest.param(name, marks=SLOW.get(name, ())) for name in TINY]
SPECS = (
    *UNTRAINED,
    *(pytest.param(f"{name}:{{}}", marks=SLOW.get(name, ())) for name in TINY),
    *(f"{kind}:{{}},rule={rule}" for kind in ("bc", "dt", "cql") for rule in agents.RULES),
)
Trained = Callable[[str], Path]


@pytest.fixture
def make(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[str, Agent]]:
    """Makes the agent of a spec, ``NAME:{}`` of the tiny agent of this name."""
    (tmp_path / "conforming_agent.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "conforming_agent", raising=False)

    def build(spec: str) -> tuple[str, Agent]:
        if "{}" in spec:
            name, _, rest = spec.partition(":")
            spec = f"{kind_of(name)}:{rest.format(request.getfixturevalue('trained')(name))}"
        return spec, agents.make(spec)

    return build


def weights_of(name: str) -> str:
    """Name of the file that an agent decides by."""
    return saved.MODEL if kind_of(name) == "student" else saved.WEIGHTS


def width(agent: Agent) -> int:
    """Numbers of an observation in the agent's form."""
    return len(FORMS[form_of(agent)].features) or 8


def observations(seed: int, step: int, width: int = 8) -> npt.NDArray[np.float32]:
    """An observation (width,) that depends on the environment's own seed and the step only."""
    obs = np.random.default_rng([seed, step]).random(width).astype(np.float32)
    obs[0] = (seed + step) % 2
    return obs


def check_actions(agent: Agent, action: npt.NDArray[Any], n: int) -> None:
    """What the form of an agent asks of its actions."""
    form = FORMS[form_of(agent)]
    if not form.low:
        assert action.shape == (n,) and action.dtype == np.int64
        assert set(action.tolist()) <= {0, 1, 2}
        return
    assert action.shape == (n, len(form.low)) and action.dtype in (np.float32, np.float64)
    assert ((action >= form.low) & (action <= form.high)).all()


def play(agent: Agent, n: int, seed: int, steps: int = 60) -> npt.NDArray[Any]:
    """Actions (steps, n) or (steps, n, K)."""
    agent.reset(n, seed)
    taken = []
    for step in range(steps):
        obs = np.stack([observations(seed + i, step, width(agent)) for i in range(n)])
        rewards = np.array([0.01 * ((seed + i + step) % 3) for i in range(n)])
        obs.flags.writeable = rewards.flags.writeable = False
        action = agent.act(obs, rewards)
        check_actions(agent, action, n)
        taken.append(action.copy())
    return np.stack(taken)


@pytest.mark.parametrize("spec", SPECS)
def test_decisions(spec: str, make: Callable[[str], tuple[str, Agent]]) -> None:
    spec, agent = make(spec)
    assert isinstance(agent, Agent)
    assert agent.name and agent.rule in (*agents.RULES, agents.NO_RULE)
    first = play(agent, 3, 5)
    np.testing.assert_array_equal(play(agent, 3, 5), first)  # deterministic
    for i in range(3):  # a batch of one equals a batch of many
        np.testing.assert_array_equal(play(agent, 1, 5 + i)[:, 0], first[:, i])
    play(agent, 2, 9, steps=7)  # another batch size in the middle of an episode leaves nothing behind
    np.testing.assert_array_equal(play(agent, 3, 5), first)
    np.testing.assert_array_equal(play(agents.make(spec), 3, 5), first)  # made anew
    agent.reset(1, 0)
    highest = np.array([each.high for each in FORMS[form_of(agent)].features] or OBS_HIGH, np.float32)
    check_actions(agent, agent.act(highest[None], np.zeros(1)), 1)
    if not spec.startswith("conforming_agent"):
        with pytest.raises(L4SError, match="reset"):
            agent.act(np.zeros((2, width(agent)), np.float32), np.zeros(2))
        with pytest.raises(L4SError, match="1 or more"):
            agent.reset(0, 0)


@pytest.mark.parametrize("spec", SPECS)
def test_cost(spec: str, make: Callable[[str], tuple[str, Agent]]) -> None:
    cost = make(spec)[1].cost()
    assert cost["parameters"] >= cost["trainable_parameters"] >= 0.0
    assert (cost["parameters"] > 0.0) == (spec not in UNTRAINED)


@pytest.mark.parametrize("name", PLAYED)
def test_own_arrays_are_not_kept(name: str, make: Callable[[str], tuple[str, Agent]]) -> None:
    """The caller's arrays change after the call, and no agent may look at them then."""
    agent = make(f"{name}:{{}}")[1]
    kept = play(agent, 1, 3)
    obs, rewards = np.zeros((1, width(agent)), np.float32), np.zeros(1)
    agent.reset(1, 3)
    for step in range(len(kept)):
        obs[0], rewards[0] = observations(3, step, width(agent)), 0.01 * ((3 + step) % 3)
        np.testing.assert_array_equal(agent.act(obs, rewards)[0], kept[step, 0])
        obs[:], rewards[:] = 7.0, 7.0


# -- saved agents


@pytest.mark.parametrize("name", PLAYED)
def test_save_and_load(name: str, trained: Trained, tmp_path: Path) -> None:
    kind, agent = kind_of(name), cast(Any, agents.make(str(trained(name))))
    assert agent.name == f"{kind}:{name}"
    if hasattr(agent, "save"):
        agent.save(tmp_path / "again")
    else:
        shutil.copytree(trained(name), tmp_path / "again")
    loaded = agents.make(f"{tmp_path / 'again'}")
    assert loaded.name == f"{kind}:again"
    np.testing.assert_array_equal(play(loaded, 3, 1), play(agent, 3, 1))
    np.testing.assert_array_equal(play(agents.make(f"{kind}:{tmp_path / 'again'}"), 3, 1), play(agent, 3, 1))
    assert loaded.cost() == agent.cost()
    about = json.loads((tmp_path / "again" / saved.ABOUT).read_text())
    assert about["training"]["metrics"]["steps"] > 0
    assert {path.name for path in (tmp_path / "again").iterdir()} >= {saved.ABOUT, weights_of(name), saved.CARD}


@pytest.mark.parametrize("name", PLAYED)
def test_a_training_leaves_no_temporary_files(name: str, trained: Trained) -> None:
    """None but PyTorch's one cache."""
    folder = trained(name)
    left = {path.name for path in folder.with_name(f"{folder.name}.tmp").iterdir()}
    assert not {name for name in left if not name.startswith("torchinductor_")}


@pytest.mark.parametrize("name", OF_PACKETS)
def test_logged_probabilities(name: str, trained: Trained, episodes: list[Trajectory]) -> None:
    logged = Trajectory.joined(episodes)
    index = np.array([0, 1, 2, 500, logged.starts[1] - 1, logged.starts[1], len(logged) - 1])
    agent = agents.make(str(trained(name)))
    found = offline_probabilities(agent, logged, index)
    assert found is not None
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    for k, step in enumerate(index):
        alone = offline_probabilities(agent, logged, np.array([step]))
        assert alone is not None
        np.testing.assert_allclose(alone[0], found[k], atol=1e-5)
    # What is known of a step does not depend on its own action, nor on other episodes.
    changed = Trajectory(logged.observations.copy(), logged.actions.copy(), logged.rewards, logged.starts)
    changed.actions[index] = (changed.actions[index] + 1) % 3
    changed.observations[: logged.starts[1]] = 9.0
    later = index >= logged.starts[1]
    alone = np.concatenate([offline_probabilities(agent, changed, np.array([step])) for step in index[later]])
    np.testing.assert_allclose(alone, found[later], atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_other_versions_and_shapes_are_refused(name: str, trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(trained(name), folder)
    about = json.loads((folder / saved.ABOUT).read_text())
    (folder / saved.ABOUT).write_text(json.dumps(about | {"schema_version": 99}))
    with pytest.raises(L4SError, match="version 99 of the schema"):
        agents.make(str(folder))
    (folder / saved.ABOUT).write_text(json.dumps(about | {"config": {}}))
    with pytest.raises(L4SError, match="train it again"):
        agents.make(str(folder))
    (folder / saved.ABOUT).write_text(json.dumps(about))
    whole = (folder / weights_of(name)).read_bytes()
    (folder / weights_of(name)).write_bytes(whole[:-1])
    with pytest.raises(L4SError, match="damaged"):
        agents.make(str(folder))
    with pytest.raises(L4SError, match="speed"):
        agents.make(f"{trained(name)},speed=3")
    with pytest.raises(L4SError, match="decision rule" if name in OF_PACKETS else "rule"):
        agents.make(f"{trained(name)},rule=most")
    kind = kind_of(name)
    other = next(each for each in TINY if kind_of(each) != kind)
    with pytest.raises(L4SError, match=f"of kind '{kind}', not '{other}'"):
        agents.make(f"{other}:{trained(name)}")


@pytest.mark.parametrize("name", OFFLINE)
def test_a_dataset_of_another_schema_is_refused(name: str, dataset_for: Callable[[str], str], tmp_path: Path) -> None:
    from l4s_gym.data import minari_io

    dataset, config = dataset_for(name), TINY[name]
    store = minari_io.load(dataset).storage
    was = store.metadata
    for key, value in (("schema_version", 99), ("observation_fields", ["queue_type"])):
        store.update_metadata({key: value})
        try:
            with pytest.raises(L4SError, match=f"dataset {dataset!r}: .*(schema|fields)"):
                training.learner(kind_of(name)).train(dataset, config, tmp_path / key)
        finally:
            store.update_metadata({key: was[key]})
        assert not (tmp_path / key / saved.ABOUT).exists()
    with pytest.raises(L4SError, match="not found"):
        training.learner(kind_of(name)).train("l4s/dualpi2/nowhere-v0", config, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ONLINE)
def test_unknown_scenarios_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="did you mean 'train'"):
        training.learner(kind_of(name)).train("suite:trian", TINY[name], tmp_path / "nowhere")


@pytest.mark.parametrize("name", TINY)
def test_unknown_keys_are_refused(name: str, dataset_for: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="no_such_key"):
        learner = training.learner(kind_of(name))
        learner.train(dataset_for(name), TINY[name] | {"no_such_key": 1}, tmp_path / "key")


@pytest.mark.parametrize("name", TINY)
def test_what_another_simulator_made_is_refused(
    name: str, dataset_for: Callable[[str], str], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset to train on, and an agent that was trained on it."""
    folder, made, learner = trained(name), fingerprint.FINGERPRINT, training.learner(kind_of(name))
    dataset = dataset_for(name)
    assert saved.read(folder).training["simulator"] == made
    monkeypatch.setattr(fingerprint, "FINGERPRINT", "0123456789ab")
    if name in OFFLINE:
        with pytest.raises(fingerprint.StaleError, match=f"dataset {dataset!r}: is stale: made with simulator {made}"):
            learner.train(dataset, TINY[name], tmp_path / "new")
        assert not (tmp_path / "new" / saved.ABOUT).exists()
    with pytest.raises(fingerprint.StaleError) as refused:
        agents.make(str(folder))
    assert f"{folder}: is stale: made with simulator {made}, " in str(refused.value)
    given = "dataset" if name in OFFLINE else "scenarios"
    again = f": train it again: l4s-gym train {kind_of(name)} --{given} {dataset} --out {folder}"
    assert str(refused.value).endswith(again)


@pytest.mark.parametrize("name", [name for name in ("bc", "llm") if name in TINY])
def test_a_training_goes_on_with_data_of_its_own_simulator_only(
    name: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l4s_gym.data import minari_io

    learner, out = training.learner(kind_of(name)), tmp_path / "agent"

    def press_ctrl_c(share: float) -> None:
        if share == 0.5:
            signal.raise_signal(signal.SIGINT)

    store, made = minari_io.load(dataset).storage, fingerprint.FINGERPRINT
    store.update_metadata({"simulator": "older"})
    try:
        with fingerprint.allow_stale(), pytest.raises(KeyboardInterrupt):
            learner.train(dataset, TINY[name], out, progress=press_ctrl_c)
        store.update_metadata({"simulator": made})
        with pytest.raises(L4SError, match=f"is from data of simulator older, the dataset is from {made}: remove it"):
            learner.train(dataset, TINY[name], out, resume=True)
        store.update_metadata({"simulator": "older"})
        with fingerprint.allow_stale():
            assert learner.train(dataset, TINY[name], out, resume=True)["simulator"] == "older"
    finally:
        store.update_metadata({"simulator": made})
    with pytest.raises(fingerprint.StaleError, match="made with simulator older"):
        agents.make(str(out))


def with_seed(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """The configuration with another seed, which some keep in the table `train`."""
    if "train" in config:
        return config | {"train": config["train"] | {"seed": seed}}
    return config | {"seed": seed}


@pytest.mark.parametrize("name", TINY)
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(
    name: str, dataset_for: Callable[[str], str], trained: Trained, tmp_path: Path
) -> None:
    dataset, learner, out = dataset_for(name), training.learner(kind_of(name)), tmp_path / "stopped"
    shares: list[float] = []

    def press_ctrl_c(share: float) -> None:
        shares.append(share)
        if share >= 0.4 and len(shares) < 1000:
            shares.extend([0.0] * 1000)
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        learner.train(dataset, TINY[name], out, progress=press_ctrl_c)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(L4SError, match="--resume"):
        agents.make(str(out))
    with pytest.raises(L4SError, match="--resume"):
        learner.train(dataset, TINY[name], out)
    with pytest.raises(L4SError, match="another config"):
        learner.train(dataset, with_seed(TINY[name], 7), out, resume=True)
    done = learner.train(dataset, TINY[name], out, resume=True)
    whole, resumed = (folder / weights_of(name) for folder in (trained(name), out))
    assert whole.read_bytes() == resumed.read_bytes()
    assert done["metrics"] == saved.read(trained(name)).training["metrics"]
    assert not [path for path in out.iterdir() if path.name.startswith(saved.CHECKPOINT)]
    with pytest.raises(L4SError, match="no checkpoint"):
        learner.train(dataset, TINY[name], out, resume=True)
