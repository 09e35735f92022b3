"""What holds in every state of every episode: nothing is lost, nothing is counted twice, time goes on.

Hypothesis draws the scenario (sources, link, buffer, discipline), who decides and what.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l4s_gym import rewards
from l4s_gym.schema import MAX_PROB, OBS_HIGH
from l4s_gym.sim import layout
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.disciplines import AQMS
from l4s_gym.sim.scenario import Scenario, from_dict

DECIDERS = (layout.NATIVE, layout.AGENT, layout.PROBABILITY)
STOPS = 8
HIGHEST: dict[str, dict[str, float]] = {
    "dualpi2_freebsd": {"drop_prob": MAX_PROB, "accu_prob": 1 << 62, "burst_us": 1 << 62},
    "dualpi2_rfc9332": {"prob": 1 << 32, "recur": 1 << 32},
    "dualpi2_linux": {"prob": (1 << 32) - 1},
    "pie": {"prob": 1.0, "accu": 1e9, "burst_ns": 1 << 62},
    "red": {"prob": 1.0},
    "fq_codel": {"count": 1 << 40, "lost": 64, "on": 2},
    "cobalt": {"count": 1 << 40, "prob": 1.0, "on": 3},
    "curvy_red": {"average_ns": 1e12},
}
"""What the state of each discipline may be at most; it is never below 0."""
LINK = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["constant", "constant", "trace", "tick", "dummynet"]),
        "rate_mbps": st.sampled_from([0.56, 0.8, 2.0, 8.0, 40.0, 120.0]),
        "hz": st.sampled_from([10, 100, 1000]),
        "passes": st.integers(1, 3),
        "acks_in_queue": st.booleans(),
    },
    optional={
        "limit_packets": st.sampled_from([2, 3, 10, 100]),
        "buffer_ms": st.sampled_from([0.1, 5.0, 50.0, 250.0]),
        "pipe_delay_ms": st.sampled_from([0.5, 25.0]),
        "row_ms": st.sampled_from([0.01, 2.0]),
        "slice_ms": st.sampled_from([0.0, 20.0]),
        "steps": st.sampled_from([[[0.0, 0.1]], [[0.05, 0.1], [0.1, 4.0]], [[0.1, 2.0], [0.1, 0.5]]]),
    },
)
SOURCE = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["newreno", "cubic", "dctcp", "prague", "cbr", "onoff", "web"]),
        "rtt_ms": st.sampled_from([0.001, 1.0, 10.0, 100.0]),
    },
    optional={
        "count": st.integers(1, 3),
        "ecn": st.sampled_from(["not-ect", "ect0", "ect1"]),
        "echo": st.sampled_from(["rfc3168", "accurate"]),
        "stagger_s": st.sampled_from([0.0, 0.1]),
        "transfer_bytes": st.sampled_from([0, 1, 1448, 1449, 20_000, 300_000]),
        "rate_mbps": st.sampled_from([0.1, 4.0, 50.0]),
        "on_s": st.sampled_from([0.001, 0.05]),
        "off_s": st.sampled_from([0.001, 0.05]),
        "cc": st.sampled_from(["newreno", "cubic", "dctcp", "prague"]),
        "size_bytes": st.sampled_from([(0, 1), (1, 1), (500, 100_000)]),
        "packet_length": st.sampled_from([60, 100, 576, 1500, 9000]),
        "ack_every": st.integers(1, 4),
        "delayed_ack_ms": st.sampled_from([0.01, 40.0]),
        "initial_window": st.sampled_from([1.0, 10.0, 1000.0]),
        "min_rto_ms": st.sampled_from([1.0, 200.0]),
        "receive_window": st.sampled_from([1, 2, 40]),
        "largest_window": st.just(100),
        "initial_threshold": st.sampled_from([2.0, 20.0]),
        "freebsd": st.booleans(),
        "card": st.integers(0, 3),
        "sack_length": st.just(12),
        "rto_slop_ms": st.just(50.0),
    },
)
EPISODE = st.fixed_dictionaries(
    {
        "link": LINK,
        "sources": st.lists(SOURCE, min_size=1, max_size=4),
        "aqm": st.sampled_from(AQMS),
        "decider": st.sampled_from(DECIDERS),
        "interval": st.sampled_from([1, 1, 3, 100]),
        "probabilities": st.tuples(st.floats(0, 1), st.floats(0, 1)),
        "even": st.booleans(),
        "reward": st.sampled_from(rewards.NAMES),
        "seed": st.integers(0, 1 << 16),
    }
)


def make(episode: dict[str, Any], horizon_s: float) -> Batch:
    link = {"trace": "lte", **episode["link"]}
    tree = {"name": "random", "horizon_s": horizon_s, "link": link, "sources": episode["sources"]}
    scenario: Scenario = from_dict({**tree, "aqm": episode["aqm"]})
    batch = Batch(scenario, decider=episode["decider"], interval=episode["interval"], reward=episode["reward"])
    batch.reset(0, np.random.default_rng(episode["seed"]))
    batch.env["p_l"], batch.env["p_c"] = episode["probabilities"]
    batch.env["even"] = episode["even"]
    return batch


def walk(packet: Any, head: int) -> list[int]:
    found = []
    while head >= 0:
        found.append(head)
        head = int(packet["next"][head])
    return found


def check_state(batch: Batch) -> None:
    env, queue, flow, packet = batch.env[0], batch.queues[0], batch.flow[0], batch.packet[0]
    queued = [walk(packet, int(head)) for head in queue["head"]]
    for q, members in zip(queue, queued, strict=True):
        assert q["packets"] == len(members)
        assert q["bytes"] == packet["len"][members].sum()
        assert q["tail"] == (members[-1] if members else -1)
    assert env["packets"] == sum(map(len, queued))
    assert env["bytes"] == queue["bytes"].sum()
    assert queue["class_packets"].sum() == env["packets"]
    assert [batch.queued(0, what).sum() for what in ("packets", "bytes")] == [env["packets"], env["bytes"]]

    # Every packet that was offered has left, was dropped, waits, or is being sent.
    sending = int(env["sending_packet"] >= 0)
    assert env["sent"] == env["delivered"] + env["dropped"] + env["packets"] + sending
    assert env["sent"] == queue["offered"].sum()
    assert env["dropped"] == queue["dropped"].sum() == queue["drops"].sum()
    assert env["delivered"] + sending == queue["left"].sum() == batch.hist[0].sum()

    # Every packet of the pool is in one place.
    travelling = [at for head in flow["transit_head"] for at in walk(packet, int(head))]
    in_router = [walk(packet, int(head)) for head in env["list_head"]]
    assert [len(ring) for ring in in_router[:4]] == env["ring_size"].tolist()
    assert sum(env["ring_size"]) == env["in_rings"]
    placed = [
        *(at for members in queued for at in members),
        *travelling,
        *(at for members in in_router for at in members),
    ]
    placed += [int(env[name]) for name in ("sending_packet", "arriving") if env[name] >= 0]
    free = walk(packet, int(env["free"]))
    assert env["in_flight"] == len(placed)
    assert sorted(placed + free) == list(range(int(env["fresh"])))
    assert env["fresh"] <= env["pool"] == len(packet)

    # The flows' shares, and what is earned by them.
    assert 0.0 <= env["evenness"] <= 1.0 and (env["totals"] >= 0.0).all()
    assert env["totals"][1] <= env["totals"][0] * (1.0 + 1e-12)
    bulk = (flow["app"] == layout.BULK) & (flow["running"] != 0)
    assert env["bulk_flows"].sum() == bulk.sum()
    assert (env["second_bytes"] == env["past_bytes"].sum(axis=0)).all()
    assert (env["second_ns"] == env["past_ns"].sum(axis=0)).all()

    if env["limit_packets"]:
        assert env["packets"] <= env["limit_packets"]
    assert 0.0 <= batch.base_probability(0) <= 1.0
    for name, highest in HIGHEST.get(batch.aqm_of(0), {}).items():
        value = (batch.own_queue if name in (batch.own_queue.dtype.names or ()) else batch.own)[name][0]
        assert ((value >= 0) & (value <= highest)).all()
    assert (queue["delay_ns"] >= 0).all()

    transport = flow[flow["cc"] != layout.NONE]
    assert (transport["una"] <= transport["rcv_nxt"]).all()
    assert (transport["rcv_nxt"] <= transport["nxt"]).all()
    assert (transport["nxt"] - transport["una"] <= transport["rwnd"]).all()
    assert ((transport["pipe"] >= 0) & (transport["pipe"] <= transport["nxt"] - transport["una"])).all()
    assert ((transport["lost_out"] >= 0) & (transport["lost_out"] <= transport["nxt"] - transport["una"])).all()
    assert (transport["held"] >= 0).all() and np.isfinite(transport["cwnd"]).all()


def check_episode(episode: dict[str, Any], horizon_s: float, decisions: int) -> None:
    batch = make(episode, horizon_s)
    rng = np.random.default_rng(episode["seed"])
    actions = rng.integers(0, 3, decisions)
    env, before, decided, stops = batch.env[0], 0, 0, 0
    batch.stop_at(0, round(horizon_s * 1e9 / STOPS))
    while True:
        status = batch.advance_one()
        now = int(env["now_ns"])
        assert before <= now <= env["horizon_ns"]
        before = now
        assert np.isfinite(batch.reward[0])
        if status == layout.DECISION:
            assert ((batch.obs >= 0) & (batch.obs <= OBS_HIGH)).all()
            if decided == decisions:
                return check_state(batch)
            batch.action[0] = actions[decided]
            decided += 1
        elif status == layout.STOPPED:
            check_state(batch)
            stops += 1
            batch.stop_at(0, round(horizon_s * 1e9 * (stops + 1) / STOPS))
        else:
            assert status in (layout.TERMINATED, layout.TRUNCATED)
            if status == layout.TRUNCATED:
                assert now == env["horizon_ns"]
            else:
                assert env["finite"] == 1 and env["unfinished"] == 0
            return check_state(batch)


quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=quiet)
@given(EPISODE)
def test_random_episodes(episode: dict[str, Any]) -> None:
    check_episode(episode, horizon_s=0.4, decisions=400)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)
@given(EPISODE)
def test_many_random_episodes(episode: dict[str, Any]) -> None:
    check_episode(episode, horizon_s=0.25, decisions=300)


@pytest.mark.parametrize("aqm", AQMS)
def test_buffer_of_two_packets(aqm: str) -> None:
    episode = {
        "link": {"rate_mbps": 8.0, "limit_packets": 2},
        "sources": [{"kind": "cubic", "count": 2}, {"kind": "prague"}, {"kind": "cbr", "rate_mbps": 10.0}],
        "aqm": aqm, "decider": layout.NATIVE, "interval": 1, "probabilities": (0.0, 0.0), "even": False,
        "reward": "balance", "seed": 0,
    }  # fmt: skip
    check_episode(episode, horizon_s=20.0, decisions=0)


@pytest.mark.parametrize("action", [0, 1, 2])
def test_an_agent_that_always_does_the_same(action: int) -> None:
    batch = make(
        {
            "link": {"rate_mbps": 8.0}, "sources": [{"kind": "newreno"}, {"kind": "dctcp"}],
            "aqm": "dualpi2_freebsd", "decider": layout.AGENT, "interval": 1, "probabilities": (0.0, 0.0),
            "even": False, "reward": "power", "seed": 1,
        },
        20.0,
    )  # fmt: skip
    batch.action[0] = action
    while batch.advance_one() == layout.DECISION:
        batch.action[0] = action
    check_state(batch)
    delivered, dropped = int(batch.env["delivered"][0]), int(batch.env["dropped"][0])
    if action == 1:
        assert delivered == 0 < dropped
    else:
        assert delivered > 1000
    assert bool(batch.queue["marked"].any()) == (action == 2)


def test_unresponsive_senders_fill_the_paths_of_two_passes() -> None:
    """They keep to no window: only the link bounds what is under way."""
    link = {"rate_mbps": 40.0, "passes": 2, "limit_packets": 2, "steps": [[0.05, 0.1], [0.1, 4.0]]}
    source = {"kind": "cbr", "rtt_ms": 100.0, "count": 2, "rate_mbps": 50.0}
    batch = Batch(from_dict({"name": "long", "horizon_s": 0.5, "link": link, "sources": [source]}))
    batch.reset(0, np.random.default_rng(0))
    assert batch.advance_one() == layout.TRUNCATED
