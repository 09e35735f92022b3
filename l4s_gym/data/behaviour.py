"""What the testbed's kernel would do, as probabilities, before it draws its random numbers.

`l4s_gym.sim.dualpi2_freebsd` decides by `guarded`, `accumulate`, `draw` and `resolve`; everything that they look at is
in the record, but the random numbers. So the probabilities of each logged decision are known to the last bit, and an
imitator can be held against the distribution instead of the one draw that was logged.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from l4s_gym.data.logs import Records
from l4s_gym.data.simulated import Behaviour, SimulatedRun
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, BY_NAME, DROP, ENQUEUE, L4S, MARK, MAX_PROB, NOT_ECT
from l4s_gym.sim.dualpi2_freebsd import DERANDOMISE_HIGH, DERANDOMISE_LOW
from l4s_gym.sim.scenario import load

Floats = npt.NDArray[np.float64]

AQM: Final = "dualpi2_freebsd"
_ACTIVE: Final = 1
_RANDOM: Final = MAX_PROB + 1
"""Numbers that the kernel's `random()` draws from: 0 to 2^31 - 1."""


def action_probabilities(records: Records, explore: float = 0.0) -> Floats:
    """Probabilities of the decisions of `dualpi2_freebsd`, with all its quirks.

    A decision is what is logged as `action`. That a drop is withheld, or that the buffer overflows later and loses the
    head of a queue, is not part of it.

    Args:
        records: Rows (T,) of a simulated log.
        explore: Share of the packets for which one of the three actions is drawn evenly instead.

    Returns:
        Probabilities of enqueue, drop and mark (T, 3).

    Raises:
        L4SError: An accumulated probability is unknown (the log is not a simulated one); `explore` is no share.
    """
    if not 0.0 <= explore <= 1.0:
        raise L4SError(f"explore={explore}: give a share from 0 to 1")
    before = records["accumulated_probability_before"]
    if (before == BY_NAME["accumulated_probability_before"].high).any():
        raise L4SError("records: an accumulated probability is unknown: give a log of the simulator")
    prob = records["drop_probability"].astype(np.int64)
    hit = _hit(records, prob, np.where(prob == 0, 0, before.astype(np.int64) + prob))
    withheld = (records["status_flags"] & _ACTIVE == 0) | (records["burst_allowance"] > 0)
    may_mark = (records["ecn"] != NOT_ECT) & (prob < records["max_ecn_threshold"].astype(np.int64) << 18)
    marks = ~withheld & may_mark
    found = np.zeros((len(records), len(ACTIONS)))
    found[:, ENQUEUE] = 1.0 - hit
    found[:, DROP] = np.where(marks, 0.0, hit)
    found[:, MARK] = np.where(marks, hit, 0.0)
    return (1.0 - explore) * found + explore / len(ACTIONS)


def _hit(records: Records, prob: npt.NDArray[np.int64], accumulated: npt.NDArray[np.int64]) -> Floats:
    """Probability of a hit (T,), given the probability and the sum after this packet's step."""
    reference = records["qdelay_ref"].astype(np.int64)
    calm = (records["queue_delay_old"] < reference // 2) & (prob < MAX_PROB // 5)
    spared = calm | (records["length_in_bytes"] <= 1600) | (accumulated < DERANDOMISE_LOW)
    once = prob / _RANDOM
    drawn = np.where(records["queue_type"] == L4S, once, once * once)
    return np.where(spared, 0.0, np.where(accumulated >= DERANDOMISE_HIGH, 1.0, drawn))


def episode_probabilities(episode: Trajectory) -> Floats:
    """Probabilities of the decisions of a simulated episode, which is simulated again.

    Args:
        episode: Of a dataset that `l4s-gym datasets build` made, decided by `dualpi2_freebsd`; whole.

    Returns:
        Probabilities of enqueue, drop and mark (T, 3).

    Raises:
        L4SError: It is not such an episode, or the simulator does not give the same rows again.
    """
    about = episode.about
    if not {"scenario", "aqm", "explore", "seed", "seconds"} <= set(about) or str(about["aqm"]) != AQM:
        raise L4SError(f"episode of {episode.source!r}: was not simulated with {AQM}: its probabilities are not known")
    scenario = load(str(about["scenario"])).replace(horizon_s=float(about["seconds"]))
    if scenario.options.dualpi2_freebsd.quirks_off:
        raise L4SError(f"scenario {scenario.name!r}: switches quirks off: only the kernel's own decisions are known")
    explore = float(about["explore"])
    run = SimulatedRun(scenario, Behaviour(AQM, explore), int(about["seed"]))
    records = np.concatenate(list(run.records()))
    same = (
        len(records) == len(episode) + 1
        and np.array_equal(records["action"][:-1], episode.actions)
        and np.array_equal(records["time_us"], episode.extras["time_us"])
    )
    if not same:
        raise L4SError(f"episode of {episode.source!r}: the simulator gives other rows by now: build the dataset again")
    return action_probabilities(records[:-1], explore)
