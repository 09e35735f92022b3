"""The records of the benchmark: the protocol, an experiment, and an entry, which is what an experiment came to."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

import l4s_gym
from l4s_gym import forms, shipped
from l4s_gym.agents import AgentSpec
from l4s_gym.data.files import read_error
from l4s_gym.errors import L4SError, unknown
from l4s_gym.evaluation.harness import Result
from l4s_gym.forms import INTERVAL_MS, PACKET
from l4s_gym.schema import SCHEMA_VERSION
from l4s_gym.sim import disciplines, fingerprint
from l4s_gym.sim import scenario as scenarios
from l4s_gym.sim.options import check_tables
from l4s_gym.sim.ranges import Ranges
from l4s_gym.sim.scenario import Suite
from l4s_gym.tables import checksum, convert, parse_toml

FORMAT: Final = 2
"""Of entries in files (`l4s_gym.evaluation.results`)."""
SIZES: Final = ("quick", "standard", "full")
OPTIONAL: Final = ("goodput_ratio", "latency_us", "train_seed")
"""What an episode's result may lack."""

Trained = Literal["none", "offline", "online"]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Positive = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0)]


class Size(Struct, frozen=True, forbid_unknown_fields=True):
    """How much is run.

    Attributes:
        seconds: Length of each episode.
        seeds: Episodes of each scenario.
        suites: Suites that are run.
        scenarios: Only these scenarios of them; all of them if empty.
    """

    seconds: Annotated[float, Meta(gt=0.0)]
    seeds: Positive
    suites: Annotated[tuple[Suite, ...], Meta(min_length=1)] = ("train", "test", "shift")
    scenarios: tuple[str, ...] = ()


class Protocol(Struct, frozen=True, forbid_unknown_fields=True):
    """What is the same for everybody.

    Attributes:
        reward: Name of the reward.
        first_seed: First seed of each suite; the others count up.
        quick: Some minutes, for a first look.
        standard: The one whose results are compared.
        full: The episodes in full.
        version: Boards of different versions are never mixed.
        suites: Scenarios of each suite; `test` has those of `train`. Empty: as the scenarios say of themselves.
        ranges: Between what scenarios for training may be drawn; None: nothing is drawn.
    """

    reward: str
    first_seed: dict[Suite, Seed]
    quick: Size
    standard: Size
    full: Size
    version: Positive = 1
    suites: dict[Suite, tuple[str, ...]] = {}
    ranges: Ranges | None = None

    def size(self, size: str) -> Size:
        """The numbers of a size."""
        if size not in SIZES:
            raise unknown("size", size, SIZES)
        found: Size = getattr(self, size)
        return found

    def digest(self, size: str) -> str:
        """Checksum of what an entry of a size depends on."""
        parts = [self.version, self.reward, sorted(self.first_seed.items()), self.size(size)]
        return checksum([*parts, self.suites, self.ranges] if self.version > 1 else parts)

    def seeds(self, suite: str, size: str) -> list[int]:
        """Seeds of the episodes of a suite."""
        first = self.first_seed[suite]  # type: ignore[index]
        return list(range(first, first + self.size(size).seeds))

    def members(self, suite: str) -> tuple[str, ...]:
        """Names of the scenarios of a suite."""
        if not self.suites:
            return scenarios.suite(suite)
        return self.suites["train" if suite == "test" else suite]  # type: ignore[index]

    def cells(self, size: str) -> Iterator[tuple[str, str]]:
        """Suites and their scenarios, in order."""
        chosen = self.size(size)
        for suite in chosen.suites:
            for name in self.members(suite):
                if not chosen.scenarios or name in chosen.scenarios:
                    yield suite, name


class Training(Struct, frozen=True, forbid_unknown_fields=True):
    """How an experiment's agents are trained.

    Attributes:
        learner: Name in `l4s_gym.agents.registry.KINDS`.
        dataset: Id of a dataset; "": an online learner needs none.
        scenarios: Of an online learner: `random:train` or `suite:train`.
        teacher: Of a student, the experiment whose agents teach it, each the student of its seed; once read, the
            training of that experiment.
        small: With the table `[small]` of the learner's configuration.
        settings: ``key=value`` of the configuration, which come last.
        seeds: One agent each.
    """

    learner: str
    dataset: str = ""
    small: bool = False
    settings: tuple[str, ...] = ()
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)] = (0,)
    scenarios: str = ""
    teacher: Training | str = ""

    def __post_init__(self) -> None:
        if not self.dataset and not self.scenarios:
            raise L4SError("training: give a dataset, or scenarios for a learner that is online")

    @property
    def every(self) -> tuple[Training, ...]:
        """This training and that of its teacher."""
        return (self, *(self.teacher.every if isinstance(self.teacher, Training) else ()))


class Experiment(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who is evaluated, and how it came about: `experiments/<name>/<variant>.toml`.

    Attributes:
        title: One line.
        agent: A spec (`l4s_gym.agents.spec`); with training: options of the saved agent, such as
            ``rule=diffuse``.
        decision_interval: The agent is asked at each n-th packet.
        training: None: nothing is trained here.
        trained: How the agent learned, if that is not seen from the rest: see `learned`.
        options: Of an agent `native:<discipline>`: the table of its discipline, in place of the scenarios'
            (`l4s_gym.sim.options`).
        form: In which the agent decides (`l4s_gym.forms`); it is checked when the agent runs.
        control_interval_ms: Of the forms that decide for control intervals: their length, simulated ms.
        aqm: Of the form `packet`, asked at each one: discipline underneath, whose probabilities the agent sees; empty:
            the scenario's.
        name: Name of the folder.
        variant: Name of the file.
    """

    title: str
    agent: str
    decision_interval: Positive = 1
    training: Training | None = None
    name: Name = "agent"
    variant: Name = "default"
    trained: Trained | None = None
    options: dict[str, dict[str, Any]] = {}
    form: str = PACKET
    control_interval_ms: Annotated[float, Meta(gt=0.0)] = INTERVAL_MS
    aqm: str = ""

    def __post_init__(self) -> None:
        check_tables(self.options)
        native = AgentSpec.parse(self.agent).native or ""
        if forms.get(self.form).name == PACKET and self.control_interval_ms != INTERVAL_MS:
            raise L4SError("control_interval_ms: is for the forms of control intervals: give `form`, or leave it out")
        if self.form != PACKET and native:
            raise L4SError(f"form: {self.agent} is a discipline, which is asked nothing: leave it out")
        if self.form != PACKET and self.decision_interval != 1:
            raise L4SError(f"decision_interval: is for the form {PACKET!r} alone: leave it out")
        if self.aqm:
            disciplines.get(self.aqm)
            if native or self.form != PACKET or self.decision_interval != 1:
                raise L4SError(f"aqm: is for an agent of the form {PACKET!r} that is asked at each one: leave it out")
        for name in self.options:
            if name != ("own" if ":" in native else native):
                raise L4SError(f"options.{name}: are for an agent `native:{name}` alone: leave them out")

    @property
    def id(self) -> str:
        """Name of the entry."""
        return f"{self.name}--{self.variant}"

    @property
    def native(self) -> bool:
        """Whether a discipline decides inside the engine."""
        return self.training is None and AgentSpec.parse(self.agent).native is not None

    @property
    def interval_ms(self) -> float | None:
        """Length of the control intervals; None: packets are decided about."""
        return None if self.form == PACKET else self.control_interval_ms

    @property
    def learned(self) -> Trained:
        """How the agent learned: `online` in closed loop, `offline` from logs and datasets, `none` not at all."""
        if self.trained or self.training is None:
            return self.trained or ("offline" if AgentSpec.parse(self.agent).form == "saved" else "none")
        return "online" if self.training.scenarios else "offline"

    @property
    def train_seeds(self) -> tuple[int | None, ...]:
        """Seeds of the trained agents; one None without training."""
        return self.training.seeds if self.training else (None,)


class Environment(Struct, frozen=True, forbid_unknown_fields=True):
    """What the agents were in.

    Attributes:
        version: Of this package.
        schema_version: Of the observations.
        scenarios: Name -> `scenarios.digest`.
        simulator: Its fingerprint (`l4s_gym.sim.fingerprint`).
    """

    version: str
    schema_version: int
    scenarios: dict[str, str]
    simulator: str = fingerprint.NONE


class TrainedAgent(Struct, frozen=True, forbid_unknown_fields=True):
    """One training: its seed, time and size, what the learner says of it, and which weights a language model had."""

    seed: Seed
    seconds: float
    parameters: float
    trainable_parameters: float
    metrics: dict[str, Any] = {}
    peak_memory_bytes: int | None = None
    weights: str = ""


class Failure(Struct, frozen=True, forbid_unknown_fields=True):
    """Where it failed first, and the traceback."""

    where: str
    traceback: str

    @property
    def brief(self) -> str:
        """Where, and the last line of the traceback."""
        return f"{self.where}: {self.traceback.strip().splitlines()[-1]}"


class Head(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an experiment came to, but for its episodes.

    Attributes:
        format: Of this record.
        agent: Name of the experiment's folder.
        variant: Name of its file.
        title: One line.
        experiment: The experiment.
        size: Of the protocol.
        protocol_digest: `Protocol.digest`.
        environment: What the agents were in.
        datasets: Id -> checksum of the files.
        origin: Versions, host, command, time.
        training: The trainings.
        failed: Where and why it failed; then some results are missing.
        wall_s: Time that trainings and runs took, wherever and whenever they ran.
        protocol: Version of the protocol.
    """

    format: Literal[2]
    agent: Name
    variant: Name
    title: str
    experiment: Experiment
    size: Literal["quick", "standard", "full"]
    protocol_digest: str
    environment: Environment
    datasets: dict[str, str]
    origin: dict[str, Any]
    training: tuple[TrainedAgent, ...]
    failed: Failure | None
    wall_s: float
    protocol: int = 1

    @property
    def id(self) -> str:
        """Name of its file, without `.json`."""
        return f"{self.agent}--{self.variant}"

    @property
    def weights(self) -> str:
        """Which weights the backbone started from; empty: it has none."""
        return self.training[0].weights if self.training else ""


class Entry(Head, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an experiment came to; in files as `l4s_gym.evaluation.results` has it.

    Attributes:
        results: Of each train seed, suite, scenario and seed: `suite`, `train_seed`, and the fields of
            `l4s_gym.evaluation.harness.Result`.
    """

    results: tuple[dict[str, Any], ...]


def environment(names: Sequence[str]) -> Environment:
    """The environment that is installed."""
    digests = {name: scenarios.digest(name) for name in sorted(set(names))}
    return Environment(l4s_gym.__version__, SCHEMA_VERSION, digests, fingerprint.FINGERPRINT)


def decoded(path: Path, kind: Any, more: Mapping[str, Any] | None = None) -> Any:
    """A TOML or JSON file as a structure; errors name file and place."""
    try:
        content = path.read_bytes()
        if path.suffix == ".json":
            return msgspec.json.decode(content, type=kind)
        return convert(kind, {**(more or {}), **parse_toml(content, str(path))}, str(path))
    except OSError as error:
        raise read_error(path, error) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise L4SError(f"{path}: {error}: correct it") from error


def read_protocol(path: Path | None = None) -> Protocol:
    """Read a protocol.

    Args:
        path: Its file; None: the one that ships, which the board follows.

    Raises:
        L4SError: It cannot be read or is not valid; the seeds of two suites overlap.
    """
    path = path or shipped.folder("benchmarks") / "protocol.toml"
    protocol: Protocol = decoded(path, Protocol)
    firsts = sorted(protocol.first_seed.values())
    most = max(protocol.size(size).seeds for size in SIZES)
    if any(b - a < most for a, b in itertools.pairwise(firsts)):
        raise L4SError(f"{path}: first_seed: suites share seeds: set them at least {most} apart")
    for size in SIZES:
        chosen = protocol.size(size)
        if missing := set(chosen.suites) - set(protocol.first_seed):
            raise L4SError(f"{path}: first_seed: lacks {min(missing)}: add it")
        if protocol.suites and (missing := {*chosen.suites} - {*protocol.suites, "test"}):
            raise L4SError(f"{path}: suites: lacks {min(missing)}: add it")
        known = {name for suite in chosen.suites for name in protocol.members(suite)}
        for name in chosen.scenarios:
            if name not in known:
                raise unknown(f"scenario of {size} in {path}", name, sorted(known))
    return protocol


def read_experiment(path: Path) -> Experiment:
    """An experiment; its name and variant are those of folder and file.

    Raises:
        L4SError: It cannot be read or is not valid, or its teacher is not trained.
    """
    place = path.resolve()
    found: Experiment = decoded(path, Experiment, {"name": place.parent.name, "variant": place.stem})
    if found.training is None or not found.training.teacher:
        return found
    teacher = read_experiment(place.parent.parent / f"{found.training.teacher}.toml")
    if teacher.training is None or teacher.agent:
        raise L4SError(f"{path}: teacher {found.training.teacher!r}: name an experiment that trains, without options")
    training = msgspec.structs.replace(found.training, teacher=teacher.training)
    return msgspec.structs.replace(found, training=training)


def another_protocol(entry: Head, version: int) -> str:
    """Why an entry of another protocol is refused."""
    has = "each has a board of its own (--protocol FILE)"
    return f"is of protocol {entry.protocol}, this board is of protocol {version}: {has}"


def validate(entry: Entry, protocol: Protocol, datasets: Mapping[str, str] | None = None) -> None:
    """Refuse an entry that cannot stand beside the others.

    Args:
        entry: What is checked.
        protocol: What everybody follows.
        datasets: Checksums of the datasets that are known here.

    Raises:
        L4SError: It failed, is of another simulator, protocol, version, scenario or dataset, lacks cells, or holds
            something that is not a finite number. The error says what differs.
    """
    if entry.protocol != protocol.version:
        raise L4SError(f"{entry.id}: {another_protocol(entry, protocol.version)}")
    command = f"l4s-gym leaderboard {entry.agent}/{entry.variant}"
    fingerprint.check(entry.id, entry.environment.simulator, f"move it away, and run it again: {command}")
    here = environment([name for _, name in protocol.cells(entry.size)])
    again = "run it again with this version"
    for what, theirs, ours in (
        ("protocol", entry.protocol_digest, protocol.digest(entry.size)),
        ("version of the environment", entry.environment.version, here.version),
        ("version of the schema", entry.environment.schema_version, here.schema_version),
    ):
        if theirs != ours:
            raise L4SError(f"{entry.id}: {what}: is {theirs}, here {ours}: {again}")
    if entry.failed is not None:
        raise L4SError(f"{entry.id}: failed in {entry.failed.where}: see its traceback, correct the agent, {again}")
    for name, digest in here.scenarios.items():
        if entry.environment.scenarios.get(name) != digest:
            raise L4SError(f"{entry.id}: scenario {name!r}: is not the one that is here: {again}")
    training = entry.experiment.training
    for name in [each.dataset for each in training.every if each.dataset] if training else []:
        if name not in entry.datasets:
            raise L4SError(f"{entry.id}: dataset {name!r}: has no checksum: {again}")
        if datasets and datasets.get(name, entry.datasets[name]) != entry.datasets[name]:
            raise L4SError(f"{entry.id}: dataset {name!r}: checksum differs from the one here: build it, and {again}")
    if training and [t.seed for t in entry.training] != list(training.seeds):
        raise L4SError(f"{entry.id}: training: is not of the seeds {list(training.seeds)}: {again}")
    _check_results(entry, protocol)


def _check_results(entry: Entry, protocol: Protocol) -> None:
    """All cells once, each whole and finite."""
    wanted = {
        (train_seed, suite, name, seed)
        for train_seed in entry.experiment.train_seeds
        for suite, name in protocol.cells(entry.size)
        for seed in protocol.seeds(suite, entry.size)
    }
    fields = {"suite", "train_seed", *Result.__dataclass_fields__}
    for number, result in enumerate(entry.results):
        place = f"{entry.id}: results[{number}]"
        if different := fields ^ set(result):
            raise L4SError(f"{place}: {min(different)}: is missing or not known: run it with this version")
        cell = tuple(result[name] for name in ("train_seed", "suite", "scenario", "seed"))
        if cell not in wanted:
            raise L4SError(f"{place}: {cell}: is no cell of this protocol, or there twice: run the experiment again")
        wanted.remove(cell)
        asked = {name: value for name, value in result.items() if value is not None or name not in OPTIONAL}
        if bad := _not_finite(asked):
            raise L4SError(f"{place}{bad}: is not a finite number: find out why, and run the experiment again")
    if wanted:
        raise L4SError(f"{entry.id}: results: {len(wanted)} cells are missing, such as {min(wanted, key=str)}: run it")


def _not_finite(value: Any) -> str | None:
    """Where in it something is neither text nor a finite number; None: nowhere."""
    if isinstance(value, int | float):
        return None if math.isfinite(value) else ""
    if isinstance(value, dict | list | tuple):
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inside:
            if type(item) is float and math.isfinite(item):  # nearly all are
                continue
            if (bad := _not_finite(item)) is not None:
                return (f".{key}" if isinstance(value, dict) else f"[{key}]") + bad
        return None
    return None if isinstance(value, str) else ""
