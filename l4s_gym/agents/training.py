"""Code that all trainings share: configurations, interruption and checkpoints.

A learner is a module (or object) with a function `train`, as `Learner` describes it. Its configuration is a TOML file
in `agents/<name>/config.toml`: the keys are the full setting, the table `[small]` holds what is different in the
small one. The learner writes the agent's folder by `l4s_gym.agents.saved.write`.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from l4s_gym import shipped
from l4s_gym.agents import saved
from l4s_gym.agents.registry import kind_of
from l4s_gym.data.files import atomic_write, read_error
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError
from l4s_gym.extras import silence_gym
from l4s_gym.sim import fingerprint
from l4s_gym.tables import parse_setting, read_toml

Progress = Callable[[float], None]
Say = Callable[[str], None]
Plain = dict[str, Any]

FILE: Final = "config.toml"
CHECKPOINT: Final = "checkpoint.pt"
"""Name of the checkpoint in the agent's folder; it is removed when the agent is written."""


class Learner(Protocol):
    """Trains an agent: offline from a dataset, or online in scenarios (`AgentKind.online`)."""

    def train(
        self,
        source: str,
        config: Plain,
        out: Path,
        *,
        resume: bool = False,
        progress: Progress | None = None,
        say: Say | None = None,
    ) -> Plain:
        """Train, and write the agent's folder.

        Args:
            source: Id of a Minari dataset on this machine; of an online kind the scenarios, as `load_all` takes them:
                ``suite:train``, ``random:train``. A kind that `starts_offline` takes its dataset as ``dataset=ID``.
            config: Configuration of this learner; an unknown key is refused.
            out: Folder of the agent. A training that is interrupted leaves a checkpoint in it.
            resume: Continue from the checkpoint in `out`; the result is that of an uninterrupted training.
            progress: Called with the share of the training that is done.
            say: Called with each line of text for the user.

        Returns:
            What is written as `training` into the folder: dataset, or `scenarios` and ``online`` of True; steps,
            seconds, and `metrics`, offline on the held-out part as `l4s_gym.agents.metrics.classification` gives them.

        Raises:
            KeyboardInterrupt: It was interrupted; the checkpoint is written.
            L4SError: The configuration, dataset or folder cannot be used.
        """
        ...


def learner(name: str) -> Learner:
    """Load the learner of a kind of agent (`l4s_gym.agents.registry.kind_of`).

    Raises:
        L4SError: There is none, or a package that it needs is not installed.
    """
    kind = kind_of(name)
    silence_gym()
    try:
        found: Learner = kind.load_learner()
    except ModuleNotFoundError as error:
        raise L4SError(f"train {name}: no module {error.name!r}: pip install 'l4s-gym[all]'") from error
    return found


def sources(name: str, dataset: str = "", scenarios: str = "") -> tuple[str, Plain]:
    """Return what a kind of agent learns from, as the first argument of its learner's `train` and as further ones.

    Raises:
        L4SError: It learns from something else.
    """
    kind = kind_of(name)
    if not kind.online:
        if scenarios or not dataset:
            raise L4SError(f"train {name}: learns offline: give a dataset, and no scenarios")
        return dataset, {}
    if not scenarios:
        raise L4SError(f"train {name}: learns online: give scenarios, such as random:train")
    if dataset and not kind.starts_offline:
        raise L4SError(f"train {name}: learns online alone: give scenarios, and no dataset")
    return scenarios, {"dataset": dataset} if dataset else {}


def config_file(name: str) -> Path | None:
    """Return the configuration file of a learner that ships; None: there is none."""
    path = shipped.folder("agents") / name / FILE
    return path if path.is_file() else None


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> Plain:
    """Return `base` with the values of `more` in their place; tables are merged."""
    found = dict(base)
    for name, value in more.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else value
    return found


def _setting(text: str) -> Plain:
    """Parse ``a.b=value`` as a table."""
    name, parsed = parse_setting(text)
    for key in reversed(name.split(".")):
        parsed = {key: parsed}
    table: Plain = parsed
    return table


def load_config(name: str, path: Path | None = None, *, small: bool = False, settings: Sequence[str] = ()) -> Plain:
    """Read the configuration of a training.

    Args:
        name: Name of the learner.
        path: A TOML file; None: `config_file`, and without it the learner's own defaults.
        small: Apply the table `[small]`.
        settings: ``key=value`` each, applied last.

    Raises:
        L4SError: The file cannot be read, or has no `[small]`; a setting has no such form.
    """
    kind_of(name)
    chosen = path or config_file(name)
    config = {} if chosen is None else read_toml(chosen)
    different = config.pop("small", None)
    if small:
        if not isinstance(different, dict):
            raise L4SError(f"--small: {chosen or name} has no [small]: give --config FILE")
        config = merged(config, different)
    for text in settings:
        config = merged(config, _setting(text))
    return config


def read_dataset(dataset_id: str, form: str | None = None) -> list[Trajectory]:
    """Read all episodes of a dataset, and check that it has this version of the schema.

    Args:
        dataset_id: Its id.
        form: The action form (`l4s_gym.forms`) that it must be of; None: any.

    Raises:
        L4SError: There is none of this id, it is stale, of another form, or something is wrong with it.
    """
    from l4s_gym.data import minari_io

    dataset = minari_io.load(dataset_id)
    minari_io.check_simulator(dataset)
    if form is not None:
        minari_io.check_form(dataset, form)
    return list(minari_io.read_valid(dataset))


def options_of(episodes: Sequence[Trajectory]) -> dict[str, dict[str, Any]]:
    """Return the options of the discipline, in a table of its name, that are not the defaults in a dataset's episodes.

    Raises:
        L4SError: They differ between the episodes.
    """
    from l4s_gym.sim.options import Options

    defaults, found = msgspec.to_builtins(Options()), []
    for each in episodes:
        aqm = str(each.about.get("aqm"))
        own = msgspec.json.decode(each.about.get("scenario_json", b"{}")).get("options", {}).get(aqm, {})
        changed = {name: value for name, value in own.items() if value != defaults[aqm][name]}
        found.append({aqm: changed} if changed else {})
    if any(each != found[0] for each in found):
        raise L4SError("options of the discipline differ between the episodes: use one in which they are the same")
    return found[0]


def simulator_of(dataset_id: str) -> str:
    """Return which simulator made a dataset, in the form of an agent's `training`."""
    from l4s_gym.data import minari_io

    return minari_io.simulator_in(minari_io.load(dataset_id).storage.metadata)


def form_of(dataset_id: str) -> str:
    """Return the action form (`l4s_gym.forms`) of a dataset."""
    from l4s_gym.data import minari_io

    return minari_io.form_of(minari_io.load(dataset_id))


def trained_interval(training: Mapping[str, Any]) -> int:
    """Return the decision interval, in packets, that an agent was trained for (`stride` in older ones)."""
    return int(training.get("decision_interval", training.get("stride", 1)))


def peak_memory() -> int:
    """Return the most memory that this process has held so far, bytes.

    Linux knows it for this program; `getrusage` includes the program that started it.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stop:
    """Flag `asked`, set once SIGINT or SIGTERM arrives."""

    def __init__(self) -> None:
        self.asked = False


_AT_ONCE_S: Final = 5.0
"""Time in which repeated presses of Ctrl-C count as one, s."""


@contextmanager
def interruptible(clock: Callable[[], float] = time.monotonic) -> Iterator[Stop]:
    """Let Ctrl-C (and SIGTERM) only ask to stop, so that each step is done fully or not at all; a later one kills.

    One within `_AT_ONCE_S` of the first is ignored. Outside of the main thread nothing changes.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked: list[float] = []

    def ask(number: int, _: object) -> None:
        if stop.asked and clock() - asked[0] > _AT_ONCE_S:
            raise KeyboardInterrupt
        if not stop.asked:
            asked.append(clock())
        stop.asked = True

    try:
        for number in before:
            signal.signal(number, ask)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_folder(out: Path, *, resume: bool) -> Path:
    """Check the folder of a training; return the path of its checkpoint.

    Raises:
        L4SError: It holds something else; there is a checkpoint but no `resume`, or the other way round.
    """
    saved.check_target(out)
    path = out / CHECKPOINT
    if resume and not path.is_file():
        raise L4SError(f"{out}: holds no checkpoint to go on from: train without --resume")
    if path.is_file() and not resume:
        raise L4SError(f"{out}: holds an unfinished training: go on by --resume, or remove {path}")
    return path


def start_folder(out: Path, *, resume: bool) -> Path:
    """Make the folder of a training; return the path of its checkpoint.

    Raises:
        L4SError: `check_folder` refuses it, or it cannot be made.
    """
    path = check_folder(out, resume=resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise L4SError(f"{out}: cannot be made ({error.strerror}): choose another folder") from error
    return path


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint: tensors and plain data, by `torch.save`; the last one is kept until this one is complete."""
    import torch

    try:
        with atomic_write(path) as file:
            torch.save(dict(state), file)
    except OSError as error:
        remedy = "free some space; the last checkpoint is as it was"
        raise L4SError(f"{path}: cannot be written ({error.strerror or error}): {remedy}") from error
    except RuntimeError as error:  # raised by PyTorch's writer if the disk is full
        raise L4SError(f"{path}: cannot be written ({error}): free some space") from error


def load_checkpoint(path: Path, **same: Any) -> Plain:
    """Read a checkpoint without running code from it.

    Args:
        path: The file.
        same: Entries that must not differ, such as ``config=...``.

    Raises:
        L4SError: It is damaged, or of another training.
    """
    import pickle

    import torch

    try:
        state: Plain = torch.load(path, map_location="cpu", weights_only=True)
        for name, value in same.items():
            if name == "simulator" and state.get(name) != value:
                was = state.get(name, fingerprint.NONE)
                raise L4SError(
                    f"{path}: is from data of simulator {was}, the dataset is from {value}: remove it and start again"
                )
            if _text(state[name]) != _text(value):
                raise L4SError(f"{path}: is from a training with another {name}: resume with the same, or start again")
    except OSError as error:
        raise read_error(path, error) from error
    except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError, TypeError) as error:
        raise L4SError(f"{path}: is damaged ({error}): remove it and start again") from error
    return state


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
