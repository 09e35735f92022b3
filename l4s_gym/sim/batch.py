"""A batch of environments: it owns the arrays, starts episodes, calls the compiled engine, and reads results."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from numba import int64

from l4s_gym import __version__, rewards
from l4s_gym.errors import L4SError
from l4s_gym.schema import RECORD
from l4s_gym.sim import congestion, disciplines, engine, layout, link, setup, traces
from l4s_gym.sim.discipline import Discipline
from l4s_gym.sim.jit import direct, plain
from l4s_gym.sim.layout import NEVER
from l4s_gym.sim.policy import Policy
from l4s_gym.sim.scenario import Scenario
from l4s_gym.sim.workers import Workers

_ENV_COUNTERS = ("served_bytes", "capacity_bytes", "updates", "update_delay_ns", "decisions")
_QUEUE_COUNTERS = (
    *("offered", "offered_bytes", "dropped", "dropped_ect", "marked"),
    *("left", "left_delay_ns", "max_delay_ns"),
)
_FLOW_COUNTERS = (
    *("received", "goodput_bytes", "packets", "resent", "timeouts", "drops", "marks", "reductions"),
    *("rtt_sum_ns", "rtt_count", "window_sum", "window_count", "completed", "completion_s"),
)
_WORD = (1 << 64) - 1
PARALLEL_FROM = 128
"""Batches of this size or more may use several threads; smaller ones are faster without."""
_POOL_TEXT = (
    "the packet pool is empty: more packets are under way than path and buffer can hold; "
    "set receive_window or a smaller buffer in the scenario"
)


class Outputs(NamedTuple):
    """Arrays that a batch and its caller exchange at each step; `Batch` describes them."""

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float64]
    status: npt.NDArray[np.int64]
    applied: npt.NDArray[np.int64]

    @classmethod
    def of(cls, n: int) -> Outputs:
        """Allocate the arrays for `n` environments."""
        action, status, applied = (np.zeros(n, np.int64) for _ in range(3))
        return cls(np.zeros((n, 8), np.float32), action, np.zeros(n), status, applied)

    def part(self, first: int, last: int) -> Outputs:
        """Return the part of environments [first, last), in the same memory."""
        own = slice(first, last)
        return Outputs(self.obs[own], self.action[own], self.reward[own], self.status[own], self.applied[own])


@dataclass
class _Prepared:
    """Data that a batch derives from one of its scenarios."""

    scenario: Scenario
    aqm: str
    discipline: Discipline
    size: setup.Sizes
    trace: npt.NDArray[np.int64]
    profile: traces.Trace | traces.Schedule | None
    hooks: npt.NDArray[np.int64]
    template: setup.Template | None = None

    def content(self) -> bytes:
        """Return all that decides what is simulated, including a user's own code."""
        content: bytes = msgspec.json.encode(self.scenario, order="deterministic") + self.trace.tobytes()
        return content + self.scenario.own_code(self.aqm)


def _prepare(scenario: Scenario, aqm: str | None) -> _Prepared:
    aqm = aqm or scenario.aqm
    discipline = disciplines.get(aqm)
    profile = traces.load(scenario.link.trace) if scenario.link.kind == "trace" else None
    hooks = disciplines.addresses(discipline)
    return _Prepared(scenario, aqm, discipline, setup.sizes(scenario), setup.trace_array(scenario), profile, hooks)


class Trajectories(NamedTuple):
    """T decisions of n environments each, as `Batch.rollout` writes them; C-contiguous.

    Attributes:
        obs: The observations decided upon (T, n, 8) float32.
        action: (T, n) int64.
        probabilities: Probabilities of the three actions that the decision rule used (T, n, 3) float64.
        reward: From the decision to the next one, or to the end of the episode (T, n) float64.
        end: `layout.TERMINATED` or `TRUNCATED` if the episode ended before the next decision, else 0; (T, n) int8.
    """

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]
    end: npt.NDArray[np.int8]

    @classmethod
    def of(cls, steps: int, n: int) -> Trajectories:
        """Allocate the arrays for `steps` decisions in each of `n` environments."""
        obs, action = np.zeros((steps, n, 8), np.float32), np.zeros((steps, n), np.int64)
        return cls(obs, action, np.zeros((steps, n, 3)), np.zeros((steps, n)), np.zeros((steps, n), np.int8))


class Batch:
    """``n`` environments in contiguous arrays, each of one scenario at a time.

    A copy or a pickle is independent and continues as the original would: it has its own memory, and its records
    hold addresses in that memory.

    Attributes:
        env: (n,) `layout.ENV`.
        queues: (n, Q) `layout.QUEUE`; Q is 2, and more where each flow has a queue.
        queue: (n, 2) the first two queues: C and L, or the only one; they also hold the counts of the classes C and L.
        which: (n,) int64, number of each environment's scenario.
        flow: (n, F) `layout.FLOW`.
        obs: (n, 8) float32, observation of the packet that waits for a decision.
        reward: (n,) float64, reward since the last decision.
        status: (n,) int64, return status of each environment (`layout.DECISION`, ...).
        applied: (n,) int64, action applied to the packet decided last.
        action: (n,) int64, to be written before `advance`.
        rule: (n,) `layout.RULE`, state of the policy's decision rule; `advance` returns `layout.DECISION` after
            the decisions that are `left` in it.
        hist: (n, 2, HIST_BINS) int32, sojourn histograms of the classes.
        log_sojourns: (n, log_rows) int64, sojourn of each logged packet, ns, or `layout.WAITING` or `PUSHED_OUT`; copy
            it before `drain` takes the rows.
        first_env: View of `env[0]`, made once for code that reads it at every step.
        first_obs: View of `obs[0]`, in the same way.
        action_view: `action` as a memory view, to which a write costs a quarter of one to an array.
        reward_view: `reward`, in the same way.
        applied_view: `applied`, in the same way.
        step_one: The engine's `advance_one` of an address: a fast `advance_one` that keeps the GIL.
    """

    def __init__(
        self,
        scenario: Scenario | Sequence[Scenario],
        n: int = 1,
        *,
        aqm: str | None = None,
        decider: int = layout.NATIVE,
        interval: int = 1,
        reward: rewards.Reward = rewards.DEFAULT,
        log_rows: int = 0,
        explore: float = 0.0,
        num_threads: int | None = None,
        policy: Policy | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        """Allocate the arrays.

        Args:
            scenario: What to simulate; `reset` draws or takes one of several; each episode is as with that one alone.
            n: Number of environments.
            aqm: Discipline; None: each scenario's.
            decider: `layout.NATIVE`, `AGENT`, `POLICY` or `PROBABILITY`.
            interval: Ask the agent at each interval-th packet; the discipline decides about the others.
            reward: Name or weights, see `l4s_gym.rewards`.
            log_rows: Rows of the decision log of each environment; 0: no log.
            explore: Share of the packets for which an action is drawn at random instead of the discipline's decision.
            num_threads: Most threads that run the batch; None: one per core, from `PARALLEL_FROM` environments on.
            policy: The policy that decides in the engine, if decider is `POLICY`; see `start_policy`.
            outputs: Memory of `obs`, `action`, `reward`, `status` and `applied`; None: the batch's own.
        """
        several = (scenario,) if isinstance(scenario, Scenario) else scenario
        self._prepared = [_prepare(each, aqm) for each in several]
        self.n = n
        self.decider = decider
        self.interval = interval
        if not 0.0 <= explore <= 1.0:
            raise L4SError(f"explore={explore}: give a share from 0 to 1")
        self.explore = explore
        if num_threads is not None and (not isinstance(num_threads, int | np.integer) or num_threads < 1):
            raise L4SError(f"num_threads={num_threads!r}: give a whole number, 1 or more, or None")
        reward = rewards.canonical(reward)
        self._reward_kind, self._weights = rewards.engine_form(reward)
        self._options = {
            **{"n": n, "aqm": aqm, "decider": decider, "interval": interval, "reward": reward},
            **{"log_rows": log_rows, "explore": explore, "num_threads": num_threads, "policy": policy},
        }
        if (decider == layout.POLICY) != (policy is not None):
            raise L4SError("policy: give one where decider=layout.POLICY, and only there")
        size = setup.largest([each.size for each in self._prepared])
        own = [setup.own_sizes(each.discipline, each.size.flows) for each in self._prepared]
        queues, env_bytes, queue_bytes = (max(numbers) for numbers in zip(*own, strict=True))
        parts = layout.arena(
            n,
            {
                "env": ((), layout.ENV),
                "queue": ((queues,), layout.QUEUE),
                "own": ((env_bytes,), np.dtype(np.uint8)),
                "own_queue": ((queue_bytes,), np.dtype(np.uint8)),
                "tree": ((2 * size.leaves,), np.dtype(np.int64)),
                "flow": ((size.flows,), layout.FLOW),
                "score": ((size.flows, size.window), np.dtype(np.uint8)),
                "hist": ((2, layout.HIST_BINS), np.dtype(np.int32)),
                "packet": ((size.packets,), layout.PACKET),
                "rule": ((), layout.RULE),
            },
        )
        self.env, self.queues, self.flow = parts["env"], parts["queue"], parts["flow"]
        self.queue = self.queues[:, :2]
        self._own, self._own_queue = parts["own"], parts["own_queue"]
        self.packet, self.score, self.tree, self.hist = parts["packet"], parts["score"], parts["tree"], parts["hist"]
        self.rule = parts["rule"]
        self.log = np.zeros((n, max(log_rows, 1)), RECORD)
        self.log_rewards = np.zeros((n, max(log_rows, 1)))
        self.log_sojourns = np.zeros((n, max(log_rows, 1)), np.int64)
        self._log_rows = log_rows
        self._trace_rows = np.array([each.trace.ctypes.data for each in self._prepared])
        self._hooks = np.array([each.hooks.ctypes.data for each in self._prepared])
        laws = sorted({spec for each in several for spec in each.own_laws})
        self._laws = np.array([0, *map(congestion.law_at, laws)], np.int64)
        self.which = np.zeros(n, np.int64)
        self.obs, self.action, self.reward, self.status, self.applied = outputs or Outputs.of(n)
        rows = {
            "queue_at": self.queues, "flow_at": self.flow, "packet_at": self.packet, "score_at": self.score,
            "own_at": self._own, "own_queue_at": self._own_queue,
            "tree_at": self.tree, "hist_at": self.hist, "log_at": self.log, "rewards_at": self.log_rewards,
            "sojourns_at": self.log_sojourns,
            "obs_at": self.obs, "applied_at": self.applied, "action_at": self.action,
            "reward_at": self.reward, "status_at": self.status, "rule_at": self.rule,
        }  # fmt: skip
        self._memory = (parts, rows, self._prepared)
        outs = dict(zip(Outputs._fields, (self.obs, self.action, self.reward, self.status, self.applied), strict=True))
        changing: dict[str, Any] = {**parts, **outs, "log": self.log, "log_rewards": self.log_rewards}
        changing |= {"which": self.which, "log_sojourns": self.log_sojourns}
        # As bytes: NumPy copies records field by field, which is a hundred times slower.
        self._bytes = {name: array[..., None].view(np.uint8) for name, array in changing.items()}
        self.first_env, self.first_obs = self.env[0], self.obs[0]
        self.action_view, self.reward_view, self.applied_view = self.action.data, self.reward.data, self.applied.data
        self._places = {name: a.ctypes.data + a.strides[0] * np.arange(n) for name, a in rows.items()}
        self.address = int(self.env.ctypes.data)
        self.stride = int(self.env.strides[0])
        if policy is not None:
            self.decide_by(policy)
        self._threads = num_threads
        self._workers: Workers | None = None
        compile_engine()
        self.step_one = direct(engine.advance_one, int64)

    def scenario_of(self, index: int) -> Scenario:
        """Return the scenario of an environment's episode, before random draws."""
        return self._prepared[self.which[index]].scenario

    def aqm_of(self, index: int) -> str:
        """Return the name of the discipline of an environment."""
        return self._prepared[self.which[index]].aqm

    def discipline_of(self, index: int) -> Discipline:
        """Return the discipline of an environment."""
        return self._prepared[self.which[index]].discipline

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The scenarios that an episode may have."""
        return tuple(each.scenario for each in self._prepared)

    @property
    def own(self) -> npt.NDArray[np.void]:
        """The own records of the first scenario's discipline (n,), `discipline.records.env`."""
        kind = self._prepared[0].discipline.records.env
        return self._own[:, : kind.itemsize].view(kind)[:, 0]

    @property
    def own_queue(self) -> npt.NDArray[np.void]:
        """Records of the queues (n, Q) of the first scenario's discipline, `discipline.records.queue`."""
        first = self._prepared[0]
        size = setup.own_sizes(first.discipline, first.size.flows)[2]
        return self._own_queue[:, :size].view(first.discipline.records.queue)

    def reset(self, index: int, rng: np.random.Generator, which: int | None = None) -> None:
        """Start an episode of environment `index`; all random numbers in it come from `rng`.

        Args:
            index: Number of the environment.
            rng: Its generator.
            which: Number of the scenario; None: drawn, if there are several.
        """
        if which is None:
            which = int(rng.integers(len(self._prepared))) if len(self._prepared) > 1 else 0
        self.which[index] = which
        chosen = self._prepared[which]
        size = chosen.size
        if chosen.scenario.randomise or chosen.template is None:
            sampled = chosen.scenario.sample(rng)
            chosen.template = setup.build(sampled, chosen.aqm, size.flows)
            env = chosen.template.env
            # A drawn 0 ("as large as fits") may ask for more than the scoreboard holds.
            rwnd = chosen.template.flow["rwnd"]
            np.minimum(rwnd, size.window - 1, out=rwnd)
            env["decider"] = self.decider
            env["interval"] = self.interval
            env["until_decision"] = 1
            env["reward_kind"], env["weights"] = self._reward_kind, self._weights
            env["log_capacity"] = self._log_rows
            env["explore"] = self.explore
            env["trace_row"] = self._trace_rows[which]
            env["hooks_at"] = self._hooks[which]
            env["pool"] = size.packets
            env["window"] = size.window
            env["leaves"] = size.leaves
        env, queue, own, own_queue, flow, stagger = chosen.template
        self.env[index] = env[0]
        for name, places in self._places.items():
            self.env[name][index] = places[index]
        self.env["rng"][index], self.env["host_rng"][index] = rng.integers(1 << 64, size=2, dtype=np.uint64)
        for rows, start in ((self.queues, queue), (self.flow, flow)):
            rows[index, : len(start)] = start
            rows[index, len(start) :] = np.zeros((), rows.dtype)
        for memory, record in ((self._own, own), (self._own_queue, own_queue)):
            memory[index, : record.nbytes] = record.view(np.uint8)
        self.score[index] = 0
        self.hist[index] = 0
        self.action[index] = 0
        self.status[index] = layout.RUNNING
        # If flows start together, chance decides which is first, not the order of the file.
        starts = flow["app_at"] + (rng.random(len(flow)) * (stagger + flow["jitter_ns"])).astype(np.int64)
        starts += rng.permutation(len(flow))
        self.flow["app_at"][index, : size.flows] = starts
        self.tree[index] = NEVER
        leaf = size.leaves
        tree = self.tree[index, : 2 * leaf]
        slots = leaf + layout.SLOT_FLOWS + 2 * np.arange(len(flow)) + 1
        tree[slots] = np.minimum(starts, NEVER)
        if not chosen.discipline.queue_timers:
            tree[leaf + layout.SLOT_UPDATE_C] = env["tupdate_us"][0] * 1000
        if env["link"][0] != layout.TRACE and env["trace_len"][0] > 0:
            tree[leaf + layout.SLOT_RATE] = chosen.trace[0]
        width = leaf
        while width > 1:
            width //= 2
            tree[width : 2 * width] = np.minimum(tree[2 * width : 4 * width : 2], tree[2 * width + 1 : 4 * width : 2])

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Identity of a state: equal for all batches that can continue from each other's states."""
        digests = [hashlib.sha256(each.content()).hexdigest()[:12] for each in self._prepared]
        names = [f"{each.scenario.name} ({digest})" for each, digest in zip(self._prepared, digests, strict=True)]
        return {
            **_same_engine(),
            "scenario": ", ".join(names),
            **{name: str(value) for name, value in self._options.items() if name != "num_threads"},
            "aqm": ", ".join(each.aqm for each in self._prepared),
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of all that an episode changes, without addresses: it fits any batch of the same `identity`."""
        used = int(self.env["fresh"].max())  # later packets have never been used
        state = {name: (part[:, :used] if name == "packet" else part).copy() for name, part in self._bytes.items()}
        env = state["env"].view(layout.ENV)
        for name in (*self._places, "trace_row", "hooks_at"):
            env[name] = 0
        laws = state["flow"].view(layout.FLOW)["law_at"]
        for k, address in enumerate(self._laws):
            laws[laws == address] = k
        return state

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go back to a `state` of a batch of the same `identity`, which the caller has checked."""
        for name, part in state.items():
            (self._bytes[name][:, : part.shape[1]] if name == "packet" else self._bytes[name])[:] = part
        for name, places in self._places.items():
            self.env[name] = places
        self.env["trace_row"] = self._trace_rows[self.which]
        self.env["hooks_at"] = self._hooks[self.which]
        self.flow["law_at"] = self._laws[self.flow["law_at"]]

    def __getstate__(self) -> dict[str, Any]:
        """Return scenario, options and state; threads and addresses are created again."""
        return {
            "identity": self.identity,
            "scenario": self.scenarios,
            "options": self._options,
            "state": self.state(),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Restore a state in new memory."""
        check_identity("the pickled simulation", saved["identity"], _same_engine())
        self.__init__(saved["scenario"], **saved["options"])  # type: ignore[misc]
        check_identity("the pickled simulation", saved["identity"], self.identity)
        self.restore(saved["state"])

    def stop_at(self, index: int, time_ns: int) -> None:
        """Make environment `index` return `layout.STOPPED` at a time."""
        tree = self.tree[index]
        node = int(self.env["leaves"][index]) + layout.SLOT_STOP
        tree[node] = time_ns
        while node > 1:
            node //= 2
            tree[node] = min(tree[2 * node], tree[2 * node + 1])

    def decide_by(self, policy: Policy) -> None:
        """Use another policy from now on, such as one with the next weights of a training."""
        self._options["policy"] = policy  # keeps its memory
        self.__dict__.pop("identity", None)
        self._places["policy_at"] = self.env["policy_at"] = np.full(self.n, policy.address)

    def start_policy(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start the policy's decision rule: environment i draws what `rngs[i]` would draw next.

        A restarted episode goes on drawing: the rule keeps its state.
        """
        self.rule[:] = np.zeros((), layout.RULE)
        for rule, rng in zip(self.rule, rngs, strict=True):
            state = rng.bit_generator.state
            if state["bit_generator"] != "PCG64":
                raise L4SError(f"start_policy: generator {state['bit_generator']}: give one of np.random.default_rng")
            numbers = state["state"]["state"], state["state"]["inc"]
            rule["generator"] = [half for number in numbers for half in (number & _WORD, number >> 64)]

    def rollout(
        self, out: Trajectories, rngs: Sequence[np.random.Generator], *, executor: Executor | None = None
    ) -> None:
        """Let the policy take T decisions in each environment, and write them to arrays.

        An episode that ends is restarted at once, as in the vector environment's mode `same_step`: row t + 1 is then
        the first one of the next episode. Afterwards `obs` holds the observations of the next decision, and the next
        call continues from there. The first call starts episodes that `reset` has not started.

        Args:
            out: Arrays to write to; `Trajectories.of` makes them.
            rngs: Generator of each environment's episodes, as of `reset`.
            executor: Threads that run environments in parallel; None: only the caller's.

        Raises:
            L4SError: The batch has no policy, or it keeps a log; `out` does not fit.
        """
        steps = len(out.action)
        if self.decider != layout.POLICY or self._log_rows:
            raise L4SError("rollout: make the batch with decider=layout.POLICY, a policy, and log_rows=0")
        arrays = out._asdict()
        for name, wanted in Trajectories.of(0, self.n)._asdict().items():
            given, shape, kind = arrays[name], (steps, *wanted.shape[1:]), wanted.dtype
            if given.shape != shape or given.dtype != kind or not given.flags.c_contiguous:
                raise L4SError(f"rollout: {name} {given.dtype} {given.shape}: give {kind} {shape}, C-contiguous")
        del arrays["end"]  # written here, not by the engine
        out.reward[:], out.end[:] = 0.0, 0
        self.rule["left"], self.rule["width"], self.rule["step"] = steps, self.n, 0
        begin = np.flatnonzero(self.env["horizon_ns"] == 0)
        try:
            for name, given in arrays.items():
                self.rule[f"{name}_at"] = given.ctypes.data + np.arange(self.n) * given.strides[1]
            while True:
                for i in begin.tolist():
                    self.reset(i, rngs[i])
                run_on([self], executor)
                begin = np.flatnonzero((self.status == layout.TERMINATED) | (self.status == layout.TRUNCATED))
                if not begin.size:
                    return
                last = self.rule["step"][begin] - 1
                if (last < 0).any() or out.end[last, begin].any():
                    names = [self.scenario_of(i).name for i in begin.tolist()]
                    raise L4SError(f"rollout: an episode of scenario {names[0]!r} ended without a decision")
                out.end[last, begin] = self.status[begin]
        finally:
            for name in ("step", "width", "left", *(f"{name}_at" for name in arrays)):
                self.rule[name] = 0

    def advance(self) -> int:
        """Run every environment on, on all cores if the batch is large enough; return the highest status."""
        self.advance_unchecked()
        return self.check_status()

    def advance_unchecked(self) -> None:
        """Run as `advance`; the caller checks that no environment ran out of packets."""
        if self._threads == 1 or (self._threads is None and self.n < PARALLEL_FROM):
            engine.advance(self.address, self.stride, 0, self.n, 0)
        else:
            if self._workers is None or self._workers.pid != os.getpid():
                self._workers = Workers(self.address, self.stride, self.n, self._memory, self._threads)
            self._workers.run()

    def __del__(self) -> None:
        """End the threads that served this batch."""
        workers = getattr(self, "_workers", None)
        if workers is not None and workers.pid == os.getpid():
            workers.stop()

    def check_status(self) -> int:
        """Raise an error if an environment ran out of packets; return the highest status."""
        highest = engine.highest(self.status)
        if highest == layout.POOL_EMPTY:
            raise L4SError(f"scenario {self.scenario_of(int(self.status.argmax())).name!r}: {_POOL_TEXT}")
        return highest

    def advance_one(self) -> int:
        """Run the only environment on; return its status."""
        engine.advance(self.address, self.stride, 0, 1, 0)
        self.check_status()
        return int(self.status[0])

    def drain_log(self, index: int, *, everything: bool = False) -> npt.NDArray[np.void]:
        """Return the records of `drain`, with its arguments: (T,) `schema.RECORD`."""
        return self.drain(index, everything=everything)[0]

    def drain(self, index: int, *, everything: bool = False) -> tuple[npt.NDArray[np.void], npt.NDArray[np.float64]]:
        """Take finished rows from the log of an environment.

        Disciplines that decide at dequeue finish a row when its packet leaves; rows of packets that are still
        queued stay, unless `everything` is set.

        Returns:
            Records (T,) `schema.RECORD`, and the reward from the start of the episode to each arrival (T,). The
            reward to the end of the episode is `env["taken"]`.
        """
        env = self.env[index]
        rows = int(env["log_rows"])
        keep = rows
        queued: list[int] = []
        if not everything:
            packets = self.packet[index]
            for head in self.queues["head"][index]:
                at = int(head)
                while at >= 0:
                    queued.append(at)
                    at = int(packets["next"][at])
            records = packets["record"][queued]
            records = records[records >= 0]
            keep = int(records.min()) if len(records) else rows
        taken = self.log[index, :keep].copy(), self.log_rewards[index, :keep].copy()
        rest = rows - keep
        if rest == self._log_rows and rest > 0:
            raise L4SError(f"the log holds {rest} rows and as many packets are queued; give it more rows")
        for rows_of in (self.log[index], self.log_rewards[index], self.log_sojourns[index]):
            rows_of[:rest] = rows_of[keep:rows].copy()
        at_rows = self.packet["record"][index]
        at_rows[queued] = np.where(at_rows[queued] >= 0, at_rows[queued] - keep, -1)
        env["log_rows"] = rest
        return taken

    def stop_after_warmup(self, index: int) -> None:
        """Make environment `index`, which was just reset, return with `layout.STOPPED` at the end of its warm-up."""
        self.stop_at(index, self.warmup_ns(index))

    def warmup_ns(self, index: int) -> int:
        """Return the length of the warm-up, ns: `warmup_s` of the scenario, at most half of the episode."""
        scenario = self.scenario_of(index)
        return round(min(scenario.warmup_s, scenario.horizon_s / 2) * 1e9)

    def leave_warmup(self) -> int:
        """Run as `advance`, after resetting the counters of environments that stopped at the end of their warm-up."""
        for i in np.flatnonzero(self.status == layout.STOPPED).tolist():
            self.reset_counters(i)
            earned = self.reward[i]
            engine.advance(self.address, self.stride, i, i + 1, 0)
            self.reward[i] += earned
        return self.check_status()

    def reset_counters(self, index: int) -> None:
        """Restart the measurement (after the warm-up); conservation counters and state stay."""
        env = self.env[index]
        env["ahead_bytes"] = self._ahead_bytes(index)
        env["since_ns"] = env["now_ns"]
        env["capacity_ns"] = self._unused_ns(index)
        for rows, names in ((self.env, _ENV_COUNTERS), (self.queue, _QUEUE_COUNTERS), (self.flow, _FLOW_COUNTERS)):
            for name in names:
                rows[name][index] = 0
        self.hist[index] = 0

    def _ahead_bytes(self, index: int) -> float:
        """Return the bytes that have left the queue but not yet crossed the link."""
        return float(plain(link.ahead_bytes)(self.env[index]))

    def _unused_ns(self, index: int) -> int:
        """Return the time now, or just after it if the delivery opportunity of this nanosecond has been used."""
        env = self.env[index]
        return int(env["now_ns"]) + int(env["link"] == layout.TRACE and env["used_ns"] == env["now_ns"])

    def base_probability(self, index: int) -> float:
        """Return the base probability of the discipline, 0 to 1, for the queue with the larger one."""
        return float(disciplines.shown_probability(self.address + index * self.stride))

    def queued(self, index: int, what: str) -> npt.NDArray[np.int64]:
        """Return what is queued in C and L, `packets` or `bytes`, (2,); without these queues all counts as C."""
        if self.discipline_of(index).dual:
            return np.asarray(self.queue[what][index])
        return np.array([self.env[what][index], 0])

    def components(self, index: int) -> dict[str, float]:
        """The components of the reward (`l4s_gym.rewards.COMPONENTS`) since the start of the episode, s."""
        return dict(zip(layout.COMPONENTS, self.env["totals"][index].tolist(), strict=True))

    def carried_bytes(self, index: int) -> float:
        """Return the bytes carried by the link since the counters were reset; at both ends, packets count in part."""
        env = self.env[index]
        return float(plain(link.carried_bytes)(env, self._ahead_bytes(index)))

    def capacity_bytes(self, index: int) -> float:
        """Return the bytes that the link could have carried since the counters were reset."""
        env = self.env[index]
        profile = self._prepared[self.which[index]].profile
        if isinstance(profile, traces.Trace):
            used = profile.opportunities_in(int(env["capacity_ns"]), self._unused_ns(index))
            return used * float(link.OPPORTUNITY_BYTES)
        rest = (env["now_ns"] - env["capacity_ns"]) * 1e-9 * env["rate_bps"] / 8.0
        return float(env["capacity_bytes"] + rest)


def run_on(batches: Sequence[Batch], executor: Executor | None = None) -> None:
    """Run every environment of some batches on, where this takes long: a thread takes one batch at a time."""
    jobs = [(batch.address, batch.stride, i, i + 1, 0) for batch in batches for i in range(batch.n)]
    for _ in map(_advance, jobs) if executor is None else executor.map(_advance, jobs):
        pass
    for batch in batches:
        batch.check_status()


def _advance(job: tuple[int, int, int, int, int]) -> None:
    engine.advance(*job)


@functools.cache
def _same_engine() -> dict[str, str]:
    """Return the version of the package, and of the memory layout."""
    records = (layout.ENV, layout.QUEUE, layout.FLOW, layout.PACKET, layout.RULE, RECORD)
    content = repr([record.descr for record in records]).encode()
    return {"version": __version__, "layout": hashlib.sha256(content).hexdigest()[:12]}


def check_identity(what: str, theirs: dict[str, str], ours: dict[str, str]) -> None:
    """Refuse a state that does not fit.

    Args:
        what: Name of the state in the error.
        theirs: `Batch.identity` of where it was made, or that of an environment.
        ours: The identity that it must match.

    Raises:
        L4SError: They differ.
    """
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise L4SError(
                f"{what}: made with {name} {theirs.get(name)}, here it is {value}: "
                "use it with the arguments and the version of l4s-gym that it was made with"
            )


def compile_engine() -> None:
    """Compile the engine, or load it from the cache; print a note to stderr if this takes a while."""
    if getattr(engine.advance_one, "signatures", True):
        return
    if not engine.is_kept():
        print("l4s-gym: compiling the simulator (once after install, up to a minute) ...", file=sys.stderr, flush=True)
    collects = gc.isenabled()
    gc.disable()  # the compiler makes much garbage and frees it by itself; this saves a tenth of the time
    try:
        engine.advance(0, 0, 0, 0, 0)
    finally:
        if collects:
            gc.enable()
