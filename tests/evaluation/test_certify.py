"""The stability report: its arithmetic against closed forms, and the whole in tiny sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym.agents import make
from l4s_gym.agents.onestep import Perceptron
from l4s_gym.agents.student import StudentAgent
from l4s_gym.cli import main
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import harness
from l4s_gym.evaluation.certify import chance, fluid, gains, loop, page, response, run, statements
from l4s_gym.sim.dualpi2_rfc9332 import Options
from l4s_gym.sim.policy import Network, Policy, Trees
from l4s_gym.sim.scenario import load
from tests.kernel.models import constant

TINY = run.Size(6.0, 2, "quick", 2, run.POINTS[:1], 4, 2, (20,), (20,), 1)


@pytest.fixture(autouse=True)
def few_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "GAINS", (1.0, 16.0))
    monkeypatch.setattr(fluid, "STEPS", np.geomspace(0.5, 4.0, 4))


# -- chances and drift


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [(0, 10, 0.0, 0.3084971), (10, 10, 0.6915029, 1.0), (1, 10, 0.0025286, 0.4450161), (3, 280, 0.0022150, 0.0309907)],
)
def test_clopper_pearson_against_known_values(hits: int, trials: int, low: float, high: float) -> None:
    found = chance.clopper_pearson(hits, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert found.low <= found.value <= found.high


def test_bounds_cover_as_often_as_they_say() -> None:
    n, p = 30, 0.1
    k = np.arange(n + 1)
    ways = np.array([float(np.prod([(n - i) / (i + 1) for i in range(j)])) for j in k])
    found = [chance.clopper_pearson(j, n) for j in k.tolist()]
    covers = np.array([each.low <= p <= each.high for each in found])
    assert (ways * p**k * (1 - p) ** (n - k))[covers].sum() >= 0.95


def test_drift_of_a_linear_process() -> None:
    """V = (x - 1)^2 of x' = 1 + a (x - 1) + s e changes by (a^2 - 1) V + s^2 on average: it falls where it is large."""
    rng, a, s = np.random.default_rng(0), 0.8, 0.3
    edges = (-np.inf, 0.5, 1.0, 1.5, np.inf)
    tallies = []
    for _ in range(60):
        x = np.ones(3000)
        for t in range(1, len(x)):
            x[t] = 1 + a * (x[t - 1] - 1) + s * rng.standard_normal()
        tallies.append(chance.tally(x, 1, edges))
    sums, counts = (np.array(part) for part in zip(*tallies, strict=True))
    bands = chance.bands(sums, counts, edges)
    assert s / np.sqrt(1 - a * a) == pytest.approx(0.5)  # the distance at which V neither rises nor falls
    assert [band.falls for band in bands] == [True, False, False, True]
    assert bands[1].drift_low > 0.0
    assert chance.falls_from(bands) == 1.5
    assert sum(band.share for band in bands) == pytest.approx(1.0)


def test_few_episodes_have_no_interval() -> None:
    sums, counts = np.ones((chance.LEAST - 1, 1)), np.ones((chance.LEAST - 1, 1))
    (band,) = chance.bands(sums, counts, (0.0, np.inf))
    assert band.drift == 1.0
    assert np.isnan(band.drift_high)
    assert not band.falls


# -- gains


def test_bounds_of_a_known_perceptron() -> None:
    weights = (np.array([[3.0, 0.0, 4.0, 0.0]]), np.array([[2.0]]))
    known = Perceptron(np.array([1.0, 1.0, 2.0, 1.0]), weights, (1.0, 0.25), 0.5, 0.1)
    found = gains.of_perceptron(known)
    assert found.norms == pytest.approx((5.0, 2.0))  # 3 / 1 + 4 / 2
    assert found.held == pytest.approx(0.5 * 5.0 * 2.0)
    assert found.now == pytest.approx(0.5 * 0.1 * (3.0 + 0.25 * 2.0) * 2.0)


def test_bounds_of_a_policy() -> None:
    weights = np.zeros((3, 8), np.float32)
    weights[0, 0] = 4.0
    layers = ((weights, np.zeros(3, np.float32)),)
    policy = Policy((Network(layers, scale=np.full(8, 2.0, np.float32)),), temperature=0.5)
    assert gains.of_policy(policy).held == pytest.approx(4.0 / 2.0 / (2 * 0.5))
    jumps = gains.of_policy(Policy((Trees.constant((1.0, 0.0, 0.0)),), softmax=False))
    assert jumps.held is None
    assert "jump" in jumps.why


def test_jacobians_of_a_linear_map() -> None:
    matrix = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])

    def outputs(seen: Any) -> Any:
        return 0.9 * (seen[-1] @ matrix.T) + 0.1 * (seen[0] @ matrix.T)

    held, now = gains.jacobians(outputs, np.array([0.0, 1.0, 5.0], np.float32), np.full(3, 5.0), warm=2)
    assert held == pytest.approx(matrix, rel=1e-4)
    assert now == pytest.approx(0.9 * matrix, rel=1e-4)
    assert gains.sampled([(held, now)]).held == pytest.approx(gains.norm(matrix), rel=1e-4)


def test_radius_and_norm_of_a_known_matrix() -> None:
    pytest.importorskip("torch")
    from l4s_gym.evaluation.certify import transformer

    angle = np.array([[0.6, -0.8], [0.8, 0.6]])  # eigenvalues of modulus 1
    matrix = np.zeros((5, 5))
    matrix[:2, :2], matrix[2, 2], matrix[3, 4] = 1.5 * angle, 0.5, 7.0  # the last is nilpotent: a norm without radius
    assert transformer.radius(lambda v: matrix.T @ v, 5) == pytest.approx(1.5)
    found = transformer.largest(lambda v: matrix @ v, lambda v: matrix.T @ v, 5)
    assert found == pytest.approx(7.0)


# -- response and margins


def test_modes_of_a_known_system() -> None:
    turn = 0.9 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    gain = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, -1.0]])
    true = np.array([gain @ np.linalg.matrix_power(turn, k) for k in range(40)])
    rng = np.random.default_rng(1)
    seen = true + 0.3 * rng.standard_normal((200, *true.shape))
    found = response.modes(seen, rng)
    assert found.order == 2
    assert found.radius == pytest.approx(0.9, abs=0.02)
    low, high = response.interval(seen, found.order, rng)
    assert low < 0.9 < high < 1.0
    assert response.modes(seen - true, rng).order == 0


def test_margins_grow_worse_with_gain_and_delay() -> None:
    law = Options()
    calm, wild = (fluid.worst(law, False, 20, (1.0, f, f, 1.0)) for f in (1.0, 8.0))
    assert calm.stable
    assert not wild.stable
    assert calm.phase_deg > 0.0 > wild.phase_deg
    assert calm.gain_db > 0.0 > wild.gain_db
    steps = np.geomspace(0.25, 16.0, 13)
    most = [fluid.largest_gain(law, False, rtt_ms, steps) for rtt_ms in (5, 20, 50)]
    assert most == sorted(most, reverse=True)
    assert fluid.largest_gain(law, False, 400, np.array([10.0])) == 0.0


def test_where_a_curve_reaches_a_level() -> None:
    assert run.crossing((1.0, 4.0), (0.0, 1.0), 0.5) == pytest.approx(2.0)
    assert run.crossing((1.0, 4.0), (0.7, 1.0), 0.5) == 1.0
    assert run.crossing((1.0, 4.0), (0.0, 0.1), 0.5) is None


# -- the loop


class Asked:
    """A rule that is asked packet by packet, as an agent without a policy is."""

    name, rule = "asked", "-"

    def __init__(self) -> None:
        self.inner = make("threshold")

    def reset(self, n: int, seed: int) -> None:
        self.inner.reset(n, seed)

    def act(self, obs: Any, rewards: Any) -> Any:
        return self.inner.act(obs, rewards)

    def cost(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("who", ["native:dualpi2_rfc9332", "threshold", Asked(), "zero:form=parameters"])
def test_the_loop_is_that_of_the_evaluation(who: Any) -> None:
    scenario = load("grid-12m-20ms").replace(horizon_s=3.0)
    agent, native = harness.resolve(who)
    decides: Any = native or agent
    seen = loop.watch(decides, scenario, [3, 4])
    expected = harness.evaluate(who, scenario.replace(warmup_s=0.0), seeds=[3, 4])
    assert seen.longest_ms[:, 0] == pytest.approx([each.delay_ms["C"]["max"] for each in expected])
    assert seen.used == pytest.approx([each.utilisation for each in expected])
    assert np.isfinite(seen.delay_ms[:-1]).all()
    assert seen.delay_ms[..., 0].mean() == pytest.approx(np.mean([e.delay_ms["C"]["mean"] for e in expected]), rel=0.3)


def test_equal_seeds_stay_equal_until_one_is_touched() -> None:
    def touch(batch: Any, i: int, now_ns: int) -> None:
        if i == 1 and now_ns == 1_000_000_000:
            batch.flow["cwnd"][i] *= 2.0

    seen = loop.watch("dualpi2_rfc9332", load("grid-12m-20ms").replace(horizon_s=2.0), [5, 5], touch=touch)
    same = (seen.delay_ms[:, 0] == seen.delay_ms[:, 1]).all(1)
    assert same[:50].all()
    assert not same[50:-1].all()


def test_a_seed_without_probability_leaves_the_windows() -> None:
    scenario, seeds = load("mixed"), [0, 1, 100, 101]
    found = [response.measure("dualpi2_rfc9332", scenario, seeds, at_s=0.2, for_s=0.4, chunk=n) for n in (1, 4)]
    assert found[0]["inputs"] == found[1]["inputs"] == ["windows"]
    assert found[0]["response"] == found[1]["response"]


# -- the whole


@pytest.mark.parametrize(
    "spec", ["native:dualpi2_rfc9332", pytest.param("random:form=parameters", marks=pytest.mark.slow), "threshold"]
)
def test_a_report_of_everything(tmp_path: Path, spec: str) -> None:
    found = run.certify(run.Subject.of(spec), TINY, tmp_path)
    told = statements.all_of(found.parts)
    assert {each.equation for each in told} >= {"6", "7", "8", "9", "10"}
    assert ("margins" in found.parts) == (spec != "threshold")
    text = page.write(tmp_path).read_text()
    assert all(each.verdict in text for each in told)
    assert text.count("<img") >= 3
    kept = json.loads((tmp_path / run.RESULT).read_text())
    assert kept["origin"]["versions"]


def test_a_student_has_a_model_that_is_no_transformer(tmp_path: Path) -> None:
    model = constant("parameters", *[0.0] * 5, interval_ms=500.0)
    student = StudentAgent(model, {"to": "tree"}, {}).save(tmp_path / "student")
    found = run.Certificate(run.Subject.of(str(student)), TINY, tmp_path / "out")
    found.parts["episodes grid-12m-20ms"] = found.episodes("grid-12m-20ms", 1)
    assert "upper" in found.gains()


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    subject = run.Subject.of("native:pie")
    first = run.certify(subject, TINY, tmp_path)
    names = list(first.parts)
    kept = json.loads((tmp_path / run.RESULT).read_text())
    del kept["parts"][names[0]]
    (tmp_path / run.RESULT).write_text(json.dumps(kept))
    done: list[str] = []
    second = run.certify(subject, TINY, tmp_path, say=done.append)
    assert [line.split(":")[0] for line in done] == names[:1]
    assert second.parts[names[0]]["episodes"] == first.parts[names[0]]["episodes"]
    with pytest.raises(L4SError, match="another agent, size or version"):
        run.certify(subject, replace(TINY, seeds=3), tmp_path)


def test_the_options_of_an_experiment_count(tmp_path: Path) -> None:
    path = tmp_path / "native" / "fast.toml"
    path.parent.mkdir()
    path.write_text('title = "x"\nagent = "native:dualpi2_rfc9332"\n[options.dualpi2_rfc9332]\ntarget_ms = 5.0\n')
    subject = run.Subject.of(str(path))
    assert subject.name == "native--fast"
    found = run.Certificate(subject, TINY, tmp_path / "out")
    assert found.law is not None
    assert found.law.target_ms == 5.0
    rows = found.episodes("grid-12m-20ms", 1)["episodes"]
    assert {row["target_ms"] for row in rows} == {5.0}
    path.write_text('title = "x"\nagent = ""\n[training]\nlearner = "bc"\ndataset = "a/b-v0"\n')
    with pytest.raises(L4SError, match="trains agents"):
        run.Subject.of(str(path))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(run.SIZES, "quick", TINY)
    assert main(["certify", "native:codel", "--quick", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert "report:" in capsys.readouterr().out
    assert (tmp_path / page.PAGE).is_file()
    assert main(["certify", "native:codel", "--seeds", "0"]) == 2


def test_what_is_dropped_after_an_outage_has_waited_too() -> None:
    """With a large proportional gain RFC 9332's law drops all that an outage has kept: none of it leaves the queue."""
    options = {"options.dualpi2_rfc9332.target_ms": 3.2, "options.dualpi2_rfc9332.beta": 12.0}
    scenario = load("lte").replace(horizon_s=2.0, **options)
    seen = loop.watch("dualpi2_rfc9332", scenario, [1])
    assert (seen.longest_ms[0] >= np.nanmax(seen.delay_ms[:, 0], 0)).all()
    assert seen.longest_ms[0, 0] > 100.0
