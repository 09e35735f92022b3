"""Behaviour cloning with d3rlpy: the plainest imitation of the queue discipline.

Maximum likelihood without any weights on the classes: the probabilities that come out are calibrated, so
`sample` and `diffuse` mark and drop as often as the discipline did. d3rlpy's penalty on the size of the logits
(`beta`, 0.5 by default) would pull them towards 1/3 and is off.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from l4s_gym.agents.protocol import (
    Actions,
    DecisionRule,
    Floats,
    Observations,
    check_batch,
)
from l4s_gym.data.d3rlpy_io import import_d3rlpy, quiet
from l4s_gym.data.files import PathLike, atomic_write, read_error
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, OBSERVED, SCHEMA_VERSION

Progress = Callable[[int, int], None]

FILE: Final = "bc.npz"
"""Name of the file in the folder of a trained agent."""
_WEIGHT: Final = "weight:"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch and let it run on one thread (faster for such small batches), until the block ends."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class BCAgent:
    """A trained imitator.

    Attributes:
        algo: The `d3rlpy.algos.DiscreteBC`.
    """

    def __init__(self, algo: Any, rule: str = "sample", name: str = "bc") -> None:
        """Wrap a built algorithm.

        Args:
            algo: The `d3rlpy.algos.DiscreteBC`, built.
            rule: `sample`, `argmax` or `diffuse`.
            name: Name in results.
        """
        if algo.impl is None:
            raise L4SError("bc: the algorithm is not built: train it or load it")
        self._rule = DecisionRule(rule)
        self.algo, self.rule, self.name = algo, rule, name
        self._policy = algo.impl.modules.imitator

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes. PyTorch then runs on one thread: more are slower for such small batches."""
        import torch

        torch.set_num_threads(1)
        self._policy.eval()
        self._rule.reset(n, seed)

    def probabilities(self, obs: Observations) -> Floats:
        """Probabilities of the actions (n, 3) for observations (n, 8)."""
        import torch

        with torch.no_grad():
            x = torch.from_numpy(np.array(obs, np.float32))  # a copy: the caller's array may be read-only
            policy = self._policy(self.algo.observation_scaler.transform(x))
            return np.asarray(policy.probs.double().numpy(), np.float64)

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Actions (n,) by the decision rule; rewards are not used."""
        check_batch(obs, self._rule.n)
        return self._rule.decide(self.probabilities(obs), obs[:, 0])

    def cost(self) -> dict[str, float]:
        """Numbers of parameters."""
        counts = [(p.numel(), p.requires_grad) for p in self._policy.parameters()]
        return {
            "parameters": float(sum(count for count, _ in counts)),
            "trainable_parameters": float(sum(count for count, trainable in counts if trainable)),
        }

    def save(self, folder: PathLike) -> Path:
        """Write configuration and weights to one file in a folder, which is replaced as a whole or not at all.

        Returns:
            The file.

        Raises:
            L4SError: The folder cannot be written.
        """
        from d3rlpy.base import LearnableConfigWithShape

        config = LearnableConfigWithShape(
            observation_shape=self.algo.impl.observation_shape,
            action_size=self.algo.impl.action_size,
            config=self.algo.config,
        )
        weights = {_WEIGHT + key: value.cpu().numpy() for key, value in self._policy.state_dict().items()}
        path = Path(folder) / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise L4SError(f"{folder}: cannot be made ({error.strerror}): choose another folder") from error
        with atomic_write(path) as file:
            np.savez(file, config=np.array(config.serialize()), schema_version=np.int64(SCHEMA_VERSION), **weights)
        return path

    @classmethod
    def load(cls, folder: PathLike, rule: str = "sample") -> BCAgent:
        """Read an agent that was saved; nothing in the file is executed.

        Args:
            folder: Its folder.
            rule: `sample`, `argmax` or `diffuse`.

        Raises:
            L4SError: There is no such file, it is damaged, or d3rlpy is not installed.
        """
        path = Path(folder) / FILE
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                stored = {key: archive[key] for key in archive.files}
        except OSError as error:
            raise read_error(path, error) from error
        except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
            raise L4SError(f"{path}: is damaged ({error}): train it again") from error
        if int(stored.get("schema_version", -1)) != SCHEMA_VERSION:
            raise L4SError(f"{path}: is not of version {SCHEMA_VERSION} of the schema: train it again")
        return cls(_restore(path, stored), rule, f"bc:{os.path.basename(os.path.realpath(folder))}")


def _restore(path: Path, stored: dict[str, Any]) -> Any:
    """The algorithm from configuration and weights."""
    import_d3rlpy()
    import torch
    from d3rlpy.base import LearnableConfigWithShape

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            algo = LearnableConfigWithShape.deserialize(str(stored["config"])).create(device=False)
        weights = {
            key.removeprefix(_WEIGHT): torch.from_numpy(value)
            for key, value in stored.items()
            if key.startswith(_WEIGHT)
        }
        algo.impl.modules.imitator.load_state_dict(weights)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise L4SError(f"{path}: does not fit the installed d3rlpy ({error}): train it again") from error
    return algo


def _check_shape(buffer: Any) -> None:
    info = buffer.dataset_info
    if tuple(info.observation_signature.shape[0]) != (len(OBSERVED),) or info.action_size != len(ACTIONS):
        raise L4SError("bc: the buffer is not of 8 features and 3 actions: make it by d3rlpy_io.replay_buffer")


def _batch(d3rlpy: Any, observations: Observations, actions: Any) -> Any:
    """A mini-batch of d3rlpy, of which an imitator reads observations (B, 8) and actions (B, 1) alone.

    `fit` would draw it step by step in Python, which takes as long as the gradient, and leave out last steps.
    """
    unused = np.zeros((len(actions), 1), np.float32)
    return d3rlpy.dataset.TransitionMiniBatch(
        observations=observations,
        actions=actions,
        rewards=unused,
        next_observations=observations,
        next_actions=actions,
        terminals=unused,
        intervals=unused,
        transitions=[],
    )


def train_bc(
    buffer: Any,
    *,
    steps: int,
    seed: int,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    rule: str = "sample",
    progress: Progress | None = None,
) -> BCAgent:
    """Train an imitator on the CPU; the same buffer, arguments and seed give the same agent.

    Args:
        buffer: A replay buffer of `l4s_gym.data.d3rlpy_io.replay_buffer`.
        steps: Gradient steps.
        seed: Of the weights and the batches.
        batch_size: Steps in a batch.
        learning_rate: Of Adam.
        rule: Decision rule of the agent.
        progress: Called after each gradient step with its number and `steps`.

    Returns:
        The agent. Its observations are standardised with mean and deviation of the buffer's.

    Raises:
        L4SError: d3rlpy is not installed, or an argument makes no sense.
    """
    d3rlpy = import_d3rlpy()
    if steps < 1 or batch_size < 1:
        raise L4SError(f"bc: steps={steps}, batch_size={batch_size}: give 1 or more")
    _check_shape(buffer)
    observations = np.concatenate([episode.observations for episode in buffer.episodes])  # (T, 8)
    actions = np.concatenate([episode.actions for episode in buffer.episodes]).astype(np.float32)  # (T, 1)
    config = d3rlpy.algos.DiscreteBCConfig(
        batch_size=batch_size,
        learning_rate=learning_rate,
        beta=0.0,
        observation_scaler=d3rlpy.preprocessing.StandardObservationScaler(
            mean=observations.mean(axis=0, dtype=np.float64).astype(np.float32),
            std=observations.std(axis=0, dtype=np.float64).astype(np.float32),
        ),
    )
    rng = np.random.default_rng(seed)
    with quiet(), _seeded(seed):
        algo = config.create(device=False)
        algo.create_impl((len(OBSERVED),), len(ACTIONS))
        for step in range(1, steps + 1):
            index = rng.integers(len(observations), size=batch_size)
            algo.update(_batch(d3rlpy, observations[index], actions[index]))
            if progress is not None:
                progress(step, steps)
    return BCAgent(algo, rule)
