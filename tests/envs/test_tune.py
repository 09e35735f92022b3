"""The parameters of the native law as actions: what they write, and that the law stays sound whatever they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from l4s_gym.envs.prob import DualPI2ProbEnv
from l4s_gym.envs.tune import HIGHEST, LOWEST, DualPI2TuneEnv, DualPI2TuneVectorEnv, factors
from l4s_gym.errors import L4SError
from l4s_gym.evaluation import native
from l4s_gym.sim.disciplines import AQMS, get
from l4s_gym.sim.intervals import AVERAGES_S, FEATURES, INTERVAL
from l4s_gym.sim.scenario import load

Plain = Callable[..., dict[str, Any]]
TUNED = ("dualpi2_rfc9332", "dualpi2_linux")
NAMES = [feature.name for feature in FEATURES]


def play(env: Any, action: Callable[[], Any]) -> tuple[float, dict[str, Any]]:
    """Return and last info of an episode."""
    total, over, info = 0.0, False, {}
    while not over:
        _, reward, terminated, truncated, info = env.step(action())
        total, over = total + reward, terminated or truncated
    return total, info


# -- what an action writes


def test_factors() -> None:
    assert np.array_equal(factors(np.zeros(5)), np.ones(5))
    assert np.allclose(factors(-np.ones(5)), LOWEST) and np.allclose(factors(np.ones(5)), HIGHEST)
    assert np.allclose(factors([[0.5] * 5, [-0.5] * 5]), [HIGHEST**0.5, LOWEST**0.5])


@pytest.mark.parametrize(
    ("aqm", "expected"),
    [
        ("dualpi2_rfc9332", {-1: (1950, 11259, 450360, 256, 120_000), 1: (60_000, 90072, 5404320, 2150, 5_440_000)}),
        ("dualpi2_linux", {-1: (1950, 11, 440, 2, 150_000), 1: (60_000, 88, 5274, 8, 6_800_000)}),
    ],
)
def test_fields(aqm: str, expected: dict[int, tuple[int, ...]]) -> None:
    env = DualPI2TuneEnv("mixed", aqm)
    env.reset(seed=0)
    start = [int(field[0]) for field in env._fields()]
    for action, values in {**expected, 0: start}.items():
        env.step(np.full(5, action, np.float32))
        assert [int(field[0]) for field in env._fields()] == pytest.approx(values, abs=1)
    assert [int(field[0]) for field in env._fields()] == start


@pytest.mark.parametrize("aqm", TUNED)
@pytest.mark.parametrize("name", ["mixed", "lte", "overload"])
def test_zero_is_the_native_law(aqm: str, name: str, plain: Plain) -> None:
    """To the bit, whatever the length of an interval (the components of the reward but for the order of summation)."""
    scenario = plain(name, horizon_s=3.0, warmup_s=0.0)
    expected = native.simulate(load(scenario), aqm=aqm, seed=4).summary
    for interval_ms in (16.0, 100.0):
        env = DualPI2TuneEnv(scenario, aqm, interval_ms)
        env.reset(seed=4)
        found = play(env, lambda: np.zeros(5, np.float32))[1]["statistics"]
        for sums in ("components", "components_per_s"):
            assert found.pop(sums) == pytest.approx(expected[sums], rel=1e-9)
        assert found == {key: value for key, value in expected.items() if key in found}


def test_operators_values_are_the_scale(plain: Plain) -> None:
    """Those of each scenario, drawn ones included, in each environment of its own."""
    base = {"horizon_s": 0.1, "options": {"dualpi2_rfc9332": {"target_ms": 7.0, "coupling": 4.0}}}
    drawn = {"randomise": {"options.dualpi2_rfc9332.target_ms": {"low": 1.0, "high": 30.0}}}
    env = DualPI2TuneVectorEnv(3, [{**plain("web"), **base, "name": "a"}, {**plain("web"), **drawn, "name": "b"}])
    env.reset(seed=0, options={"scenario": "a"})
    env.step(np.full((3, 5), [1.0, 0.0, 0.0, -1.0, 0.0], np.float32))
    assert env.batch.env["target_us"].tolist() == [28_000] * 3
    assert env.batch.own["coupling"].tolist() == [512] * 3
    env.reset(seed=0, options={"scenario": "b"})
    given = env.batch.env["target_us"].copy()
    assert len(set(given)) == 3
    env.step(np.full((3, 5), [-1.0, 0.0, 0.0, 0.0, 0.0], np.float32))
    assert env.batch.env["target_us"] == pytest.approx(0.13 * given, abs=1)


def test_the_target_moves_the_delay(plain: Plain) -> None:
    env = DualPI2TuneVectorEnv(2, plain("l4s-llm-testbed", horizon_s=6.0))
    env.reset(seed=0)
    delay = np.zeros(2)
    for _ in range(370):
        obs, *_ = env.step(np.array([[-0.7, 0, 0, 0, 0], [0.7, 0, 0, 0, 0]], np.float32))
        delay += obs[:, NAMES.index("delay_c")]
    assert delay[1] > 3.0 * delay[0]


# -- what is refused


@pytest.mark.parametrize("aqm", [each for each in AQMS if each not in TUNED])
def test_other_disciplines(aqm: str) -> None:
    for cls in (DualPI2TuneEnv, DualPI2TuneVectorEnv):
        with pytest.raises(L4SError, match=f"aqm: {aqm}: give one whose parameters .* 'dualpi2_rfc9332' or 'dualpi2_"):
            cls(aqm=aqm)


def test_disciplines_of_scenarios(plain: Plain) -> None:
    two = [{**plain("web", aqm=aqm), "name": aqm} for aqm in TUNED]
    with pytest.raises(L4SError, match="aqm: dualpi2_freebsd: give one"):
        DualPI2TuneEnv("web", aqm=None)
    with pytest.raises(L4SError, match="aqm: dualpi2_linux, dualpi2_rfc9332: give one"):
        DualPI2TuneEnv(two, aqm=None)
    assert DualPI2TuneEnv(two[0], aqm=None).batch.aqm_of(0) == "dualpi2_rfc9332"


def test_values_that_cannot_be_scaled(plain: Plain) -> None:
    env = DualPI2TuneEnv(plain("web", **{"options.dualpi2_rfc9332.coupling": 0.5}))
    with pytest.raises(L4SError, match=r"^coupling: the operator's value must be from 256 to 65536 to be scaled$"):
        env.reset(seed=0)


# -- what is observed


def test_averages_and_flows() -> None:
    sources = [{"kind": kind, "count": n, "stagger_s": 0.0} for kind, n in (("cubic", 2), ("prague", 1))]
    env = DualPI2TuneEnv(
        {"horizon_s": 4.0, "sources": [*sources, {"kind": "cbr", "start_s": 99.0}]}, control_interval_ms=20.0
    )
    obs, _ = env.reset(seed=0)
    expected = {f"{name}_{1e3 * tau:.0f}ms": 0.0 for tau in AVERAGES_S for name in ("delay_c", "marked_l", "used")}
    rng = np.random.default_rng(0)
    for _ in range(80):
        obs, *_ = env.step(rng.uniform(-0.3, 0.3, 5).astype(np.float32))
        seen = dict(zip(NAMES, obs.tolist(), strict=True))
        for tau in AVERAGES_S:
            for name in ("delay_c", "marked_l", "used"):
                key = f"{name}_{1e3 * tau:.0f}ms"
                expected[key] += (1.0 - math.exp(-0.02 / tau)) * (seen[name] - expected[key])
                assert seen[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-5)
    assert seen["flows_c"] == pytest.approx(math.log(3)) and seen["flows_l"] == pytest.approx(math.log(2))
    rate_bps = env.batch.env["base_rate_bps"][0]
    assert seen["rate"] == pytest.approx(math.log(rate_bps / 56e3))


def test_flows_are_forgotten(finite: dict[str, Any]) -> None:
    """Half a second after their last packet; one goes on, so that the episode does."""
    sources = [*finite["sources"], {"kind": "cbr", "rate_mbps": 1.0, "stagger_s": 0.0}]
    env = DualPI2TuneEnv({**finite, "sources": sources, "horizon_s": 3.0})
    env.reset(seed=0)
    seen = [env.step(np.zeros(5, np.float32))[0][NAMES.index("flows_c")] for _ in range(180)]
    assert max(seen) == pytest.approx(math.log(4)) and seen[-1] == pytest.approx(math.log(2))


def test_the_observation_of_probabilities_is_a_part() -> None:
    """Tune sees what Prob sees, and more."""
    tune, prob = DualPI2TuneVectorEnv(1, "web").buffers["obs"], DualPI2ProbEnv("web").intervals.obs
    assert FEATURES[: len(INTERVAL)] == INTERVAL
    assert (tune.shape, prob.shape) == ((1, len(FEATURES)), (1, 12))


# -- any action is safe


def check_counts(env: DualPI2TuneVectorEnv) -> None:
    """Every packet that was offered has left, was dropped, waits or is being sent; delays are finite."""
    e, queues = env.batch.env, env.batch.queues
    sending = (e["sending_packet"] >= 0).astype(int)
    assert np.array_equal(e["sent"], e["delivered"] + e["dropped"] + e["packets"] + sending)
    assert np.array_equal(e["packets"], queues["packets"].sum(1))
    assert np.array_equal(e["bytes"], queues["bytes"].sum(1))
    assert (queues["delay_ns"] >= 0).all() and (queues["max_delay_ns"] <= e["horizon_ns"][:, None]).all()
    assert np.isfinite(env.batch.reward).all() and np.isfinite(env.buffers["obs"]).all()
    prob = env.batch.own["prob"]
    assert ((prob >= 0) & (prob <= 1 << 32)).all()


@pytest.mark.parametrize("aqm", TUNED)
def test_random_parameters(aqm: str, plain: Plain) -> None:
    """150 episodes of 1 to 2 s on links and loads of all kinds, other parameters in each interval."""
    names = ("mixed", "overload", "lte", "wifi", "leo", "web", "steps", "grid-4m-100ms", "grid-120m-5ms")
    scenarios = [plain(name, horizon_s=1.0 + k / len(names)) for k, name in enumerate(names)]
    env = DualPI2TuneVectorEnv(50, scenarios, aqm, 100.0, autoreset_mode="same_step", copy=False)
    env.reset(seed=1)
    rng = np.random.default_rng(0)
    ends = 0
    while ends < 150:
        corners = rng.choice([-1.0, 1.0], (50, 5))
        action = np.where(rng.random((50, 5)) < 0.5, corners, rng.uniform(-1.0, 1.0, (50, 5)))
        _, _, terminated, truncated, _ = env.step(action.astype(np.float32))
        ends += int((terminated | truncated).sum())
        check_counts(env)


def test_every_tuned_discipline_says_its_fields() -> None:
    for aqm in TUNED:
        fields = {*(get(aqm).records.env.names or ()), "target_us", "alpha", "beta"}
        assert len(get(aqm).tune) == len(LOWEST) and {each.name for each in get(aqm).tune} <= fields


# -- the probabilities keep what the native law has


@pytest.mark.parametrize("aqm", ["dualpi2_rfc9332", "dualpi2_linux", "dualpi2_freebsd"])
def test_probabilities_keep_the_threshold_of_l(aqm: str, plain: Plain) -> None:
    env = DualPI2ProbEnv(plain("l4s-llm-testbed", horizon_s=3.0), aqm)
    env.reset(seed=0)
    classes = play(env, lambda: np.full(2, -1.0, np.float32))[1]["statistics"]["classes"]
    assert classes["L"]["marked"] > 30 and classes["C"]["marked"] == 0


@pytest.mark.parametrize("even", [False, True])
@pytest.mark.parametrize(("p_c", "drops"), [(0.24, False), (0.26, True), (0.6, True)])
def test_probabilities_drop_ect_in_overload(p_c: float, drops: bool, even: bool) -> None:
    sources = [{"kind": "cbr", "rate_mbps": 4.0, "ecn": ecn, "stagger_s": 0.0} for ecn in ("ect0", "ect1")]
    env = DualPI2ProbEnv(
        {"horizon_s": 4.0, "warmup_s": 0.0, "sources": sources, "link": {"rate_mbps": 12.0}}, even=even
    )
    env.reset(seed=0)
    action = np.array([1.0 + math.log10(p_c) / 2.0, 0.9], np.float32)
    classes = play(env, lambda: action)[1]["statistics"]["classes"]
    for name in "CL":
        share = classes[name]["dropped_ect"] / classes[name]["offered"]
        assert share == (pytest.approx(p_c, abs=0.05) if drops else 0.0)
    expected = 1.0 - p_c if drops else 0.1**0.2
    assert classes["L"]["mark_rate"] == pytest.approx(expected, abs=0.05)
