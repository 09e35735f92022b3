"""Students: who labels them, what they learn, and that an integer model decides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError, agents, cli
from l4s_gym.agents import distil, fitting, saved
from l4s_gym.agents.protocol import Floats, Observations, policy_of
from l4s_gym.agents.spec import AgentSpec
from l4s_gym.agents.student import StudentAgent
from l4s_gym.agents.teaching import Plan, School, Teacher
from l4s_gym.bridge.fixed import MOST_BYTES, ONE, SAME, UNIT, observed, raw_of
from l4s_gym.bridge.layers import Layers
from l4s_gym.bridge.model import Model
from l4s_gym.evaluation import harness
from l4s_gym.forms import PACKET
from l4s_gym.schema import OBSERVED
from l4s_gym.sim import scenario
from l4s_gym.sim.intervals import FEATURES

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
DELAY = OBSERVED.index("current_queue_delay")
USED = [each.name for each in FEATURES].index("used")


class Gains:
    """Raises the first number of an action with a slow average of what is used, and notes what it saw."""

    name, rule, form = "gains", "-", "parameters"
    training = {"control_interval_ms": 100.0, "options": {"dualpi2_rfc9332": {"target_ms": 5.0}}}  # noqa: RUF012

    def reset(self, n: int, seed: int) -> None:
        self.n, self.mean = n, np.zeros(n)
        self.seen: list[Observations] = []

    def act(self, obs: Observations, rewards: Floats) -> Floats:
        self.seen.append(obs.copy())
        self.mean = self.mean + (obs[:, USED] - self.mean) / min(len(self.seen), 20)
        return np.stack([0.9 * self.mean - 0.5, *np.zeros((4, self.n))], axis=1)

    def cost(self) -> dict[str, float]:
        return {"parameters": 0.0, "trainable_parameters": 0.0}


class Reckless:
    """Drops every packet of C that would wait, by a window of its own: it is told what was done."""

    name, rule = "reckless", "sample"

    def reset(self, n: int, seed: int) -> None:
        self.n = n
        self.told: list[Any] = []

    def probabilities(self, obs: Observations, rewards: Floats) -> Floats:
        found = np.tile([0.5, 0.25, 0.25], (self.n, 1))
        return found

    def took(self, actions: Any) -> None:
        self.told.append(actions.copy())

    def act(self, obs: Observations, rewards: Floats) -> Any:
        return np.zeros(self.n, np.int64)

    def cost(self) -> dict[str, float]:
        return {"parameters": 0.0, "trainable_parameters": 0.0}


class Asked(StudentAgent):
    """A student that is asked packet by packet."""

    def act(self, obs: Observations, rewards: Floats) -> Any:
        return super().act(obs, rewards)


SHORT = scenario.load("l4s-llm-testbed").replace(horizon_s=1.0)


def settings(**more: Any) -> dict[str, Any]:
    brief = {"labels": 4000, "rounds": 2, "seconds": 2.0, "leaves": [8, 64], "steps": 400, "hidden": [16]}
    return {"teacher": f"{__name__}:Gains", "memory_s": [2.0], **brief, **more}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tree of `Gains`."""
    out: Path = tmp_path_factory.mktemp("students") / "tree"
    distil.train("suite:train", settings(), out)
    return out


# -- teachers


def test_what_a_teacher_says() -> None:
    """Probabilities where it draws; certainty where it takes the likeliest action; numbers as they are."""
    obs = np.zeros((2, 8), np.float32)
    obs[1, DELAY] = 1e3
    for spec, expected in (
        ("random", [[1 / 3, 1 / 3], [1 / 3, 1 / 3]]),
        ("threshold", [[0.0, 0.0], [0.0, 1.0]]),
        ("pfed", None),
    ):
        teacher = Teacher(agents.make(spec))
        teacher.reset(2, 0)
        if expected is not None:
            np.testing.assert_allclose(teacher.label(obs, np.zeros(2)), expected)
            assert teacher.alone
        else:
            label = teacher.label(np.zeros((2, 12), np.float32), np.zeros(2))
            np.testing.assert_array_equal(label, teacher.own(obs, label))
    told = Teacher(Reckless())
    told.reset(2, 0)
    np.testing.assert_allclose(told.label(obs, np.zeros(2)), [[0.25, 0.25]] * 2)
    told.took(np.array([2, 0]))
    assert not told.alone and told.agent.told[0].tolist() == [2, 0]


@pytest.mark.parametrize("labels", [10, 500, 10_000, 10**6])
@pytest.mark.parametrize("agent", [agents.make("threshold"), Gains(), Reckless()])
def test_labels_are_within_the_budget(agent: Any, labels: int) -> None:
    plan = Plan.of(Teacher(agent), labels, 4, 20.0, 20_000)
    assert plan.envs >= 2 and plan.steps >= 1
    if labels > 8:
        assert plan.envs * math.ceil(plan.steps / plan.every) * 4 <= labels * 1.05


def test_the_student_drives_and_the_teacher_sees_all() -> None:
    agent = Gains()
    school = School(Teacher(agent), Plan(3, 30), "suite:train", 2.0, seed=5)
    assert school.law == {"control_interval_ms": 100.0, "options": Gains.training["options"]}
    own = school.round(0, None)
    assert own.observations.shape == (3, 30, 29) and own.labels.shape == (3, 30, 5)
    lengths = own.there.sum(axis=1)
    assert (lengths == lengths[0]).all() and 15 <= lengths[0] <= 20 and (np.diff(own.there * 1, axis=1) <= 0).all()
    idle: Any = agents.make("zero:form=parameters")
    student = school.round(0, idle)
    np.testing.assert_array_equal(np.stack(agent.seen, axis=1), student.observations)
    np.testing.assert_array_equal(student.observations[:, 0], own.observations[:, 0])  # the same episodes
    assert (student.observations[:, 1:] != own.observations[:, 1:]).any() and (student.returns != own.returns).any()
    assert (school.round(1, idle).observations[:, 5] != student.observations[:, 5]).any()


def test_some_packets_are_labelled() -> None:
    school = School(Teacher(agents.make("threshold")), Plan(2, 40, every=8), "suite:train", 2.0, seed=0)
    own = school.round(0, None)
    assert own.observations.shape == (2, 5, 8) and own.labels.shape == (2, 5, 2) and own.there.all()
    told = Reckless()
    School(Teacher(told), Plan(2, 40), "suite:train", 2.0, seed=0).round(1, agents.make("threshold"))
    assert len(told.told) == 40  # what the student did


# -- fitting


def rows_of(count: int, noise: float, seed: int = 0) -> fitting.Rows:
    """Rows of the parameters form, whose labels follow the first feature, in steps, and noise."""
    rng = np.random.default_rng(seed)
    seen = rng.integers(0, 1 << 20, (count, 58))
    labels = np.repeat(np.sign(seen[:, :1] - (1 << 19)) * 0.4, 5, axis=1) + noise * rng.normal(size=(count, 5))
    return fitting.Rows(seen, labels)


def test_leaves_are_chosen_on_what_is_held_out() -> None:
    config = distil.Config(memory_s=(2.0,), leaves=(2, 8, 100))
    noisy = fitting.fit(config, "parameters", 100.0, rows_of(2000, 0.5), rows_of(500, 0.5, 1))
    assert noisy.size == 2 and noisy.loss == pytest.approx(0.25, rel=0.1)
    largest = fitting.fit(config, "parameters", 100.0, rows_of(2000, 0.5), rows_of(500, 0.5, 1), choose=False)
    assert largest.size == 100 and largest.loss > noisy.loss


def test_a_leaf_counts_one_row_of_the_mean() -> None:
    tree = fitting.grown(distil.Config(), "parameters", rows_of(100, 0.0), 1, 2).tree_
    n, root = tree.n_node_samples[1:], tree.value[0, 0, 0]
    expected = (n * np.where(tree.value[1:, 0, 0] < root, -0.4, 0.4) + root) / (n + 1)
    np.testing.assert_allclose(tree.value[1:, 0, 0], expected, atol=1e-12)


def packets(count: int, seed: int = 0) -> fitting.Rows:
    """Rows of the packet form: the longer the delay, the likelier a mark."""
    rng = np.random.default_rng(seed)
    seen = np.rint(np.exp(rng.uniform(0.0, 12.0, (count, 8)))).astype(np.int64)
    seen[:, 0] = rng.integers(0, 2, count)
    mark = 0.5 * np.log(seen[:, DELAY]) / 12.0
    return fitting.Rows(observed(seen), np.stack([np.full(count, 0.01), mark], axis=1))


@pytest.mark.parametrize("to", ["tree", "forest", "mlp", "linear"])
@pytest.mark.parametrize("form", ["parameters", PACKET])
def test_every_kind_of_student_fits_into_the_file(to: Any, form: str) -> None:
    config = distil.Config(to=to, memory_s=(2.0,), trees=5, leaves=(64, 4096), steps=600, hidden=(16, 16))
    train, held = (packets(3000), packets(500, 1)) if form == PACKET else (rows_of(3000, 0.05), rows_of(500, 0.05, 1))
    found = fitting.fit(config, form, 0.0 if form == PACKET else 100.0, train, held)
    packed = found.model.pack()
    assert len(packed) <= MOST_BYTES and Model.unpack(packed).pack() == packed
    said = fitting.told(found.model, held.seen)
    assert said.shape == held.labels.shape
    if form == PACKET:
        plain = np.tile(train.labels.mean(axis=0), (500, 1))
        assert found.loss < 0.2 * fitting.divergence(held.labels, plain)
        assert abs(said.mean(axis=0) - held.labels.mean(axis=0)).max() < 0.01
    else:
        assert found.loss < (0.1 if to == "linear" else 0.04)  # of .16


def test_leaves_that_do_not_fit_are_refused() -> None:
    config = distil.Config(to="forest", trees=50, leaves=(512,))
    with pytest.raises(L4SError, match="50 trees of 512 are more than 100000 bytes"):
        fitting.fit(config, "parameters", 100.0, rows_of(100, 0.0), rows_of(100, 0.0))


@pytest.mark.parametrize("form", ["parameters", PACKET])
def test_a_training_knows_what_rounding_does(form: str) -> None:
    """The perceptron that is trained is the integer one, which plain float32 weights are not."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))
    x = np.random.default_rng(0).integers(-3 * UNIT, 3 * UNIT, (200, 6)).astype(np.int16)
    exact = Layers.of(module, form)(x) / SAME * (math.log(2.0) if form == PACKET else 1.0)
    given = torch.tensor(x.astype(np.float32) / UNIT)
    same, plain = (
        np.isclose(each.detach().numpy(), exact, rtol=0.0, atol=3e-5).mean()
        for each in (fitting.forward(module, given, form), module(given))
    )
    assert same > 0.98 and plain < 0.5  # a half may be rounded either way


# -- students


def test_it_learns_what_the_teacher_does(tree: Path) -> None:
    about = json.loads((tree / saved.ABOUT).read_text())
    told = about["training"]
    assert told["teacher"] == "gains" and told["teacher_digest"] == AgentSpec.parse(f"{__name__}:Gains").digest()
    assert about["config"]["teacher"] == ""  # where it lay is nobody's business
    metrics = told["metrics"]
    assert metrics["agreement"]["target"]["r2"] > 0.95 and metrics["agreement"]["beta"]["r2"] == 1.0
    assert abs(metrics["agreement"]["target"]["difference"]) < 0.02
    assert metrics["steps"] <= 4000 and metrics["bytes"] == (tree / saved.MODEL).stat().st_size
    assert metrics["returns"][0] == pytest.approx(metrics["returns"][1], rel=0.05)
    assert told["control_interval_ms"] == 100.0 and told["options"] == Gains.training["options"]


def test_the_integer_model_decides(tree: Path) -> None:
    agent: Any = agents.make(f"student:{tree}")
    model = Model.unpack((tree / saved.MODEL).read_bytes())
    obs = np.random.default_rng(0).uniform(0.0, 3.0, (3, 50, 29)).astype(np.float32)
    agent.reset(3, 0)
    taken = np.stack([agent.act(obs[:, step], np.zeros(3)) for step in range(50)], axis=1)
    for k in range(3):
        seen = model.memory().all(raw_of(obs[k], "parameters"))
        np.testing.assert_array_equal(taken[k], model.values(seen) / SAME)
    results = harness.evaluate(f"student:{tree}", SHORT, seeds=[0])
    assert 0 < results[0].decisions <= 10


@pytest.mark.parametrize("to", ["tree", "mlp"])
def test_students_of_packets(to: str, tmp_path: Path) -> None:
    config = settings(teacher="threshold", to=to, packets=2000, labels=16_000, leaves=[8])
    done = distil.train("suite:train", config, tmp_path / "student")
    agreement = done["metrics"]["agreement"]
    assert agreement["mark"]["teacher"] > 0.01 and agreement["mark"]["recall"] > (0.95 if to == "tree" else 0.4)
    assert agreement["drop"]["recall"] is None and agreement["enqueue"]["recall"] > 0.9
    agent: Any = agents.make(str(tmp_path / "student"))
    assert agent.rule == "sample" and agents.form_of(agent) == PACKET
    obs = np.abs(np.random.default_rng(0).normal(size=(100, 8))).astype(np.float32)
    np.testing.assert_array_equal(agent.probabilities(obs)[:, 1:], agent.model.outputs(raw_of(obs, PACKET)) / ONE)
    asked = Asked(agent.model, {}, {})
    assert policy_of(agent) is agent.policy and policy_of(asked) is None
    inside, outside = (harness.evaluate(each, SHORT, seeds=[0])[0] for each in (agent, asked))
    assert inside.classes == outside.classes and inside.episode_return == pytest.approx(outside.episode_return)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student"
    words = ["distil", f"{__name__}:Gains", "--to", "linear", "--out", str(out), "--labels", "800"]
    assert cli.main([*words, "--set", "rounds=1", "seconds=2.0", "steps=50"]) == 0
    said = capsys.readouterr().out
    assert "linear and gains, where the student drives" in said and "return of the teacher" in said
    assert f"{(out / saved.MODEL).stat().st_size:,} bytes, 780 labels" in said
    assert isinstance(agents.make(str(out)), StudentAgent)
    assert cli.main(["train", "student", "--scenarios", "suite:train", "--out", str(tmp_path / "x")]) == 2
    assert "has no teacher: name one: l4s-gym distil AGENT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "bush"}, "to"),
        ({"rounds": 0}, "1 or more"),
        ({"leaves": [1]}, "numbers of 2 or more"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"teacher": "native:pie"}, "runs inside the engine"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match=message):
        distil.train("suite:train", settings(**change), tmp_path / "x")
