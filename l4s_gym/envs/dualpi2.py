"""`L4S-DualPI2-v0`: each step decides what happens to one packet."""

from __future__ import annotations

from typing import Any, NoReturn, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from l4s_gym import REPLAY_ID, schema
from l4s_gym.envs.rendering import FPS, RenderMode, metadata
from l4s_gym.envs.simulated import SimulatedEnv, flag, whole
from l4s_gym.errors import L4SError
from l4s_gym.forms import FORMS, PACKET
from l4s_gym.rewards import DEFAULT, Reward
from l4s_gym.sim import layout, measure
from l4s_gym.sim.batch import Batch
from l4s_gym.sim.scenario import OptionTables, Scenarios, load_all

Observation = npt.NDArray[np.float32]


def observation_space() -> gym.spaces.Box:
    """Return the space of the eight features of `schema.OBSERVED`, scaled: Box(8,) float32 with finite bounds."""
    return FORMS[PACKET].spaces[0]


def check_interval(interval: int) -> int:
    """Check that a decision interval is a whole number, 1 or more."""
    return whole("decision_interval", interval, " of packets")


def in_kernel_units(obs: Observation) -> dict[str, int]:
    """Convert an observation (8,) to kernel units, by name."""
    return {n: round(value) for n, value in zip(schema.OBSERVED, schema.unscale_observation(obs), strict=True)}


def as_action(action: Any) -> int:
    """Convert an action of any integer type to an int, and check it."""
    if (isinstance(action, np.ndarray) and action.ndim > 0) or (action != 0 and action != 1 and action != 2):
        raise L4SError(f"action {action!r}: give 0 (enqueue), 1 (drop) or 2 (mark)")
    return int(action)


def refuse_arguments(environment: str, given: dict[str, Any]) -> NoReturn:
    """Raise the error for unknown or former arguments of an environment."""
    name = next(iter(given))
    if {"backend", "log", "replay_mode", "replay_column"} & given.keys():
        raise L4SError(
            f"{name}={given[name]!r}: {environment} only simulates; logged rows are an environment of their own: "
            f"gym.make('l4s_gym:{REPLAY_ID}', log=PATH, mode=..., column=...)"
        )
    raise TypeError(f"{environment}.__init__() got an unexpected keyword argument {name!r}")


class DualPI2Env(SimulatedEnv[Observation, int]):
    """
    ## Description

    A bottleneck router with the two queues of L4S (RFC 9330, RFC 9332): L for packets marked ECT(1) (or CE),
    C for all others. TCP senders share it in closed loop: what is done to their packets changes what they
    send next. At every packet's arrival the environment stops and asks for a decision. The queue discipline
    underneath (DualPI2 of the testbed's FreeBSD kernel by default) goes on updating its probabilities, but
    the action replaces its own decision for that packet.

    ## Action space

    `Discrete(3)`

    | action | meaning |
    |---|---|
    | 0 | enqueue the packet |
    | 1 | drop it |
    | 2 | mark it with CE and enqueue it; a Not-ECT packet cannot be marked and is dropped, as the kernel does |

    A full buffer drops the packet, whatever the action. `info["applied_action"]` tells what was done.

    ## Observation space

    `Box(8,) float32`, from the state *before* the decision; kernel units divided by fixed constants and
    clipped (`l4s_gym.schema`).

    | # | feature | unit | divided by | at most |
    |---|---|---|---|---|
    | 0 | queue_type: 0 C, 1 L | - | 1 | 1 |
    | 1 | burst_allowance: time left in which nothing is dropped | us | 150 000 | 10 |
    | 2 | drop_probability: base probability of the controller | 1/(2^31-1) | 2^31-1 | 1 |
    | 3 | current_queue_delay: sojourn time of the packet that left the queue last | us | 100 000 | 100 |
    | 4 | accumulated_probability: sum since the last hit, before this packet's step | 1/(2^31-1) | 8.5 (2^31-1) | 10 |
    | 5 | length_in_bytes of the queue | B | 150 000 | 1000 |
    | 6 | total_drops of the queue in the current control interval | packets | 10 | 100 |
    | 7 | packet_length | B | 1500 | 44 |

    With `info_record=True`, `info["record"]` has the raw integers by name.

    ## Rewards

    Integrals over the time since the last decision, so a return does not depend on the number of packets.

    - `fair` (default): seconds of link time used times the evenness E, minus 0.25 x the integral of each class's
      normalised delay, delay / (delay + reference) with references C 15 ms and L 1 ms. Over 60 s it is at most 60.
      E = exp(sum w_k ln x_k) / sum w_k x_k, in which x_k is the goodput per bulk flow of class k over the last second
      and w_k the class's share of these flows; it is 1 where only one class is present. So nothing is paid while a
      class is starved.
    - `balance`: the same without E. A policy that starves a class can earn more by it than a fair one.
    - `power`: seconds of link time used, each packet's share divided by (1 + its delay / reference).
    - `l4s_llm`: packet_length / (current_queue_delay + 1000) of the packet that was decided, the paper's code.
    - Weights of the components, each in seconds: `{"used": 1.0, "evenness": 0.0, "delay_c": -0.25, "delay_l": -0.25}` is
      `balance`. `used` is the link time used, `evenness` the same with each packet's share times E, `delay_c` and
      `delay_l` are the integrals of the normalised delays. What is left out weighs 0.

    ## Starting state

    The queues are empty; each flow starts at a random time (`stagger_s` of its source), and the fields that the
    scenario randomises are drawn. If several scenarios were given, one is drawn, or chosen by
    `reset(options={"scenario": NAME})`; `info["scenario"]` tells which. `reset(seed=)` fixes everything random.

    ## Episode end

    `terminated` when all flows are finite transfers and all have finished. `truncated` at the scenario's horizon
    (60 s by default). `info["statistics"]` then says what happened after the warm-up.

    ## Statistics

    Of the episode without its start: `warmup_s` of the scenario (5 s by default), at most half of the horizon. An
    episode that ends earlier is counted whole.

    | key | meaning |
    |---|---|
    | `duration_s` | time that was measured |
    | `utilisation` | share of the link's capacity that was used |
    | `flows` | names of the flows: the kind and a number, `cubic0`, `cubic1`, `prague0` |
    | `goodput_mbps` | payload that arrived, each segment once, Mbit/s, in the order of `flows` |
    | `goodput_ratio` | mean goodput of an L4S flow divided by that of a Classic flow; None without both |
    | `jain` | Jain's fairness index of the goodputs |
    | `delay_ms` | for each class, `C` and `L`: `mean`, `p50`, `p95`, `p99`, `max` of the sojourn times |
    | `mark_rate`, `drop_rate` | shares of the packets that arrived at the queues |
    | `classes` | for each class: `offered`, `dropped`, `dropped_ect`, `marked` packets, and both shares |
    | `components` | components of the reward over the whole episode, its start included, s |
    | `components_per_s` | the same per simulated second |

    ## Arguments

    | argument | meaning |
    |---|---|
    | `scenario` | name (`l4s-gym scenarios`), path of a TOML file, dict of fields, `suite:train`, `random:train` (64 drawn), or a list |
    | `horizon_s` | simulated seconds until an episode is truncated; None: the scenario's own |
    | `aqm` | queue discipline below the agent; None: the scenario's own |
    | `options` | of disciplines in place of the scenario's: `{"dualpi2_rfc9332": {"target_ms": 5}}` |
    | `decision_interval` | the agent decides every n-th packet (1, 10, 100), the discipline the others |
    | `reward` | `fair`, `balance`, `power`, `l4s_llm`, or weights of the components |
    | `render_mode` | None, `ansi`, `rgb_array`, `rgb_array_list`, `human` (needs pygame: `pip install 'l4s-gym[render]'`) |
    | `render_fps` | pictures for each simulated second |
    | `info_record` | put the raw record into `info` |

    ## Pictures

    A step is a packet, so `rgb_array` draws a new picture only after 1 / `render_fps` of simulated time, and returns
    the last one (read-only) until then. `rgb_array_list` returns the pictures since the last `render()`: for
    videos in real time, `gymnasium.utils.save_video.save_video(env.render(), folder, fps=env.metadata["render_fps"])`.
    `human` shows them in a window, in real time or slower.

    ## Copies and snapshots

    `copy.deepcopy` and `pickle` give an independent environment that continues as this one would, in any process.
    For planning, `snapshot = env.unwrapped.clone_state()` and `env.unwrapped.restore_state(snapshot)` are faster.

    ## Version history

    - v0: first version.
    """

    metadata: dict[str, Any] = metadata()
    _values = ("_np_random", "_np_random_seed", "_ready", "_over")

    def __init__(
        self,
        scenario: Scenarios = "l4s-llm-testbed",
        aqm: str | None = None,
        decision_interval: int = 1,
        reward: Reward = DEFAULT,
        render_mode: RenderMode | None = None,
        info_record: bool = False,
        render_fps: float = FPS,
        horizon_s: float | None = None,
        options: OptionTables | None = None,
        **unexpected: Any,
    ) -> None:
        if unexpected:
            refuse_arguments(type(self).__name__, unexpected)
        self.observation_space = observation_space()
        self.action_space = gym.spaces.Discrete(3)  # type: ignore[assignment]  # its elements are int64
        interval = check_interval(decision_interval)
        self._info_record = flag("info_record", info_record)
        self._ready = False
        self._over = False
        scenarios = load_all(scenario, horizon_s, options)
        self.batch = Batch(scenarios, aqm=aqm, decider=layout.AGENT, interval=interval, reward=reward)
        self._watch(render_mode, render_fps)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; `seed` fixes everything random."""
        self._start(seed, options)
        self._ready = True
        self._over = False
        batch = self.batch
        batch.advance_one()
        batch.leave_warmup()
        batch.reward[0] = 0.0
        if self._view is not None:
            self._view.start()
        info: dict[str, Any] = {"applied_action": batch.applied_view[0], "scenario": self.scenario.name}
        if self._info_record:
            info["record"] = self.record()
        return batch.first_obs.copy(), info

    def step(
        self, action: int | np.integer | npt.NDArray[np.integer]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Apply the action to the waiting packet, and simulate until the next packet that needs a decision."""
        if action.__class__ is not int or not 0 <= action <= 2:
            action = as_action(action)
        if not self._ready:
            what = "the episode has ended" if self._over else "the environment has not been started"
            raise gym.error.ResetNeeded(f"step: {what}; call reset() first")
        batch = self.batch
        batch.action_view[0] = action
        status = batch.step_one(batch.address)
        if status == layout.STOPPED:
            batch.leave_warmup()
            status = int(batch.status[0])
        info: dict[str, Any] = {"applied_action": batch.applied_view[0]}
        if self._info_record:
            info["record"] = self.record()
        if self._view is not None:
            self._view.note(action)
        if status != layout.DECISION:
            batch.check_status()
            self._ready, self._over = False, True
            info["statistics"] = measure.summary(batch, 0)
        return (
            batch.first_obs.copy(),
            batch.reward_view[0],
            status == layout.TERMINATED,
            status == layout.TRUNCATED,
            info,
        )

    def record(self) -> dict[str, int]:
        """Return the observed features of the waiting packet, in kernel units."""
        return in_kernel_units(self.batch.first_obs)
