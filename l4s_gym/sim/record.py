"""What is seen of the queue at a decision: the observation, the record of the log, the reward."""

from __future__ import annotations

from typing import Any

import numpy as np

from l4s_gym.schema import OBS_HIGH, OBS_SCALE
from l4s_gym.sim import disciplines
from l4s_gym.sim.jit import jit
from l4s_gym.sim.layout import BALANCE, DELAY_WEIGHT, POWER
from l4s_gym.sim.memory import log_at, obs_of, packet_at, queue_at, rewards_of

_SCALE = OBS_SCALE.copy()
_HIGH = OBS_HIGH.astype(np.float64)


@jit
def _put(obs: Any, k: int, value: float) -> None:
    obs[k] = min(max(value / _SCALE[k], 0.0), _HIGH[k])


@jit
def observe(w: Any, index: int, p: int) -> None:
    """Write the observation of the packet `p` that has arrived for queue `index`, before any decision."""
    q = queue_at(w, index)
    obs = obs_of(w)
    obs[0] = index * w.dual
    _put(obs, 1, disciplines.burst_allowance_us(w, index))
    _put(obs, 2, disciplines.base_probability(w, index))
    _put(obs, 3, disciplines.current_delay_us(w, index))
    _put(obs, 4, disciplines.accumulated_probability(w, index))
    _put(obs, 5, q.bytes)
    _put(obs, 6, q.interval_drops)
    _put(obs, 7, packet_at(w, p).len)


@jit
def note_decided(w: Any, p: int) -> None:
    """Keep what the reward `l4s_llm` takes of the packet that is decided now."""
    a = packet_at(w, p)
    w.last_reward_len = a.len
    w.last_reward_delay_us = disciplines.current_delay_us(w, disciplines.classify(w, p))


@jit
def write_before(w: Any, index: int, p: int) -> int:
    """Start a row of the log with what was known before the decision; its number, or -1 without a log."""
    if w.log_capacity == 0:
        return -1
    q = queue_at(w, index)
    a = packet_at(w, p)
    row = w.log_rows
    w.log_rows += 1
    r = log_at(w, row)
    r.queue_type = index * w.dual
    r.qdelay_ref = w.target_us
    r.tupdate = w.tupdate_us
    r.max_burst = w.max_burst_us
    r.max_ecn_threshold = w.max_ecn_threshold
    r.alpha = w.alpha
    r.beta = w.beta
    r.flags = w.flags
    r.burst_allowance = disciplines.burst_allowance_us(w, index)
    r.drop_probability = disciplines.base_probability(w, index)
    r.current_queue_delay = disciplines.current_delay_us(w, index)
    r.queue_delay_old = disciplines.old_delay_us(w, index)
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
    r.sequence = w.sequence
    r.time_us = w.now_ns // 1000
    r.flow_id = a.flow
    r.ecn = a.ecn
    r.accumulated_probability_before = disciplines.accumulated_probability(w, index)
    r.interval_drops = q.interval_drops
    rewards_of(w)[row] = w.taken + reward_so_far(w)
    w.sequence += 1
    return row


@jit
def write_after(w: Any, row: int, index: int, logged: int, applied: int, decided_by: int) -> None:
    """Finish a row with the decision and the kernel's accumulated probability after it."""
    r = log_at(w, row)
    r.accumulated_probability = disciplines.accumulated_probability(w, index)
    r.action = logged
    r.applied_action = applied
    r.decided_by = decided_by


@jit
def integrate(w: Any) -> None:
    """Bring the integrals of the reward up to now.

    A class's delay at an instant is the sojourn of its packet that left the queue last, while more of the
    class are queued, else 0. It is normalised to [0, 1): delay / (delay + reference of the class).
    """
    elapsed = w.now_ns - w.integrated_ns
    if elapsed <= 0:
        return
    w.integrated_ns = w.now_ns
    seconds = elapsed * 1e-9
    c = queue_at(w, 0)
    l4s = queue_at(w, 1)
    if c.class_packets > 0:
        w.delay_c_s += seconds * c.normalised
    if l4s.class_packets > 0:
        w.delay_l_s += seconds * l4s.normalised


@jit
def reward_so_far(w: Any) -> float:
    """The reward since it was last taken."""
    integrate(w)
    if w.reward_kind == BALANCE:
        return w.served_s - DELAY_WEIGHT * (w.delay_c_s + w.delay_l_s)
    if w.reward_kind == POWER:
        return w.power_s
    return w.last_reward_len / (w.last_reward_delay_us + 1000.0)


@jit
def take_reward(w: Any) -> float:
    """The reward since it was last taken; from now on it counts from 0."""
    reward = reward_so_far(w)
    w.taken += reward
    w.last_reward_len = 0
    w.served_s = 0.0
    w.power_s = 0.0
    w.delay_c_s = 0.0
    w.delay_l_s = 0.0
    return reward
