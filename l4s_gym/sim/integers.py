"""Integer models of packets inside the engine: the numbers of `l4s_gym.bridge.model`, which the kernel computes too."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import carray

from l4s_gym.schema import DROP, MARK, OBS_SCALE
from l4s_gym.sim.jit import jit, shared
from l4s_gym.sim.memory import opener, pointer

_FEATURES: Final = len(OBS_SCALE)
_ONE: Final = 1 << 31
_WIDEST: Final = 256
_SCALE = OBS_SCALE.copy()

# Layout in a packed policy; `_at` is an offset in bytes from its start.
_HEAD: Final = np.dtype(
    [
        ("powers_at", "i8"), ("outputs", "i8"), ("roots", "i8"), ("nodes", "i8"), ("nodes_at", "i8"), ("leaves", "i8"),
        ("leaves_at", "i8"), ("layers", "i8"), ("layers_at", "i8"), ("cells", "i8", (_FEATURES,)),
        ("cells_at", "i8", (_FEATURES,)), ("inputs_at", "i8", (_FEATURES,)),
    ]
)  # fmt: skip
_LAYER: Final = np.dtype([(name, "i8") for name in ("weights_at", "biases_at", "shifts_at", "inputs", "outputs")])
_head_at = opener("integer_model", _HEAD)
_layer_at = opener("integer_layer", _LAYER)
_LAYER_SIZE = _LAYER.itemsize


def pack(model: Any, memory: Any) -> int:
    """Pack a `Model` of the packet form; return the offset of its head."""
    from l4s_gym.bridge.fixed import POWERS

    head, body = np.zeros(1, _HEAD), model.body
    head["powers_at"], head["outputs"] = memory.add(POWERS), model.outputs_of_body
    if model.inputs.scaled is None:
        nodes = np.stack([body.feature, body.threshold, body.low], axis=1).astype(np.int64)
        head["roots"], head["nodes"], head["nodes_at"] = body.roots, len(nodes), memory.add(nodes)
        head["leaves"], head["leaves_at"] = body.leaves, memory.add(body.values.astype(np.int64))
        return int(memory.add(head))
    for k, (cuts, values) in enumerate(zip(model.inputs.scaled.thresholds, model.inputs.scaled.values, strict=True)):
        head["cells"][0, k], head["cells_at"][0, k] = len(cuts), memory.add(cuts)
        head["inputs_at"][0, k] = memory.add(values.astype(np.int64))
    rows = np.zeros(len(body.weights), _LAYER)
    for row, weights, biases, shifts in zip(rows, body.weights, body.biases, body.shifts, strict=True):
        row["outputs"], row["inputs"] = weights.shape
        row["weights_at"], row["biases_at"] = memory.add(weights.astype(np.int32)), memory.add(biases)
        row["shifts_at"] = memory.add(shifts.astype(np.int64))
    head["layers"], head["layers_at"] = len(rows), memory.add(rows)
    return int(memory.add(head))


@jit
def _longs(address: int, count: int) -> Any:
    return carray(pointer(address), (count,), np.int64)


@jit
def _add_trees(at: int, head: Any, seen: Any, values: Any) -> None:
    nodes = carray(pointer(at + head.nodes_at), (head.nodes, 3), np.int64)
    leaves = carray(pointer(at + head.leaves_at), (head.leaves, head.outputs), np.int64)
    for root in range(head.roots):
        node = root
        while nodes[node, 0] < _FEATURES:
            node = nodes[node, 2] + (seen[nodes[node, 0]] > nodes[node, 1])
        for k in range(head.outputs):
            values[k] += leaves[nodes[node, 2], k]


@jit
def _cell(cuts: Any, count: int, number: int) -> int:
    """Return how many of rising thresholds are not above a number."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if number >= cuts[middle]:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def _apply_layers(at: int, head: Any, seen: Any, values: Any) -> None:
    x = np.empty(_WIDEST, np.int64)
    y = np.empty(_WIDEST, np.int64)
    for k in range(_FEATURES):
        count = head.cells[k]
        cell = _cell(_longs(at + head.cells_at[k], count), count, seen[k])
        x[k] = _longs(at + head.inputs_at[k], count + 1)[cell]
    for k in range(head.layers):
        layer = _layer_at(at + head.layers_at + k * _LAYER_SIZE)
        weights = carray(pointer(at + layer.weights_at), (layer.outputs, layer.inputs), np.int32)
        biases, shifts = _longs(at + layer.biases_at, layer.outputs), _longs(at + layer.shifts_at, layer.outputs)
        for i in range(layer.outputs):
            total = biases[i]
            for j in range(layer.inputs):
                total += weights[i, j] * x[j]
            y[i] = total
        if k + 1 == head.layers:
            for i in range(layer.outputs):
                values[i] = (y[i] * 64) >> shifts[i]
        else:
            for i in range(layer.outputs):
                x[i] = min(max(y[i] >> shifts[i], 0), 65535)


@jit
def _power(powers: Any, e: int) -> int:
    """Return 2^e of an exponent in 2^-16 up to 0, in 2^-31."""
    down = -e >> 16
    part = -e - (down << 16)
    step = part >> 10
    found = powers[step] - ((powers[step] - powers[step + 1]) * (part & 1023) >> 10)
    return (found + ((1 << down) >> 1)) >> down


@shared
def scores(at: int, head_at: int, obs: Any) -> tuple[float, float, float]:
    """Return the probabilities of the three actions by the model whose head is at an offset, for an observation."""
    head = _head_at(at + head_at)
    seen = np.empty(_FEATURES, np.int64)
    for k in range(_FEATURES):
        seen[k] = np.int64(np.rint(np.float64(obs[k]) * _SCALE[k]))
    values = np.zeros(3, np.int64)
    if head.layers == 0:
        _add_trees(at, head, seen, values)
    else:
        _apply_layers(at, head, seen, values)
    if head.outputs == 3:
        powers = _longs(at + head.powers_at, 65)
        top = max(values[0], values[1], values[2])
        total = 0
        for k in range(3):
            below = values[k] - top
            values[k] = _power(powers, below) if below > -(31 << 16) else 0
            total += values[k]
        drop, mark = (values[DROP] << 31) // total, (values[MARK] << 31) // total
    else:
        drop = min(max(2 * values[0], 0), _ONE)
        mark = min(max(2 * values[1], 0), _ONE - drop)
    return (_ONE - drop - mark) / _ONE, drop / _ONE, mark / _ONE
