"""A batch of environments: owns the arrays, starts episodes, calls the compiled engine, reads results."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from l4s_gym import __version__
from l4s_gym.compiled import is_kept
from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import RECORD
from l4s_gym.sim import engine, layout, setup, traces
from l4s_gym.sim.layout import NEVER
from l4s_gym.sim.link import OPPORTUNITY_BYTES
from l4s_gym.sim.policy import Policy
from l4s_gym.sim.scenario import Scenario

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
"""Batches from this size on use two threads or more; smaller ones are faster without."""
_POOL_TEXT = (
    "the packet pool is empty: more packets are under way than path and buffer can hold; "
    "set receive_window or a smaller buffer in the scenario"
)


class Outputs(NamedTuple):
    """What a batch and its caller exchange at each step; `Batch` describes them."""

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.int64]
    reward: npt.NDArray[np.float64]
    status: npt.NDArray[np.int64]
    applied: npt.NDArray[np.int64]

    @classmethod
    def of(cls, n: int) -> Outputs:
        """For `n` environments."""
        action, status, applied = (np.zeros(n, np.int64) for _ in range(3))
        return cls(np.zeros((n, 8), np.float32), action, np.zeros(n), status, applied)

    def part(self, first: int, last: int) -> Outputs:
        """Those of environments [first, last), in the same memory."""
        own = slice(first, last)
        return Outputs(self.obs[own], self.action[own], self.reward[own], self.status[own], self.applied[own])


class Trajectories(NamedTuple):
    """T decisions of n environments each, as `Batch.rollout` writes them; C-contiguous.

    Attributes:
        obs: What was decided upon (T, n, 8) float32.
        action: (T, n) int64.
        probabilities: Of the three actions, which the decision rule was given (T, n, 3) float64.
        reward: From the decision to the next one, or to the end of the episode (T, n) float64.
        end: `layout.TERMINATED` or `TRUNCATED` where the episode ended before another decision, else 0; (T, n) int8.
    """

    obs: npt.NDArray[np.float32]
    action: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    reward: npt.NDArray[np.float64]
    end: npt.NDArray[np.int8]

    @classmethod
    def of(cls, steps: int, n: int) -> Trajectories:
        """For `steps` decisions in each of `n` environments."""
        obs, action = np.zeros((steps, n, 8), np.float32), np.zeros((steps, n), np.int64)
        return cls(obs, action, np.zeros((steps, n, 3)), np.zeros((steps, n)), np.zeros((steps, n), np.int8))


class Batch:
    """``n`` environments of one scenario in contiguous arrays.

    A copy or a pickle is independent and goes on as the original would: it has memory of its own, and its records
    bear the addresses of that.

    Attributes:
        env: (n,) `layout.ENV`.
        queue: (n, 2) `layout.QUEUE`.
        flow: (n, F) `layout.FLOW`.
        obs: (n, 8) float32, observation of the packet that waits for a decision.
        reward: (n,) float64, reward since the last decision.
        status: (n,) int64, why each environment came back (`layout.DECISION`, ...).
        applied: (n,) int64, what was done to the packet decided last.
        action: (n,) int64, to be written before `advance`.
        rule: (n,) `layout.RULE`, state of the policy's decision rule; `advance` comes back with `layout.DECISION` after
            the decisions that are `left` in it.
        hist: (n, 2, HIST_BINS) int32, sojourn histograms of the classes.
        first_env: View of `env[0]`, made once for those who read it at every step.
        first_obs: View of `obs[0]`, likewise.
    """

    def __init__(
        self,
        scenario: Scenario,
        n: int = 1,
        *,
        aqm: str | None = None,
        decider: int = layout.NATIVE,
        interval: int = 1,
        reward: str = "balance",
        log_rows: int = 0,
        explore: float = 0.0,
        policy: Policy | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        """Allocate the arrays.

        Args:
            scenario: What to simulate.
            n: Number of environments.
            aqm: Discipline; None: the scenario's.
            decider: `layout.NATIVE`, `AGENT`, `POLICY` or `PROBABILITY`.
            interval: Ask the agent at each interval-th packet; the discipline decides the others.
            reward: `balance`, `power` or `l4s_llm`.
            log_rows: Rows of the decision log of each environment; 0: no log.
            explore: Share of the packets that the discipline would decide for which an action is drawn instead.
            policy: Who decides in the engine, where decider is `POLICY`; see `start_policy`.
            outputs: Memory of `obs`, `action`, `reward`, `status` and `applied`; None: of its own.
        """
        self.scenario = scenario
        self.aqm = aqm or scenario.aqm
        if self.aqm not in layout.AQMS:
            raise unknown("discipline", self.aqm, layout.AQMS)
        if reward not in layout.REWARDS:
            raise unknown("reward", reward, layout.REWARDS)
        self.n = n
        self.decider = decider
        self.interval = interval
        if not 0.0 <= explore <= 1.0:
            raise L4SError(f"explore={explore}: give a share from 0 to 1")
        self.explore = explore
        self.reward_kind = layout.REWARDS.index(reward)
        self._options = {
            **{"n": n, "aqm": aqm, "decider": decider, "interval": interval, "reward": reward},
            **{"log_rows": log_rows, "explore": explore, "policy": policy},
        }
        if (decider == layout.POLICY) != (policy is not None):
            raise L4SError("policy: give one where decider=layout.POLICY, and only there")
        size = setup.sizes(scenario)
        self._sizes = size
        parts = layout.arena(
            n,
            {
                "env": ((), layout.ENV),
                "queue": ((2,), layout.QUEUE),
                "tree": ((2 * size.leaves,), np.dtype(np.int64)),
                "flow": ((size.flows,), layout.FLOW),
                "score": ((size.flows, size.window), np.dtype(np.uint8)),
                "hist": ((2, layout.HIST_BINS), np.dtype(np.int32)),
                "packet": ((size.packets,), layout.PACKET),
                "rule": ((), layout.RULE),
            },
        )
        self.env, self.queue, self.flow = parts["env"], parts["queue"], parts["flow"]
        self.packet, self.score, self.tree, self.hist = parts["packet"], parts["score"], parts["tree"], parts["hist"]
        self.rule = parts["rule"]
        self.log = np.zeros((n, max(log_rows, 1)), RECORD)
        self.log_rewards = np.zeros((n, max(log_rows, 1)))
        self._log_rows = log_rows
        self._profile = traces.load(scenario.link.trace) if scenario.link.kind == "trace" else None
        self._trace = setup.trace_array(scenario)
        self.obs, self.action, self.reward, self.status, self.applied = outputs or Outputs.of(n)
        rows = {
            "queue_at": self.queue, "flow_at": self.flow, "packet_at": self.packet, "score_at": self.score,
            "tree_at": self.tree, "hist_at": self.hist, "log_at": self.log, "rewards_at": self.log_rewards,
            "obs_at": self.obs, "applied_at": self.applied, "action_at": self.action,
            "reward_at": self.reward, "status_at": self.status, "rule_at": self.rule,
        }  # fmt: skip
        self._memory = (parts, rows, self._trace)
        outs = dict(zip(Outputs._fields, (self.obs, self.action, self.reward, self.status, self.applied), strict=True))
        changing: dict[str, Any] = {**parts, **outs, "log": self.log, "log_rewards": self.log_rewards}
        # As bytes: NumPy copies records field by field, a hundred times slower.
        self._bytes = {name: array[..., None].view(np.uint8) for name, array in changing.items()}
        self.first_env, self.first_obs = self.env[0], self.obs[0]
        self._places = {name: a.ctypes.data + a.strides[0] * np.arange(n) for name, a in rows.items()}
        self.address = int(self.env.ctypes.data)
        self.stride = int(self.env.strides[0])
        if policy is not None:
            self.decide_by(policy)
        self._template: tuple[Any, ...] | None = None
        self._workers: _Workers | None = None
        compile_engine()

    def reset(self, index: int, rng: np.random.Generator) -> None:
        """Start an episode of environment `index`; everything random in it comes from `rng`."""
        if self.scenario.randomise or self._template is None:
            sampled = self.scenario.sample(rng)
            self._template = setup.build(sampled, self.aqm, self._sizes.flows)
            env = self._template[0]
            # A drawn 0 ("as much as fits") may ask for more than the scoreboard holds.
            rwnd = self._template[2]["rwnd"]
            np.minimum(rwnd, self._sizes.window - 1, out=rwnd)
            env["decider"] = self.decider
            env["interval"] = self.interval
            env["until_decision"] = 1
            env["reward_kind"] = self.reward_kind
            env["log_capacity"] = self._log_rows
            env["explore"] = self.explore
            env["trace_row"] = self._trace.ctypes.data
            env["pool"] = self._sizes.packets
            env["window"] = self._sizes.window
            env["leaves"] = self._sizes.leaves
        env, queue, flow, stagger = self._template
        self.env[index] = env[0]
        for name, places in self._places.items():
            self.env[name][index] = places[index]
        self.env["rng"][index], self.env["host_rng"][index] = rng.integers(1 << 64, size=2, dtype=np.uint64)
        self.queue[index] = queue
        self.flow[index] = flow
        self.score[index] = 0
        self.hist[index] = 0
        self.action[index] = 0
        self.status[index] = layout.RUNNING
        # Of flows that start together, chance says which one is first, not the order of the file.
        starts = flow["app_at"] + (rng.random(len(flow)) * (stagger + flow["jitter_ns"])).astype(np.int64)
        starts += rng.permutation(len(flow))
        self.flow["app_at"][index] = starts
        tree = self.tree[index]
        tree[:] = NEVER
        leaf = len(tree) // 2
        slots = leaf + layout.SLOT_FLOWS + 2 * np.arange(len(flow)) + 1
        tree[slots] = np.minimum(starts, NEVER)
        if self.aqm != "dualpi2_freebsd":
            tree[leaf + layout.SLOT_UPDATE_C] = env["tupdate_us"][0] * 1000
        if env["link"][0] != layout.TRACE and env["trace_len"][0] > 0:
            tree[leaf + layout.SLOT_RATE] = self._trace[0]
        width = leaf
        while width > 1:
            width //= 2
            tree[width : 2 * width] = np.minimum(tree[2 * width : 4 * width : 2], tree[2 * width + 1 : 4 * width : 2])

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What a state fits: the same of all batches that can go on from each other's states."""
        content = msgspec.json.encode(self.scenario, order="deterministic") + self._trace.tobytes()
        return {
            **_same_engine(),
            "scenario": f"{self.scenario.name} ({hashlib.sha256(content).hexdigest()[:12]})",
            **{name: str(value) for name, value in self._options.items()},
            "aqm": self.aqm,
        }

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """A copy of all that an episode changes, without addresses: it fits any batch of the same `identity`."""
        used = int(self.env["fresh"].max())  # packets beyond have never been under way
        state = {name: (part[:, :used] if name == "packet" else part).copy() for name, part in self._bytes.items()}
        env = state["env"].view(layout.ENV)
        for name in (*self._places, "trace_row"):
            env[name] = 0
        return state

    def restore(self, state: dict[str, npt.NDArray[Any]]) -> None:
        """Go back to a `state` of a batch of the same `identity`, which the caller has checked."""
        for name, part in state.items():
            (self._bytes[name][:, : part.shape[1]] if name == "packet" else self._bytes[name])[:] = part
        for name, places in self._places.items():
            self.env[name] = places
        self.env["trace_row"] = self._trace.ctypes.data

    def __getstate__(self) -> dict[str, Any]:
        """Scenario, options and state; threads and addresses are made anew."""
        return {
            "identity": self.identity,
            "scenario": self.scenario,
            "options": self._options,
            "state": self.state(),
        }

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Take over a state in memory of its own."""
        check_identity("the pickled simulation", saved["identity"], _same_engine())
        self.__init__(saved["scenario"], **saved["options"])  # type: ignore[misc]
        check_identity("the pickled simulation", saved["identity"], self.identity)
        self.restore(saved["state"])

    def stop_at(self, index: int, time_ns: int) -> None:
        """Let environment `index` come back with `layout.STOPPED` at a time."""
        tree = self.tree[index]
        node = len(tree) // 2 + layout.SLOT_STOP
        tree[node] = time_ns
        while node > 1:
            node //= 2
            tree[node] = min(tree[2 * node], tree[2 * node + 1])

    def decide_by(self, policy: Policy) -> None:
        """Let another policy decide from now on, such as one with the next weights of a training."""
        self._options["policy"] = policy  # keeps its memory
        self.__dict__.pop("identity", None)
        self._places["policy_at"] = self.env["policy_at"] = np.full(self.n, policy.address)

    def start_policy(self, rngs: Sequence[np.random.Generator]) -> None:
        """Start the policy's decision rule: environment i draws what `rngs[i]` would draw next.

        An episode that is started anew goes on drawing: the rule keeps its state.
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
        """Let the policy take T decisions in each environment, and write them down.

        An episode that ends is started anew at once, as in the vector environment's mode `same_step`: row t + 1 is then
        the first one of the next episode. Afterwards `obs` is what the next decision will be upon, and the next call
        goes on from there. The first call starts what `reset` has not started yet.

        Args:
            out: Where to write; `Trajectories.of` makes it.
            rngs: Generator of each environment's episodes, as of `reset`.
            executor: Threads that run environments side by side; None: only the caller's.

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
                    raise L4SError(f"rollout: an episode of scenario {self.scenario.name!r} ended without a decision")
                out.end[last, begin] = self.status[begin]
        finally:
            for name in ("step", "width", "left", *(f"{name}_at" for name in arrays)):
                self.rule[name] = 0

    def advance(self) -> None:
        """Run every environment on, on all cores where the batch is large enough."""
        self.advance_unchecked()
        self.check_status()

    def advance_unchecked(self) -> None:
        """As `advance`; the caller sees to it that no environment ran out of packets."""
        if self.n < PARALLEL_FROM:
            engine.advance(self.address, self.stride, 0, self.n, 0)
        else:
            if self._workers is None or self._workers.pid != os.getpid():
                self._workers = _Workers(self.address, self.stride, self.n, self._memory)
            self._workers.run()

    def __del__(self) -> None:
        """End the threads that served this batch."""
        workers = getattr(self, "_workers", None)
        if workers is not None and workers.pid == os.getpid():
            workers.stop()

    def check_status(self) -> None:
        """Raise where an environment ran out of packets."""
        if self.status.max() == layout.POOL_EMPTY:
            raise L4SError(f"scenario {self.scenario.name!r}: {_POOL_TEXT}")

    def advance_one(self) -> int:
        """Run the only environment on; its status."""
        engine.advance(self.address, self.stride, 0, 1, 0)
        self.check_status()
        return int(self.status[0])

    def drain_log(self, index: int, *, everything: bool = False) -> npt.NDArray[np.void]:
        """The records of `drain`, which describes the arguments: (T,) `schema.RECORD`."""
        return self.drain(index, everything=everything)[0]

    def drain(self, index: int, *, everything: bool = False) -> tuple[npt.NDArray[np.void], npt.NDArray[np.float64]]:
        """Take finished rows from the log of an environment.

        Disciplines that act at dequeue finish a row when its packet leaves; rows of packets that are still
        queued stay, unless `everything` is asked for.

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
            for head in self.queue["head"][index]:
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
        for rows_of in (self.log[index], self.log_rewards[index]):
            rows_of[:rest] = rows_of[keep:rows].copy()
        at_rows = self.packet["record"][index]
        at_rows[queued] = np.where(at_rows[queued] >= 0, at_rows[queued] - keep, -1)
        env["log_rows"] = rest
        return taken

    def reset_counters(self, index: int) -> None:
        """Start the measurement anew (after the warm-up); conservation counters and state stay."""
        env = self.env[index]
        env["ahead_bytes"] = self._ahead_bytes(index)
        env["since_ns"] = env["now_ns"]
        env["capacity_ns"] = self._unused_ns(index)
        for rows, names in ((self.env, _ENV_COUNTERS), (self.queue, _QUEUE_COUNTERS), (self.flow, _FLOW_COUNTERS)):
            for name in names:
                rows[name][index] = 0
        self.hist[index] = 0

    def _ahead_bytes(self, index: int) -> float:
        """What has left the queue and not yet crossed the link, bytes."""
        env = self.env[index]
        if env["link"] == layout.TRACE:
            return float(env["left_bytes"]) if env["sending_packet"] >= 0 else 0.0
        return float(env["stalled_bytes"] + max(env["used_ns"] - env["now_ns"], 0.0) / env["ns_per_byte"])

    def _unused_ns(self, index: int) -> int:
        """Now, or just after it where the delivery opportunity of this very nanosecond has been used."""
        env = self.env[index]
        return int(env["now_ns"]) + int(env["link"] == layout.TRACE and env["used_ns"] == env["now_ns"])

    def carried_bytes(self, index: int) -> float:
        """What the link has carried since the counters were reset, bytes: at both ends, packets count in part."""
        env = self.env[index]
        return max(float(env["ahead_bytes"]) + int(env["served_bytes"]) - self._ahead_bytes(index), 0.0)

    def capacity_bytes(self, index: int) -> float:
        """What the link could have carried since the counters were reset, bytes."""
        env = self.env[index]
        if isinstance(self._profile, traces.Trace):
            used = self._profile.opportunities_in(int(env["capacity_ns"]), self._unused_ns(index))
            return used * float(OPPORTUNITY_BYTES)
        rest = (env["now_ns"] - env["capacity_ns"]) * 1e-9 * env["rate_bps"] / 8.0
        return float(env["capacity_bytes"] + rest)


class _Workers:
    """Threads that run slices of a batch side by side (the engine holds no GIL); the caller's is the first.

    A thread waits for its next job inside the engine for about a millisecond, and then asleep on a semaphore.
    """

    def __init__(self, address: int, stride: int, n: int, memory: object) -> None:
        self._memory = memory  # kept for as long as a thread may write to it
        self.pid = os.getpid()
        count = max(min(os.cpu_count() or 1, n // 64), 1)
        bounds = [n * k // count for k in range(count + 1)]
        self._mine = (address, stride, 0, bounds[1], 0)
        # A cache line each: job given, job done, whether the thread waits inside the engine.
        self._control = np.zeros((count - 1, 8), np.int64)
        self._control_at = int(self._control.ctypes.data)
        self._wake = [threading.Semaphore(0) for _ in range(count - 1)]
        self._error: BaseException | None = None
        self._stopped = False
        for k in range(count - 1):
            place = self._control.ctypes.data + 64 * k
            args = (address, stride, bounds[k + 1], bounds[k + 2], place)
            threading.Thread(target=self._serve, args=(k, args), daemon=True).start()

    def _serve(self, k: int, args: tuple[int, int, int, int, int]) -> None:
        control = self._control[k]
        while True:
            self._wake[k].acquire()
            if self._stopped:
                return
            control[2] = 1
            try:
                engine.advance(*args)
            except BaseException as error:  # hand it to the caller, who waits
                self._error = error
                return

    def stop(self) -> None:
        """Let the threads end."""
        self._stopped = True
        for wake in self._wake:
            wake.release()

    def run(self) -> None:
        """Run all slices."""
        control = self._control
        job = int(control[0, 0]) + 1 if len(control) else 0
        control[:, 0] = job
        woken = control[:, 2] == 0
        for k in np.flatnonzero(woken).tolist():
            self._wake[k].release()
        engine.advance(*self._mine)
        while not engine.await_jobs(self._control_at, len(control), job):
            if self._error is not None:
                raise self._error
            for k in np.flatnonzero((control[:, 1] != job) & (control[:, 2] == 0) & ~woken).tolist():
                woken[k] = True  # it fell asleep just before it could see the job
                self._wake[k].release()


def run_on(batches: Sequence[Batch], executor: Executor | None = None) -> None:
    """Run every environment of some batches on, where this takes long: a thread takes one at a time."""
    jobs = [(batch.address, batch.stride, i, i + 1, 0) for batch in batches for i in range(batch.n)]
    for _ in map(_advance, jobs) if executor is None else executor.map(_advance, jobs):
        pass
    for batch in batches:
        batch.check_status()


def _advance(job: tuple[int, int, int, int, int]) -> None:
    engine.advance(*job)


@functools.cache
def _same_engine() -> dict[str, str]:
    """Version of the package, and of the memory's layout."""
    records = (layout.ENV, layout.QUEUE, layout.FLOW, layout.PACKET, layout.RULE, RECORD)
    content = repr([record.descr for record in records]).encode()
    return {"version": __version__, "layout": hashlib.sha256(content).hexdigest()[:12]}


def check_identity(what: str, theirs: dict[str, str], ours: dict[str, str]) -> None:
    """Refuse a state that does not fit here.

    Args:
        what: What the state is called in the error.
        theirs: `Batch.identity` of where it was made, or that of an environment.
        ours: What it has to agree with.

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
    """Compile the engine, or load it from the cache; says so on stderr where it takes a while."""
    if getattr(engine.advance, "signatures", True):
        return
    if not is_kept(engine.advance):
        print("l4s-gym: compiling the simulator (once after install, about 20 s) ...", file=sys.stderr, flush=True)
    collects = gc.isenabled()
    gc.disable()  # the compiler makes much garbage and frees it by itself; a tenth of the time
    try:
        engine.advance(0, 0, 0, 0, 0)
    finally:
        if collects:
            gc.enable()
