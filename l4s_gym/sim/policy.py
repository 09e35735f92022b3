"""Policies inside the engine: from an observation to a decision without Python.

A `Policy` is plain arrays. Packed (`Policy.packed`) it is one block of memory without addresses, which the compiled
functions below read; they serve the engine (`decide`) and agents outside it (`Policy.probabilities`), so that an
agent decides the same on both sides, bit for bit. `l4s_gym.agents.protocol` says how an agent offers its policy.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from l4s_gym.errors import L4SError, unknown
from l4s_gym.schema import ACTIONS, DROP, ENQUEUE, MARK, OBSERVED
from l4s_gym.sim import integers
from l4s_gym.sim.events import pcg64_uniform
from l4s_gym.sim.jit import entry, jit, shared
from l4s_gym.sim.layout import ARGMAX, RULES, SAMPLE
from l4s_gym.sim.memory import obs_of, opener, pointer, rule_of, store64

Floats = npt.NDArray[np.float64]

ACTIVATIONS: Final = ("relu", "tanh")
_INPUTS: Final = len(OBSERVED)
_OUTPUTS: Final = len(ACTIONS)
_WIDE, _NARROW = 64, 8
"""Outputs of a layer that are computed together: as many as all vector registers hold, and as one register holds."""

# Layout of a packed policy; `_at` is an offset in bytes from its start.
_HEAD: Final = np.dtype(
    [
        ("rule", "i8"), ("parts", "i8"), ("parts_at", "i8"), ("masked", "i8"), ("softmax", "i8"), ("corrects", "i8"),
        ("temperature", "f8"), ("epsilon", "f8"), ("least", "f8"), ("gamma", "f8"), ("weights", "f8", (_OUTPUTS,)),
    ]
)  # fmt: skip
_PART: Final = np.dtype(
    [
        ("trees", "i8"), ("first_at", "i8"), ("count", "i8"), ("tanh", "i8"), ("widest", "i8"),
        ("mean", "f4", (_INPUTS,)), ("scale", "f4", (_INPUTS,)),
    ]
)  # fmt: skip
_INTEGERS: Final = 2
"""`tanh` of an integer model, whose head is at `first_at`."""
_LAYER: Final = np.dtype([("weights_at", "i8"), ("bias_at", "i8"), ("inputs", "i8"), ("outputs", "i8")])
_NODE: Final = np.dtype(
    [
        ("threshold", "f8"), ("value", "f8", (_OUTPUTS,)), ("feature", "i4"), ("left", "i4"), ("right", "i4"),
        ("padding", "i4"),
    ]
)  # fmt: skip


class _Memory:
    """Grows a packed policy; each piece starts on a cache line."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, array: npt.NDArray[Any]) -> int:
        """Append an array; return its offset."""
        at = len(self.data)
        self.data += array.tobytes()
        self.data += bytes(-len(self.data) % 64)
        return at


@dataclass(frozen=True, eq=False)
class Network:
    """A perceptron in float32: standardised features, hidden layers with one activation, three outputs.

    Without a hidden layer it is linear.

    Attributes:
        layers: Weights (outputs, inputs), as in PyTorch, and biases (outputs,) of each layer; the first has 8 inputs,
            the last 3 outputs.
        activation: One of `ACTIVATIONS`, after each layer but the last.
        mean: Subtracted from the observation (8,); None: 0.
        scale: Divisor of the difference (8,); None: 1.
    """

    layers: tuple[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], ...]
    activation: str = "relu"
    mean: npt.NDArray[np.float32] | None = None
    scale: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        sizes = [_INPUTS, *(len(bias) for _, bias in self.layers)]
        shapes = [np.shape(weights) for weights, _ in self.layers]
        if not shapes or shapes != list(zip(sizes[1:], sizes[:-1], strict=True)) or sizes[-1] != _OUTPUTS:
            raise L4SError(f"network: layers of shapes {shapes}: give (h, {_INPUTS}), (i, h), ... ({_OUTPUTS}, k)")

    @classmethod
    def of(cls, module: Any, mean: Any = None, scale: Any = None) -> Network:
        """Make the perceptron of a PyTorch module: its linear layers in order, with ReLU or Tanh between them.

        Raises:
            L4SError: It has other layers, or two kinds of activation.
        """
        layers, between = [], set()
        for layer in module.modules():
            kind = type(layer).__name__
            if kind == "Linear":
                layers.append(tuple(part.detach().numpy().copy() for part in (layer.weight, layer.bias)))
            elif not any(True for _ in layer.children()):
                between.add(kind.lower())
        if len(between) > 1:
            raise L4SError(
                f"network: layers {', '.join(sorted(between))} between linear ones: build it with one of them"
            )
        return cls(tuple(layers), next(iter(between), "relu"), mean, scale)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(np.size(weights) + np.size(bias) for weights, bias in self.layers)

    def pack(self, memory: _Memory) -> npt.NDArray[np.void]:
        """Pack it; return a row of `_PART`."""
        rows = np.zeros(len(self.layers), _LAYER)
        for row, (weights, bias) in zip(rows, self.layers, strict=True):
            more = -len(bias) % _NARROW
            outputs = len(bias) + more
            columns = np.pad(np.asarray(weights, np.float32).T, ((0, 0), (0, more)))  # (inputs, outputs)
            wide = outputs - outputs % _WIDE
            edges = [*range(_WIDE, wide + 1, _WIDE), *range(wide + _NARROW, outputs, _NARROW)]
            blocks = [block.ravel() for block in np.split(columns, edges, axis=1)]
            row["inputs"], row["outputs"] = len(columns), outputs
            row["weights_at"] = memory.add(np.concatenate(blocks))
            row["bias_at"] = memory.add(np.pad(np.asarray(bias, np.float32), (0, more)))
        part = np.zeros(1, _PART)
        part["tanh"] = self.activation == "tanh"
        part["widest"] = max(_INPUTS, *rows["outputs"].tolist())
        part["mean"] = 0.0 if self.mean is None else self.mean
        part["scale"] = 1.0 if self.scale is None else self.scale
        part["first_at"], part["count"] = memory.add(rows), len(rows)
        return part


@dataclass(frozen=True, eq=False)
class Trees:
    """Decision trees on unscaled observations; the values of their leaves are added.

    Nodes are numbered across all trees. An observation goes left if ``obs[feature] <= threshold``.

    Attributes:
        feature: Feature that a node tests (N,).
        threshold: (N,) float64, in the unit of the observation.
        left: Number of the left child (N,); -1: the node is a leaf.
        right: Number of the right child (N,).
        value: Value of a leaf for each of the three actions (N, 3).
        roots: Number of each tree's first node (K,).
    """

    feature: npt.ArrayLike
    threshold: npt.ArrayLike
    left: npt.ArrayLike
    right: npt.ArrayLike
    value: npt.ArrayLike
    roots: npt.ArrayLike = (0,)

    @classmethod
    def constant(cls, value: npt.ArrayLike) -> Trees:
        """Make a tree of one leaf."""
        return cls([0], [0.0], [-1], [-1], np.asarray(value)[None])

    @classmethod
    def of(cls, fitted: Any) -> Trees:
        """Make the trees of a fitted `DecisionTreeClassifier` or `RandomForestClassifier`: their probabilities.

        Args:
            fitted: A model of scikit-learn, fitted on the environment's observations (T, 8); classes are among 0, 1, 2.
        """
        trees = [each.tree_ for each in getattr(fitted, "estimators_", [fitted])]
        classes = np.asarray(fitted.classes_, np.int64)
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("feature", "threshold", "left", "right")}
        values, roots, count = [], [], 0
        for tree in trees:
            share = np.zeros((tree.node_count, _OUTPUTS))
            share[:, classes] = tree.value[:, 0]
            values.append(share / share.sum(axis=1, keepdims=True) / len(trees))
            roots.append(count)
            for name, child in (("left", tree.children_left), ("right", tree.children_right)):
                parts[name].append(np.where(child < 0, -1, child + count))
            parts["feature"].append(tree.feature)
            parts["threshold"].append(tree.threshold)
            count += tree.node_count
        joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        return cls(**joined, value=np.concatenate(values), roots=roots)

    @property
    def parameters(self) -> int:
        """Number of nodes."""
        return np.size(self.feature)

    def pack(self, memory: _Memory) -> npt.NDArray[np.void]:
        """Pack it; return a row of `_PART`: the roots are before the nodes."""
        nodes = np.zeros(len(np.asarray(self.feature)), _NODE)
        for name in ("threshold", "value", "feature", "left", "right"):
            nodes[name] = getattr(self, name)
        roots = np.asarray(self.roots, np.int64)
        inner = nodes["left"] >= 0
        wrong = inner & ((nodes["left"] >= len(nodes)) | (nodes["right"] < 0) | (nodes["right"] >= len(nodes)))
        wrong |= inner & (np.minimum(nodes["left"], nodes["right"]) <= np.arange(len(nodes)))  # a walk without end
        wrong |= inner & ((nodes["feature"] < 0) | (nodes["feature"] >= _INPUTS))
        if wrong.any() or not len(roots) or roots.min() < 0 or roots.max() >= len(nodes):
            raise L4SError(f"trees: node {wrong.argmax()} or a root is wrong: children come after their parents")
        part = np.zeros(1, _PART)
        part["trees"], part["count"] = memory.add(nodes), len(roots)
        part["first_at"] = memory.add(roots)
        return part


@dataclass(frozen=True, eq=False)
class Integers:
    """An integer model of packets: its numbers are probabilities, so a policy of it has no softmax.

    Attributes:
        model: A `l4s_gym.bridge.model.Model` of the form `packet`.
    """

    model: Any

    @property
    def parameters(self) -> int:
        """Number of nodes, or of weights and biases."""
        return int(self.model.body.parameters)

    def pack(self, memory: _Memory) -> npt.NDArray[np.void]:
        """Pack it; return a row of `_PART`."""
        if self.model.form != "packet":
            raise L4SError(f"integer model: of the form {self.model.form!r}: the engine asks models of packets alone")
        part = np.zeros(1, _PART)
        part["tanh"], part["first_at"] = _INTEGERS, integers.pack(self.model, memory)
        return part


@dataclass(frozen=True, eq=False)
class Policy:
    """Map from observations to decisions.

    Attributes:
        parts: Networks, trees or integer models that score each action; the mean of several.
        rule: How probabilities become decisions: one of `l4s_gym.agents.RULES`.
        softmax: Whether the probabilities are the softmax of the scores; if not, they are the scores.
        temperature: Temperature of the softmax.
        epsilon: Share of the decisions drawn uniformly.
        mask: Another network: an action is never taken if its probability by this network is `flexibility` times
            that of the most probable action, or less (batch-constrained Q-learning).
        flexibility: See `mask`.
        weights: Divisors of the probabilities (3,), which are then normalised; None: no division
            (`l4s_gym.agents.imbalance`).
        gamma: Gamma of a focal loss to undo; 0: there was none.
    """

    parts: tuple[Network | Trees | Integers, ...]
    rule: str = "sample"
    softmax: bool = True
    temperature: float = 1.0
    epsilon: float = 0.0
    mask: Network | None = None
    flexibility: float = 1.0
    weights: tuple[float, float, float] | None = None
    gamma: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("decision rule", self.rule, RULES)
        if not self.parts or not self.temperature > 0.0:
            raise L4SError(f"policy: {len(self.parts)} parts, temperature={self.temperature}: give more than 0 of both")

    @functools.cached_property
    def packed(self) -> npt.NDArray[np.uint8]:
        """The policy as one block of memory, which starts on a cache line."""
        memory = _Memory()
        memory.add(np.zeros(1, _HEAD))
        every = self.parts if self.mask is None else (*self.parts, self.mask)
        parts_at = memory.add(np.concatenate([part.pack(memory) for part in every]))
        head = np.zeros(1, _HEAD)
        head["rule"], head["softmax"] = RULES.index(self.rule), self.softmax
        head["temperature"], head["epsilon"] = self.temperature, self.epsilon
        head["parts"], head["parts_at"] = len(self.parts), parts_at
        head["masked"], head["least"] = self.mask is not None, math.log(self.flexibility)
        head["corrects"] = self.weights is not None or self.gamma > 0.0
        head["weights"], head["gamma"] = self.weights or (1.0,) * _OUTPUTS, self.gamma
        memory.data[: _HEAD.itemsize] = head.tobytes()
        room = np.zeros(len(memory.data) + 64, np.uint8)
        start = -room.ctypes.data % 64
        block = room[start : start + len(memory.data)]
        block[:] = np.frombuffer(memory.data, np.uint8)
        return block

    @functools.cached_property
    def address(self) -> int:
        """Address of `packed`."""
        return int(self.packed.ctypes.data)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without derived values: a copy has its own memory."""
        return {name: value for name, value in vars(self).items() if name not in ("packed", "address")}

    def __str__(self) -> str:
        """Return the rule and a checksum of the whole policy."""
        return f"{self.rule} {hashlib.sha256(self.packed.tobytes()).hexdigest()[:12]}"

    def probabilities(self, obs: npt.NDArray[np.float32]) -> Floats:
        """Return the probabilities of the actions (n, 3) for observations (n, 8)."""
        given = np.array(obs, np.float32)
        out = np.empty((len(given), _OUTPUTS))
        _evaluate(self.address, given, out)
        return out


_head_at = opener("policy", _HEAD)
_part_at = opener("policy_part", _PART)
_layer_at = opener("policy_layer", _LAYER)
_node_at = opener("policy_node", _NODE)
_PART_SIZE = _PART.itemsize
_LAYER_SIZE = _LAYER.itemsize
_NODE_SIZE = _NODE.itemsize


@jit
def _floats(address: int, count: int) -> Any:
    return carray(pointer(address), (count,), np.float32)


@jit
def _tanh(x: Any) -> Any:
    """Return the hyperbolic tangent to about 1e-7: a quotient of polynomials (Eigen's) that the compiler vectorises."""
    x = min(max(x, np.float32(-7.9)), np.float32(7.9))
    s = x * x
    p = np.float32(-2.76076847742355e-16) * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06) * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return x * p / q


def _adder(lanes: int) -> Any:
    """Make a compiled function that computes `lanes` outputs of a layer in vector registers."""

    @intrinsic
    def add(typingctx: Any, weights: Any, bias: Any, x: Any, active: Any, count: Any, y: Any) -> Any:
        """Add bias and, for each active input in order, its weights times its value, to the address `y`."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, bias, x, active, count, y = args
            number, index = ir.FloatType(), ir.IntType(32)
            vector = ir.VectorType(number, lanes)
            undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(index, lanes), None)
            rows = builder.inttoptr(weights, vector.as_pointer())
            start = builder.load(builder.inttoptr(bias, vector.as_pointer()), align=32)
            held = cgutils.alloca_once_value(builder, start)
            with cgutils.for_range(builder, count) as loop:
                j = builder.load(builder.gep(builder.inttoptr(active, index.as_pointer()), [loop.index]))
                value = builder.load(builder.gep(builder.inttoptr(x, number.as_pointer()), [j]))
                row = builder.load(builder.gep(rows, [j]), align=32)
                lane = builder.insert_element(undefined, value, ir.Constant(index, 0))
                values = builder.shuffle_vector(lane, undefined, first)
                builder.store(builder.fadd(builder.load(held), builder.fmul(values, row)), held)
            builder.store(builder.load(held), builder.inttoptr(y, vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), codegen

    return add


_add_wide = _adder(_WIDE)
_add_narrow = _adder(_NARROW)


@jit
def _layer(at: int, layer: Any, x_at: int, active_at: int, y_at: int) -> None:
    """Compute the outputs of a layer before the activation; inputs of 0, half of those after ReLU, cost nothing.

    Each output adds its inputs in order: the result has the same bits in every caller.
    """
    bits = carray(pointer(x_at), (layer.inputs,), np.int32)  # faster to compare than floats
    active = carray(pointer(active_at), (layer.inputs,), np.int32)
    count = 0
    for j in range(layer.inputs):
        active[count] = j
        count += bits[j] != 0
    weights, bias = at + layer.weights_at, at + layer.bias_at
    o = 0
    while o + _WIDE <= layer.outputs:
        _add_wide(weights + 4 * o * layer.inputs, bias + 4 * o, x_at, active_at, count, y_at + 4 * o)
        o += _WIDE
    while o < layer.outputs:
        _add_narrow(weights + 4 * o * layer.inputs, bias + 4 * o, x_at, active_at, count, y_at + 4 * o)
        o += _NARROW


@jit
def _network_scores(at: int, part: Any, obs: Any) -> tuple[float, float, float]:
    widest = part.widest
    room = np.empty(3 * widest, np.float32)  # inputs, outputs, indices of nonzero inputs
    x_at = room.ctypes.data
    y_at, active_at = x_at + 4 * widest, x_at + 8 * widest
    x, y = _floats(x_at, widest), _floats(y_at, widest)
    for k in range(_INPUTS):
        x[k] = (obs[k] - part.mean[k]) / part.scale[k]
    last = part.count - 1
    for k in range(part.count):
        layer = _layer_at(at + part.first_at + k * _LAYER_SIZE)
        _layer(at, layer, x_at, active_at, y_at)
        if k < last:
            if part.tanh:
                for o in range(layer.outputs):
                    x[o] = _tanh(y[o])
            else:
                for o in range(layer.outputs):
                    x[o] = max(y[o], np.float32(0.0))
    scores = room[widest : widest + _OUTPUTS]  # keeps the memory alive until here
    return np.float64(scores[0]), np.float64(scores[1]), np.float64(scores[2])


@jit
def _tree_scores(at: int, part: Any, obs: Any) -> tuple[float, float, float]:
    s0, s1, s2 = 0.0, 0.0, 0.0
    roots = carray(pointer(at + part.first_at), (part.count,), np.int64)
    for k in range(part.count):
        node = _node_at(at + part.trees + roots[k] * _NODE_SIZE)
        while node.left >= 0:
            after = node.left if obs[node.feature] <= node.threshold else node.right
            node = _node_at(at + part.trees + after * _NODE_SIZE)
        s0 += node.value[0]
        s1 += node.value[1]
        s2 += node.value[2]
    return s0, s1, s2


@jit
def _scores(at: int, part: Any, obs: Any) -> tuple[float, float, float]:
    if part.trees:
        return _tree_scores(at, part, obs)
    if part.tanh == _INTEGERS:
        return integers.scores(at, part.first_at, obs)
    return _network_scores(at, part, obs)


@jit
def _undo_focal(p: float, gamma: float) -> float:
    rest = max(1.0 - p, 1e-12)
    kept = max(p, 1e-300)
    return p / (rest**gamma - gamma * rest ** (gamma - 1.0) * kept * math.log(kept))


@shared
def _probabilities(at: int, obs: Any) -> tuple[float, float, float]:
    """Return the probabilities of the three actions by the packed policy at an address, for one observation (8,)."""
    head = _head_at(at)
    p0, p1, p2 = 0.0, 0.0, 0.0
    s0, s1, s2 = 0.0, 0.0, 0.0
    for k in range(head.parts + head.masked):
        s0, s1, s2 = _scores(at, _part_at(at + head.parts_at + k * _PART_SIZE), obs)
        if k < head.parts:
            p0, p1, p2 = p0 + s0, p1 + s1, p2 + s2
    if head.parts > 1:
        p0, p1, p2 = p0 / head.parts, p1 / head.parts, p2 / head.parts
    if head.softmax:
        p0, p1, p2 = p0 / head.temperature, p1 / head.temperature, p2 / head.temperature
        if head.masked:  # the last one of the parts
            least = max(s0, s1, s2) + head.least
            p0 = -np.inf if s0 <= least else p0
            p1 = -np.inf if s1 <= least else p1
            p2 = -np.inf if s2 <= least else p2
        top = max(p0, p1, p2)
        p0, p1, p2 = math.exp(p0 - top), math.exp(p1 - top), math.exp(p2 - top)
        total = p0 + p1 + p2
        p0, p1, p2 = p0 / total, p1 / total, p2 / total
    if head.epsilon > 0.0:
        kept, even = 1.0 - head.epsilon, head.epsilon / _OUTPUTS
        p0, p1, p2 = kept * p0 + even, kept * p1 + even, kept * p2 + even
    if head.corrects:
        if head.gamma > 0.0:
            p0, p1, p2 = _undo_focal(p0, head.gamma), _undo_focal(p1, head.gamma), _undo_focal(p2, head.gamma)
        p0, p1, p2 = p0 / head.weights[0], p1 / head.weights[1], p2 / head.weights[2]
        total = p0 + p1 + p2
        p0, p1, p2 = p0 / total, p1 / total, p2 / total
    return p0, p1, p2


@entry
def _evaluate(at: int, obs: npt.NDArray[np.float32], out: Floats) -> None:
    for i in range(len(obs)):
        out[i, 0], out[i, 1], out[i, 2] = _probabilities(at, obs[i])


@jit
def _choose(rule: int, env: Any, queue: int, p0: float, p1: float, p2: float) -> int:
    """Choose the action as `l4s_gym.agents.protocol.DecisionRule` does with the same generator."""
    if rule == ARGMAX:
        if p0 >= p1 and p0 >= p2:
            return ENQUEUE
        return DROP if p1 >= p2 else MARK
    if rule == SAMPLE:
        drawn = pcg64_uniform(env.rule_at) * (p0 + p1 + p2)
        return int(drawn >= p0) + int(drawn >= p0 + p1)
    debt = rule_of(env).debt
    drop, mark = debt[2 * queue] + p1, debt[2 * queue + 1] + p2
    action = ENQUEUE
    if drop + mark >= 1.0:
        action = MARK if mark > drop else DROP
        if action == MARK:
            mark -= 1.0
        else:
            drop -= 1.0
    debt[2 * queue] = drop
    debt[2 * queue + 1] = mark
    return action


@jit
def decide(env: Any) -> int:
    """Decide about the observed packet by the policy; write the step to the trajectory, if there is one."""
    r = rule_of(env)
    obs = obs_of(env)
    p0, p1, p2 = _probabilities(env.policy_at, obs)
    action = _choose(_head_at(env.policy_at).rule, env, int(obs[0]), p0, p1, p2)
    r.left -= 1
    if r.obs_at != 0:
        row = r.step * r.width
        seen = carray(pointer(r.obs_at + row * 32), (_INPUTS,), np.float32)
        for k in range(_INPUTS):
            seen[k] = obs[k]
        store64(r.action_at + row * 8, action)
        p = carray(pointer(r.probabilities_at + row * 24), (_OUTPUTS,), np.float64)
        p[0], p[1], p[2] = p0, p1, p2
        r.step += 1
    return action


@jit
def note_reward(env: Any, reward: float) -> None:
    """Add a reward to the last step of the trajectory."""
    r = rule_of(env)
    if r.step > 0:
        carray(pointer(r.reward_at + (r.step - 1) * r.width * 8), (1,), np.float64)[0] += reward
