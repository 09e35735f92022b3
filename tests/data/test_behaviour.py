"""The kernel's probabilities are those of its own functions, and those by which simulated logs were drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4s_gym import L4SError
from l4s_gym.data.behaviour import action_probabilities
from l4s_gym.data.simulated import AQM, Behaviour, SimulatedRun, episode_probabilities
from l4s_gym.schema import BY_NAME, CE, DROP, ENQUEUE, MARK, MAX_PROB, NOT_ECT, RECORD
from l4s_gym.sim import dualpi2_freebsd as freebsd
from l4s_gym.sim.scenario import load

NUMBERS = 1 << 31
PROBS = st.integers(0, MAX_PROB) | st.integers(0, 1 << 28) | st.sampled_from([0, MAX_PROB, 819 << 18, MAX_PROB // 5])
SUMS = st.integers(0, 3 * freebsd.DERANDOMISE_HIGH) | st.integers(
    freebsd.DERANDOMISE_LOW - 2, freebsd.DERANDOMISE_LOW + 2
)
many = settings(max_examples=300, deadline=None)


def count(prob: int, accu: int, is_l4s: bool, number: int) -> int:
    """How many values of one random number hit while the other one is 0: those below the first that does not."""

    def hits(value: int) -> bool:
        pair = (value, 0) if number == 0 else (0, value)
        return freebsd.draw(prob, accu, is_l4s, *pair)[0]

    low, high = 0, NUMBERS
    while low < high:
        middle = (low + high) // 2
        if hits(middle):
            low = middle + 1
        else:
            high = middle
    assert all(hits(value) == (value < low) for value in (0, low - 1, low, NUMBERS - 1) if 0 <= value < NUMBERS)
    return low


def expected(row: Any) -> list[float]:
    """The probabilities of a record by the kernel's own functions, over all 2^62 pairs of random numbers."""
    prob, old, length = (int(row[name]) for name in ("drop_probability", "queue_delay_old", "length_in_bytes"))
    found = [1.0, 0.0, 0.0]
    if freebsd.guarded(prob, old, length, int(row["qdelay_ref"])):
        return found
    accu = freebsd.accumulate(prob, int(row["accumulated_probability_before"]))
    is_l4s = bool(row["queue_type"])
    ways = [count(prob, accu, is_l4s, number) for number in (0, 1)]
    rng = np.random.default_rng(prob)
    for pair in rng.integers(0, NUMBERS, (20, 2)).tolist():  # the numbers decide one by one
        one_by_one = all(value < limit for value, limit in zip(pair, ways, strict=True))
        assert freebsd.draw(prob, accu, is_l4s, *pair)[0] == one_by_one
    hit = ways[0] / NUMBERS * (ways[1] / NUMBERS)
    active, burst = row["status_flags"] != 0, int(row["burst_allowance"])
    ecn, limit = int(row["ecn"]), int(row["max_ecn_threshold"])
    action, _ = freebsd.resolve(True, active, burst, ecn, prob, is_l4s, limit)
    found[ENQUEUE] -= hit
    found[action] += hit
    return found


@many
@given(
    prob=PROBS,
    before=SUMS,
    queue=st.integers(0, 1),
    old=st.integers(0, 20_000) | st.sampled_from([7499, 7500]),
    length=st.integers(0, 100_000) | st.sampled_from([1600, 1601]),
    burst=st.sampled_from([0, 15_000]),
    active=st.booleans(),
    ecn=st.integers(NOT_ECT, CE),
    limit=st.sampled_from([819, 0, 8192]),
)
def test_probabilities_are_those_of_the_kernels_functions(
    prob: int, before: int, queue: int, old: int, length: int, burst: int, active: bool, ecn: int, limit: int
) -> None:
    row = np.zeros(1, RECORD)
    row["drop_probability"], row["accumulated_probability_before"] = prob, before
    row["queue_type"], row["queue_delay_old"], row["length_in_bytes"] = queue, old, length
    row["burst_allowance"], row["status_flags"], row["ecn"] = burst, 3 * active, ecn
    row["max_ecn_threshold"], row["qdelay_ref"] = limit, 15_000
    found = action_probabilities(row)[0]
    assert found == pytest.approx(expected(row[0]), abs=1e-15)
    mixed = action_probabilities(row, 0.3)[0]
    assert mixed == pytest.approx(0.7 * found + 0.1, abs=1e-15)


RUNS: dict[str, tuple[str, float, float, dict[str, Any]]] = {
    "testbed": ("l4s-llm-testbed", 20.0, 0.0, {}),
    "prague": ("l4s-llm-testbed-prague", 20.0, 0.0, {}),
    "machines": ("l4s-llm-testbed-vm", 120.0, 0.0, {}),
    "overload": ("overload", 10.0, 0.0, {}),
    "short flows": ("web", 20.0, 0.0, {}),
    "overflow": ("l4s-llm-testbed", 20.0, 0.0, {"link.limit_packets": 25}),
    "some at random": ("l4s-llm-testbed", 20.0, 0.1, {}),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """Name, log (T,) and probabilities (T, 3) of a run."""
    name, seconds, explore, changes = RUNS[request.param]
    scenario = load(name).replace(horizon_s=seconds, **changes)
    records = np.concatenate(list(SimulatedRun(scenario, Behaviour(AQM, explore), 7).records()))
    return request.param, records, action_probabilities(records, explore)


def test_what_was_decided_was_possible(run: tuple[str, Any, Any]) -> None:
    name, records, q = run
    taken = q[np.arange(len(q)), records["action"]]
    assert len(q) > 1000 and taken.min() > 0.0
    assert np.allclose(q.sum(axis=1), 1.0, atol=1e-12) and (q >= 0.0).all()
    if name != "some at random":
        assert (q[:, ENQUEUE] == 1.0).any() and ((taken < 1.0) & (taken > 0.0)).sum() > 100


def test_decisions_are_as_frequent_as_probable(run: tuple[str, Any, Any]) -> None:
    """In each bin, the number of decisions is within 4.5 standard deviations; the seed is fixed."""
    _, records, q = run
    bins = 0
    for action in (DROP, MARK):
        happened = records["action"] == action
        some = q[q[:, action] > 0.0, action]
        edges = np.unique(np.quantile(some, np.linspace(0, 1, 9)[1:-1])) if len(some) else some
        place = np.searchsorted(edges, q[:, action], side="left")
        for number in np.unique(place):
            here = place == number
            p = q[here, action]
            spread = np.sqrt((p * (1.0 - p)).sum())
            assert abs(happened[here].sum() - p.sum()) <= 4.5 * spread + 1e-9, (action, number)
            bins += spread > 1.0
    assert bins >= 4


def test_a_full_buffer_is_no_decision() -> None:
    name, seconds, _, changes = RUNS["overflow"]
    scenario = load(name).replace(horizon_s=seconds, **changes)
    records = np.concatenate(list(SimulatedRun(scenario, Behaviour(AQM), 7).records()))
    lost = sum(int(records["total_drops"][records["queue_type"] == queue].max()) for queue in (0, 1))
    assert lost > 10 + (records["applied_action"] == DROP).sum()  # else nothing overflowed


def test_an_unknown_sum_is_refused() -> None:
    row = np.zeros(2, RECORD)
    row["accumulated_probability_before"][1] = BY_NAME["accumulated_probability_before"].high
    with pytest.raises(L4SError, match="is unknown: give a log of the simulator"):
        action_probabilities(row)
    with pytest.raises(L4SError, match="explore=2: give a share"):
        action_probabilities(row[:1], 2)


# -- datasets


@pytest.fixture
def episodes(simulated: Callable[[str, float], list[Any]]) -> list[Any]:
    """Decided by the kernel, by it and chance, by RFC 9332."""
    kernel = '{aqm = "dualpi2_freebsd"}, {aqm = "dualpi2_freebsd", explore = 0.2}'
    return simulated(f'{kernel}, {{aqm = "dualpi2_rfc9332"}}', 5.0)


def test_a_dataset_bears_its_probabilities(episodes: list[Any]) -> None:
    kernel, explored, other = episodes
    for episode in (kernel, explored):
        q = episode_probabilities(episode)
        assert q.shape == (len(episode), 3)
        assert q[np.arange(len(q)), episode.actions].min() > 0.0
    assert (episode_probabilities(kernel)[:, ENQUEUE] == 1.0).any()
    assert episode_probabilities(explored).min() == pytest.approx(0.2 / 3)
    with pytest.raises(L4SError, match="was not simulated with dualpi2_freebsd"):
        episode_probabilities(other)


def test_other_rows_are_noticed(episodes: list[Any]) -> None:
    kernel = episodes[0]
    kernel.actions[np.flatnonzero(kernel.actions == ENQUEUE)[100]] = MARK
    with pytest.raises(L4SError, match="now gives other rows: build the dataset again"):
        episode_probabilities(kernel)
