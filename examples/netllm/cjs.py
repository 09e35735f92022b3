"""Cluster job scheduling: which stage of which job the free executors work on, and how many of them.

`Cluster` is a Gymnasium environment in the manner of Decima (Mao et al. 2019): jobs are graphs of stages, stages have
tasks, executors run one task at a time. Jobs are drawn for each episode. `POLICIES` are classical schedulers.

    python examples/netllm/cjs.py  # the schedulers in all settings
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SLOTS = 8
"""Jobs in the cluster at once; the others wait outside, first come, first served."""
STAGES = 5
"""Most stages of a job."""
NODES = SLOTS * STAGES
JOBS = 12
COUNTS = (1, 2, 4, 8, 16)
"""Executors that an action may send."""
MOVE_S = 1.0
"""What it takes an executor to start on another job."""
VALUES = ("waiting", "running", "duration", "stage work", "job work", "path", "on job", "idle here", "age", "runnable")
"""Values of a node; work, path and age are on a logarithmic scale (`scaled`)."""


@dataclass(frozen=True)
class Setting:
    """What jobs are drawn from.

    Attributes:
        arrive_s: Mean time from one arrival to the next.
        spread: Standard deviation of the logarithm of a stage's mean duration.
        layers: Fewest and most layers of a graph.
        executors: Executors of the cluster.
    """

    arrive_s: float = 16.0
    spread: float = 0.8
    layers: tuple[int, int] = (2, 3)
    executors: int = 10


SETTINGS = {
    "same": Setting(),
    "unseen load": Setting(arrive_s=11.0),
    "unseen jobs": Setting(spread=1.3, layers=(3, 5)),
    "unseen both": Setting(arrive_s=16.0, spread=1.3, layers=(3, 5), executors=8),
}


def scaled(seconds):
    """Return times on the scale of the observations."""
    return np.log1p(seconds) / 5.0


class Job:
    """A graph in layers, each stage of which has a parent in the layer before.

    Attributes:
        parents: Whether a stage waits for another (stages, stages).
        durations: Durations of the tasks of each stage, s.
        mean: Mean duration of each stage.
    """

    def __init__(self, setting: Setting, rng: np.random.Generator) -> None:
        layers = int(rng.integers(setting.layers[0], setting.layers[1] + 1))
        of = np.sort(np.concatenate([np.arange(layers), rng.integers(layers, size=rng.integers(STAGES - layers + 1))]))
        self.parents = np.zeros((len(of), len(of)), bool)
        for stage, layer in enumerate(of):
            before = np.flatnonzero(of == layer - 1)
            if len(before):
                self.parents[stage, rng.choice(before)] = True
                self.parents[stage, before[rng.random(len(before)) < 0.3]] = True
        self.mean = 4.0 * np.exp(setting.spread * rng.standard_normal(len(of)))
        self.durations = [m * np.exp(0.2 * rng.standard_normal(rng.integers(1, 13))) for m in self.mean]
        self.waiting = np.array([len(each) for each in self.durations])
        self.running, self.arrived = np.zeros(len(of), int), 0.0

    @property
    def left(self):
        """Tasks that are not done, of each stage."""
        return self.waiting + self.running

    @property
    def runnable(self):
        """Stages that have tasks to start, and whose parents are done."""
        return (self.waiting > 0) & ~(self.parents & (self.left > 0)).any(axis=1)

    @property
    def path(self):
        """Longest sum of mean durations from each stage on."""
        found = np.where(self.left > 0, self.mean, 0.0)
        for stage in reversed(range(len(found))):
            found[stage] += np.max(found[self.parents[:, stage]], initial=0.0)
        return found


class Cluster(gym.Env):
    """A cluster that asks whenever an executor is free and a stage could use it.

    | observation | shape | |
    |---|---|---|
    | `free` | () | free executors, tens |
    | `stages` | | a graph: |
    | - `adjacency` | (40, 40) | 1 where the stage of the column waits for the stage of the row |
    | - `nodes` | (40, 10) | `VALUES` of each stage; rows 5 * slot to 5 * slot + 4 are those of a job |
    | `action_mask` | (40,) | which stages can be chosen |

    The action is a stage and one of `COUNTS`: so many executors go there, if as many are free and tasks are waiting;
    they stay until no task of the stage waits. Instead of a stage that cannot be chosen the first one that can is. The
    reward is minus the time since the action before, times the jobs that are not done, divided by the number of jobs:
    the rewards of an episode add up to minus the mean job completion time.

    Args:
        setting: A `Setting`, or the name of one in `SETTINGS`.
    """

    def __init__(self, setting: Setting | str = "same") -> None:
        self.setting = SETTINGS[setting] if isinstance(setting, str) else setting
        graph = {
            "adjacency": spaces.Box(0.0, 1.0, (NODES, NODES), np.float32),
            "nodes": spaces.Box(0.0, 100.0, (NODES, len(VALUES)), np.float32),
        }
        self.observation_space = spaces.Dict(
            {
                "free": spaces.Box(0.0, 100.0, (), np.float32),
                "stages": spaces.Dict(graph),
                "action_mask": spaces.MultiBinary(NODES),
            }
        )
        self.action_space = spaces.MultiDiscrete([NODES, len(COUNTS)])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        rng = self.np_random
        self.now, self.outside, self.slots = 0.0, [], [None] * SLOTS
        self.done, self.mask = 0, np.zeros((SLOTS, STAGES), np.int8)
        self.at = np.full(self.setting.executors, -1)  # slot whose job an executor worked on last
        self.busy = np.zeros(self.setting.executors, bool)
        self.events = []
        arrive = np.cumsum(rng.exponential(self.setting.arrive_s, JOBS)) - self.setting.arrive_s
        for number, time in enumerate(np.maximum(arrive, 0.0)):
            job = Job(self.setting, rng)
            job.arrived = time
            self._later(time, number, -1, job)
        self._until_asked()
        return self._observation(), {}

    def _later(self, time, *event) -> None:
        self.count = getattr(self, "count", 0) + 1
        heapq.heappush(self.events, (time, self.count, *event))

    def _start(self, executor, slot, stage, delay=0.0) -> None:
        """Let an executor start the next task of a stage."""
        job = self.slots[slot]
        job.waiting[stage] -= 1
        job.running[stage] += 1
        self.busy[executor], self.at[executor] = True, slot
        self._later(self.now + delay + job.durations[stage][job.waiting[stage]], executor, stage, None)
        self._look(slot)

    def _look(self, slot) -> None:
        """Note which stages of a slot can be chosen, after a change."""
        job = self.slots[slot]
        self.mask[slot] = 0
        if job is not None:
            self.mask[slot, : len(job.mean)] = job.runnable

    def _until_asked(self) -> float:
        """Let time pass until there is something to decide; return the cost."""
        cost = 0.0
        while self.events and (self.busy.all() or not self.mask.any()):
            time, _, executor, stage, job = heapq.heappop(self.events)
            inside = sum(each is not None for each in self.slots) + len(self.outside)
            cost += (time - self.now) * inside / JOBS
            self.now = time
            if job is not None:
                self.outside.append(job)
            else:
                self._finish(executor, stage)
            while self.outside and None in self.slots:
                slot = self.slots.index(None)
                self.slots[slot] = self.outside.pop(0)
                self._look(slot)
        return cost

    def _finish(self, executor, stage) -> None:
        slot = self.at[executor]
        job = self.slots[slot]
        job.running[stage] -= 1
        self.busy[executor] = False
        if job.waiting[stage]:
            self._start(executor, slot, stage)
        elif not job.left.any():
            self.slots[slot] = None
            self.at[self.at == slot] = -1
            self.done += 1
        if not self.busy[executor]:
            self._look(slot)

    def _observation(self):
        adjacency, nodes = np.zeros((NODES, NODES), np.float32), np.zeros((NODES, len(VALUES)), np.float32)
        for slot, job in enumerate(self.slots):
            if job is None:
                continue
            rows = slice(slot * STAGES, slot * STAGES + len(job.mean))
            here, work = self.at == slot, job.left * job.mean
            shown = job.left > 0
            values = (
                job.waiting / 10.0,
                job.running / 10.0,
                scaled(job.mean),
                scaled(work),
                scaled(work.sum()),
                scaled(job.path),
                (here & self.busy).sum() / 10.0,
                (here & ~self.busy).sum() / 10.0,
                scaled(self.now - job.arrived),
                job.runnable,
            )
            nodes[rows] = np.stack(np.broadcast_arrays(*values), axis=1) * shown[:, None]
            adjacency[rows, rows] = job.parents.T & shown & shown[:, None]
        free = np.array((~self.busy).sum() / 10.0, np.float32)
        graph = {"adjacency": adjacency, "nodes": nodes}
        return {"free": free, "stages": graph, "action_mask": self.mask.ravel().copy()}

    def step(self, action):
        mask = self.mask.ravel()
        slot, stage = divmod(int(action[0] if mask[action[0]] else mask.argmax()), STAGES)
        free = np.flatnonzero(~self.busy)
        free = free[np.argsort(self.at[free] != slot, kind="stable")]  # those that are there already
        for executor in free[: min(COUNTS[action[1]], self.slots[slot].waiting[stage])]:
            self._start(executor, slot, stage, MOVE_S * (self.at[executor] != slot))
        cost = self._until_asked()
        over = self.done == JOBS
        return self._observation(), -float(cost), over, False, {"now": self.now}


# -- classical schedulers: from one observation to the action


def _of(observation):
    """Return the stages that can be chosen, their slots, and a function that gives their values by name."""
    stages = np.flatnonzero(observation["action_mask"])
    nodes = observation["stages"]["nodes"]
    return stages, stages // STAGES, lambda name: nodes[stages, VALUES.index(name)]


def _first(stages, *keys):
    """Return the stage whose keys are smallest, the first one first."""
    return stages[np.lexsort(keys[::-1])[0]]


def fifo(observation):
    """Serve the oldest job, with all executors that it can use."""
    stages, slots, of = _of(observation)
    return _first(stages, -of("age"), slots, stages), len(COUNTS) - 1


def shortest_job_first(observation):
    """Serve the job of which least work is left, its longest path first, with all executors that it can use."""
    stages, slots, of = _of(observation)
    return _first(stages, of("job work"), slots, -of("path")), len(COUNTS) - 1


def critical_path(observation):
    """Serve the stage from which the longest path is left, with all executors that it can use."""
    stages, _, of = _of(observation)
    return _first(stages, -of("path")), len(COUNTS) - 1


def fair(observation):
    """Give one executor to the job that has fewest."""
    stages, slots, of = _of(observation)
    return _first(stages, of("on job"), slots, -of("path")), 0


def weighted_fair(observation):
    """Give one executor to the job that lacks most of its share; shares are inverse to the work that is left."""
    stages, slots, of = _of(observation)
    nodes = observation["stages"]["nodes"].reshape(SLOTS, STAGES, -1).max(axis=1)
    work = np.expm1(5.0 * nodes[:, VALUES.index("job work")])
    weight = np.where(work > 0.0, 1.0 / np.maximum(work, 1e-3), 0.0)
    executors = observation["free"] + nodes[:, VALUES.index("on job")].sum()
    lack = weight / weight.sum() * executors - nodes[:, VALUES.index("on job")]
    return _first(stages, -lack[slots], slots, -of("path")), 0


POLICIES = {
    "fifo": fifo,
    "fair": fair,
    "weighted fair": weighted_fair,
    "critical path": critical_path,
    "shortest job first": shortest_job_first,
}


if __name__ == "__main__":
    from play import table

    print(table(Cluster, SETTINGS, POLICIES))
