"""Tasks other than queues: from the spaces of a Gymnasium environment to features and a head, and back to actions.

`docs/tasks.md` tells which spaces have which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.encoders import GraphEncoder
from l4s_gym.agents.llm.settings import Feature, LLMConfig, Task
from l4s_gym.agents.training import merged
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError

MASK: Final = "action_mask"
_WHOLE: Final = "observation"
_GRAPH: Final = ("adjacency", "nodes")
_FORBIDDEN: Final = -1e9
"""Logit of a choice that is not allowed: finite, so that a hidden step, where none is, stays finite."""


# -- from spaces


def described(observed: spaces.Space[Any], acted: spaces.Space[Any]) -> dict[str, Any]:
    """Return spaces as plain values: tables for the configuration's `model`.

    Raises:
        L4SError: There is no feature or head for a space.
    """
    parts = dict(observed.spaces) if isinstance(observed, spaces.Dict) else {_WHOLE: observed}
    features = tuple(_feature(name, part) for name, part in parts.items() if name != MASK)
    nodes = [feature.shape[0] for feature in features if feature.kind == "graph"]
    if isinstance(acted, spaces.Discrete) and not acted.start:
        task = Task("categorical", (int(acted.n),), MASK in parts)
    elif isinstance(acted, spaces.MultiDiscrete) and acted.nvec.shape == (2,) and nodes == [acted.nvec[0]]:
        task = Task("pointer", tuple(acted.nvec.tolist()), MASK in parts)
    elif isinstance(acted, spaces.Box) and MASK not in parts:
        task = Task("regression", acted.shape)
    else:
        raise L4SError(f"actions {acted}: no head is for them: docs/tasks.md has those that have one")
    found: dict[str, Any] = msgspec.to_builtins({"encoder": {"features": features, "unknown": ""}, "task": task})
    return found


def _feature(name: str, space: spaces.Space[Any]) -> Feature:
    kinds = {0: "series", 1: "vector", 2: "image", 3: "image"}
    if isinstance(space, spaces.Dict) and set(space) == set(_GRAPH):
        rows, columns = (space[each].shape or () for each in _GRAPH)
        return Feature(name, "graph", (rows[0], rows[1] + columns[1]))
    if isinstance(space, spaces.Discrete):
        return Feature(name, "vector", (int(space.n),))
    if isinstance(space, spaces.Box | spaces.MultiBinary) and len(space.shape) in kinds:
        return Feature(name, kinds[len(space.shape)], space.shape)
    raise L4SError(f"observation {name!r}: {space}: no encoder is for it: docs/tasks.md has those that have one")


def flat(features: Sequence[Feature], masked: bool, observation: Any) -> npt.NDArray[np.float32]:
    """Return an observation as the columns (D,) of the features, and after them the mask."""
    given: Mapping[str, Any] = observation if isinstance(observation, Mapping) else {_WHOLE: observation}
    parts: list[Any] = []
    for feature in features:
        value = given[feature.name]
        if feature.kind == "graph":
            value = np.concatenate([value[name] for name in _GRAPH], axis=1)
        elif np.ndim(value) < len(feature.shape):
            value = np.arange(feature.size) == value
        parts.append(np.ravel(value))
    parts += [given[MASK]] if masked else []
    return np.concatenate(parts, dtype=np.float32)


def configured(given: Mapping[str, Any], episodes: Sequence[Trajectory]) -> dict[str, Any]:
    """Return a configuration with the spaces of episodes (`described`) in its table `model`.

    Raises:
        L4SError: The episodes are of different spaces.
    """
    first = episodes[0].about["task"]
    if any(each.about["task"] != first for each in episodes):
        raise L4SError("episodes of different spaces: train on those of one task")
    return {**given, "model": merged(given.get("model", {}), first)}


# -- heads


class Head(nn.Module):
    """What a model tells of the next action: logits (..., choices), or numbers (..., n), flat."""

    def __init__(self, config: LLMConfig, width: int) -> None:
        """Build the head of `config.task`."""
        super().__init__()
        assert config.task is not None
        self.task, self._mask, hidden = config.task, config.encoder.size, config.encoder.hidden
        self.points = self.task.head == "pointer"
        self.out = nn.Linear(hidden if self.points else width, self.task.shape[-1] if self.points else self.task.size)
        if self.points:
            names = [feature.kind for feature in config.encoder.features]
            place = names.index("graph")
            self.first = sum(feature.size for feature in config.encoder.features[:place])
            self.feature = config.encoder.features[place]
            items, values = self.feature.shape
            self.graph = GraphEncoder((self.feature,), config.encoder)
            self.ask, self.item = nn.Linear(width, hidden), nn.Linear(hidden + values - items, hidden)

    def forward(self, hidden: Tensor, observations: Tensor) -> Tensor:
        """Tell of steps (B, K, width), and what was observed there (B, K, D)."""
        if self.points:
            items = self.feature.shape[0]
            graph = observations[..., self.first : self.first + self.feature.size]
            graph = graph.reshape(*graph.shape[:2], 1, *self.feature.shape)
            nodes = torch.cat((self.graph.nodes(graph), graph[..., items:]), -1)[:, :, 0]  # (B, K, items, ...)
            found: Tensor = self.out(F.gelu(self.item(nodes) + self.ask(hidden)[:, :, None])).flatten(-2)
        else:
            found = self.out(hidden)
        if self.task.masked:
            allowed = observations[..., self._mask :] > 0
            found = found.masked_fill(~allowed.repeat_interleave(self.task.options, -1), _FORBIDDEN)
        return found


def labels(task: Task, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return actions (T, ...) as the numbers of choices (T,), or as they are (T, n)."""
    if task.head == "regression":
        return actions.reshape(len(actions), -1)
    return np.ravel_multi_index(actions.T, task.shape) if task.head == "pointer" else actions


def actions_of(task: Task, found: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `labels` as actions of the environment (n, ...)."""
    if task.head == "regression":
        return found.reshape(-1, *task.shape)
    return np.stack(np.unravel_index(found, task.shape), axis=-1) if task.head == "pointer" else found


def metrics(task: Task, told: npt.NDArray[np.float64], wanted: npt.NDArray[Any]) -> dict[str, Any]:
    """Compare probabilities (T, choices) or numbers (T, n) with `labels`."""
    if task.head == "regression":
        error = told - wanted
        r2 = 1.0 - (error**2).mean() / max(float(wanted.var()), 1e-12)
        return {"steps": len(wanted), "absolute_error": float(np.abs(error).mean()), "r2": float(r2)}
    return {
        "steps": len(wanted),
        "cross_entropy": float(-np.log(told[np.arange(len(told)), wanted].clip(1e-12)).mean()),
        "accuracy": float((told.argmax(axis=1) == wanted).mean()),
        "majority": float(np.bincount(wanted, minlength=math.prod(task.shape)).max() / len(wanted)),
    }
