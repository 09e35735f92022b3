"""The view of the queue at a decision: the observation, the record of the log, the reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from l4s_gym.schema import OBS_HIGH, OBS_SCALE
from l4s_gym.sim import disciplines
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import POWER, WAITING, WEIGHTED
from l4s_gym.sim.memory import log_at, obs_of, packet_at, queue_at, rewards_of, sojourns_of

_SCALE = OBS_SCALE.copy()
_HIGH = OBS_HIGH.astype(np.float64)


@jit
def _put(obs: Any, k: int, value: float) -> None:
    obs[k] = min(max(value / _SCALE[k], 0.0), _HIGH[k])


@jit
def observe(env: Any, index: int, p: int) -> None:
    """Write the observation of packet `p`, which arrived for queue `index`, before any decision."""
    q = queue_at(env, index)
    obs = obs_of(env)
    obs[0] = index * env.dual
    _put(obs, 1, disciplines.burst_allowance_us(env, index))
    _put(obs, 2, disciplines.base_probability(env, index))
    _put(obs, 3, disciplines.current_delay_us(env, index))
    _put(obs, 4, disciplines.accumulated_probability(env, index))
    _put(obs, 5, q.bytes)
    _put(obs, 6, q.interval_drops)
    _put(obs, 7, packet_at(env, p).len)


@jit
def note_decided(env: Any, p: int) -> None:
    """Store what the reward `l4s_llm` needs about the packet that is decided now."""
    a = packet_at(env, p)
    env.last_reward_len = a.len
    env.last_reward_delay_us = disciplines.current_delay_us(env, disciplines.classify(env, p))


@jit
def write_before(env: Any, index: int, p: int) -> int:
    """Start a row of the log with what was known before the decision; return its number, or -1 without a log."""
    if env.log_capacity == 0:
        return -1
    q = queue_at(env, index)
    a = packet_at(env, p)
    row = env.log_rows
    env.log_rows += 1
    r = log_at(env, row)
    r.queue_type = index * env.dual
    r.qdelay_ref = env.target_us
    r.tupdate = env.tupdate_us
    r.max_burst = env.max_burst_us
    r.max_ecn_threshold = env.max_ecn_threshold
    r.alpha = env.alpha
    r.beta = env.beta
    r.flags = env.flags
    r.burst_allowance = disciplines.burst_allowance_us(env, index)
    r.drop_probability = disciplines.base_probability(env, index)
    r.current_queue_delay = disciplines.current_delay_us(env, index)
    r.queue_delay_old = disciplines.old_delay_us(env, index)
    r.measurement_start = q.measurement_start_us
    r.average_dequeue_time = 0
    r.dequeue_count = 0
    r.status_flags = 3 if q.active else 0
    r.total_packets = q.total_packets
    r.total_bytes = q.total_bytes
    r.length_in_packets = q.packets
    r.length_in_bytes = q.bytes
    r.total_drops = q.drops
    r.packet_length = a.len
    r.sequence = env.sequence
    r.time_us = env.now_ns // 1000
    r.flow_id = a.flow
    r.ecn = a.ecn
    r.accumulated_probability_before = disciplines.accumulated_probability(env, index)
    r.interval_drops = q.interval_drops
    sojourns_of(env)[row] = WAITING
    rewards_of(env)[row] = env.taken + reward_so_far(env)
    env.sequence += 1
    return row


@jit
def write_after(env: Any, row: int, index: int, logged: int, applied: int, decided_by: int) -> None:
    """Finish a row with the decision and the kernel's accumulated probability after it."""
    r = log_at(env, row)
    r.accumulated_probability = disciplines.accumulated_probability(env, index)
    r.action = logged
    r.applied_action = applied
    r.decided_by = decided_by


@jit
def integrate(env: Any) -> None:
    """Update the integrals of the reward up to now.

    A class's delay at an instant is the sojourn of its packet that left the queue last, while more packets of
    the class are queued, else 0. It is normalised to [0, 1): delay / (delay + reference of the class).
    """
    elapsed = env.now_ns - env.integrated_ns
    if elapsed <= 0:
        return
    env.integrated_ns = env.now_ns
    seconds = elapsed * 1e-9
    c = queue_at(env, 0)
    l4s = queue_at(env, 1)
    if c.class_packets > 0:
        env.delay_c_s += seconds * c.normalised
    if l4s.class_packets > 0:
        env.delay_l_s += seconds * l4s.normalised


@jit
def reward_so_far(env: Any) -> float:
    """Return the reward since it was last taken."""
    integrate(env)
    if env.reward_kind == WEIGHTED:
        weights = env.weights
        delay = weights[2] * env.delay_c_s + weights[3] * env.delay_l_s
        return weights[0] * env.served_s + weights[1] * env.fair_s + delay
    if env.reward_kind == POWER:
        return env.power_s
    return env.last_reward_len / (env.last_reward_delay_us + 1000.0)


@jit
def take_reward(env: Any) -> float:
    """Return the reward since it was last taken, and reset it."""
    reward = reward_so_far(env)
    env.taken += reward
    totals = env.totals
    totals[0] += env.served_s
    totals[1] += env.fair_s
    totals[2] += env.delay_c_s
    totals[3] += env.delay_l_s
    env.last_reward_len = 0
    env.served_s = 0.0
    env.power_s = 0.0
    env.fair_s = 0.0
    env.delay_c_s = 0.0
    env.delay_l_s = 0.0
    return reward
