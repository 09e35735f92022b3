"""The learner of `student`: any agent as an integer model that fits into a queue's kernel, learned in closed loop.

Round by round a student drives episodes, and the teacher labels them (`l4s_gym.agents.teaching`); the next student
learns from all rounds (`l4s_gym.agents.fitting`). The teacher drives the first round. After the last one both play the
same new episodes: `metrics` in `agent.json` tells how far they agree there, and what each of them earns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np

from l4s_gym import agents, schema
from l4s_gym.agents import fitting, online
from l4s_gym.agents import training as shared
from l4s_gym.agents.fitting import Fitted, Rows
from l4s_gym.agents.protocol import Floats
from l4s_gym.agents.spec import AgentSpec
from l4s_gym.agents.student import KIND, StudentAgent
from l4s_gym.agents.teaching import Lessons, Plan, School, Teacher, whole
from l4s_gym.envs.tune import PARAMETERS
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.tables import convert

TRIAL: Final = 2
"""Rounds after the last one: the teacher's and the student's, in the same episodes."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Configuration of a training; the defaults are the full setting.

    Attributes:
        seed: Seed of everything that is drawn.
        teacher: Spec of the agent that teaches; it is not saved, its name and checksum are.
        to: What the student is: a tree, a forest, a perceptron, or a linear rule.
        labels: How often the teacher is asked in all, and so how many episodes a round has.
        rounds: Rounds of episodes.
        seconds: Length of an episode, s; of agents that decide about packets, at most.
        packets: Decisions in an episode of an agent that decides about packets.
        held_out: Share of the episodes of each round that are held out.
        memory_s: Time constants of the moving averages of the observations of an interval form, s.
        leaves: Numbers of leaves of a tree among which one is chosen; larger ones than fit are left out.
        trees: Trees of a forest.
        hidden: Units of a perceptron's hidden layers.
        steps: Gradient steps of a perceptron or linear rule.
        batch_size: Rows in a step.
        learning_rate: Learning rate of Adam at the start; it falls to 0.
        weight_decay: Of Adam.
    """

    seed: int = 0
    teacher: str = ""
    to: Literal["tree", "forest", "mlp", "linear"] = "tree"
    labels: int = 100_000
    rounds: int = 5
    seconds: float = 20.0
    packets: int = 20_000
    held_out: float = 0.25
    memory_s: tuple[float, ...] = (2.0, 8.0)
    leaves: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048)
    trees: int = 12
    hidden: tuple[int, ...] = (64, 64)
    steps: int = 6000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4


def configure(given: Mapping[str, Any]) -> Config:
    """Return the configuration, complete and checked.

    Raises:
        L4SError: A key or value makes no sense.
    """
    config = convert(Config, dict(given), KIND)
    counts = config.rounds, config.labels, config.packets, config.trees, config.steps, config.batch_size
    if min(*counts, *config.hidden) < 1 or config.seed < 0:
        raise L4SError(f"configuration of {KIND}: counts and sizes have to be 1 or more, and seed 0 or more")
    if not config.leaves or min(config.leaves) < 2:
        raise L4SError(f"configuration of {KIND}: leaves: give numbers of 2 or more")
    if not min(config.seconds, config.learning_rate, *config.memory_s) > 0.0 or config.weight_decay < 0.0:
        raise L4SError(
            f"configuration of {KIND}: seconds, learning_rate, memory_s have to be above 0, weight_decay not below"
        )
    if not 0.0 < config.held_out < 1.0:
        raise L4SError(f"configuration of {KIND}: held_out has to be between 0 and 1")
    return config


class Distillation:
    """The rounds of a training; `tell` is called with the share that is done.

    Attributes:
        teacher: The teacher.
        lessons: What was labelled so far, round by round.
        trial: The teacher's episodes after the last round, and the student's.
        fitted: The student, of all rounds so far.
    """

    def __init__(
        self, scenarios: str, config: Config, lessons: list[Lessons], tell: shared.Progress | None = None
    ) -> None:
        self.config, self.lessons = config, lessons
        self._tell = tell or (lambda share: None)
        self.teacher = Teacher(agents.make(config.teacher))
        plan = Plan.of(self.teacher, config.labels, config.rounds + TRIAL, config.seconds, config.packets)
        self.school = School(self.teacher, plan, scenarios, config.seconds, config.seed)
        self.form, self.interval_ms = self.teacher.form.name, self.school.interval_ms
        self.trial: list[Lessons] = []
        self.fitted: Fitted | None = None

    def round(self, number: int) -> str:
        """Play a round, of which those after the last are the trial; return what there is to say of it."""
        trial = number - self.config.rounds
        taught = number > 0 and trial != 0
        if taught:
            self.fitted = self.fit(choose=trial > 0)
        student = StudentAgent(self.fitted.model, {}, {}) if taught and self.fitted else None
        rounds = self.config.rounds
        found = self.school.round(
            min(number, rounds), student, lambda share: self._tell((number + share) / (rounds + TRIAL))
        )
        (self.lessons if trial < 0 else self.trial).append(found)
        who = "the teacher"
        if student is not None and self.fitted is not None:
            who = f"the student ({self.fitted.size}, held-out loss {self.fitted.loss:.3g})"
        return f"{int(found.there.sum()):,} labels, {who} earned {found.returns.mean():.4g}"

    def _rows(self, lessons: Lessons) -> list[Rows]:
        return fitting.rows_of(lessons, self.form, self.config.memory_s, self.interval_ms)

    def fit(self, *, choose: bool) -> Fitted:
        """Fit the student of all rounds."""
        held: list[Rows] = []
        rows: list[Rows] = []
        for each in map(self._rows, self.lessons):
            count = min(max(round(self.config.held_out * len(each)), 1), len(each) - 1)
            held += each[:count]
            rows += each[count:]
        parts = fitting.joined(rows), fitting.joined(held)
        return fitting.fit(self.config, self.form, self.interval_ms, *parts, choose=choose)

    def metrics(self) -> dict[str, Any]:
        """Return how far student and teacher agree where the student drove in the trial, and what both earned."""
        assert self.fitted is not None
        rows = fitting.joined(self._rows(self.trial[1]))
        student = StudentAgent(self.fitted.model, {}, {})
        return {
            "steps": sum(int(each.there.sum()) for each in (*self.lessons, *self.trial)),
            "size": self.fitted.size,
            "bytes": int(student.cost()["bytes"]),
            "held_out": self.fitted.loss,
            "agreement": agreement(self.form, rows.labels, fitting.told(self.fitted.model, rows.seen)),
            "returns": [float(each.returns.mean()) for each in self.trial],
        }


def agreement(form: str, teacher: Floats, student: Floats) -> dict[str, dict[str, float | None]]:
    """Return how far the labels of a teacher (n, K) and what a student says (n, K) agree.

    Args:
        form: Of the decisions.
        teacher: The labels.
        student: What the student says.

    Returns:
        Of each number of an action `r2`, `teacher`'s mean and the student's `difference` from it. Of packets for each
        action its share by the teacher and by the student, and `recall`: how often the student does it too where the
        teacher does it, if both draw by the same random number; None: the teacher never does it.
    """
    names: Sequence[str]
    if form != PACKET:
        names = PARAMETERS if form == "parameters" else ("c", "l")
        missed = ((student - teacher) ** 2).mean(0)
        r2 = 1.0 - missed / np.maximum(teacher.var(0), 1e-12)
        columns: dict[str, Floats] = {
            "r2": np.where(missed > 0.0, r2, 1.0),
            "teacher": teacher.mean(0),
            "difference": (student - teacher).mean(0),
        }
    else:
        names, p, q = schema.ACTIONS, whole(teacher), whole(student)
        columns = {"teacher": p.mean(0), "student": q.mean(0)}
        columns["recall"] = np.where(p.any(0), np.minimum(p, q).sum(0) / np.maximum(p.sum(0), 1e-12), np.nan)
    return {
        name: {key: None if np.isnan(part[k]) else float(part[k]) for key, part in columns.items()}
        for k, name in enumerate(names)
    }


def train(
    scenarios: str,
    config: Mapping[str, Any],
    out: Path,
    *,
    resume: bool = False,
    progress: shared.Progress | None = None,
    say: shared.Say | None = None,
) -> dict[str, Any]:
    """Train a student as `l4s_gym.agents.training.Learner` describes; Ctrl-C stops it after the present round."""
    torch, chosen = optional("torch", "baselines", "llm"), configure(config)
    if not chosen.teacher:
        raise L4SError(f"train {KIND}: has no teacher: name one: l4s-gym distil AGENT --to {chosen.to}")
    path = shared.start_folder(out, resume=resume)
    digest = AgentSpec.parse(chosen.teacher).digest()
    settings = msgspec.to_builtins(msgspec.structs.replace(chosen, teacher=""))
    about = {"kind": KIND, "config": settings, "teacher_digest": digest}
    state: shared.Plain = {"rounds": [], "seconds": 0.0}
    if resume:
        state = shared.load_checkpoint(path, **about)
    begun = time.monotonic() - float(state["seconds"])
    lessons = [Lessons(*(part.numpy() for part in each)) for each in state["rounds"]]
    work = Distillation(scenarios, chosen, lessons[: chosen.rounds], progress)
    work.trial = lessons[chosen.rounds :]

    def keep() -> None:
        rounds = [[torch.tensor(part) for part in vars(each).values()] for each in (*work.lessons, *work.trial)]
        shared.save_checkpoint(path, {**about, "rounds": rounds, "seconds": time.monotonic() - begun})

    online.rounds(work.round, keep, len(lessons), chosen.rounds + TRIAL, progress=progress, say=say)
    done = {
        **online.about(scenarios, work.form, chosen.seed),
        "teacher": work.teacher.agent.name,
        "teacher_digest": digest,
        **work.school.law,
        "steps": len(work.lessons),
        "seconds": round(time.monotonic() - begun, 3),
        "metrics": work.metrics(),
    }
    assert work.fitted is not None
    StudentAgent(work.fitted.model, settings, done).save(out)
    return done
