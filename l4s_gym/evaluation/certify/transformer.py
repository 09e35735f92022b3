"""What the paper says of a transformer with LoRA, measured on an agent that has one: slopes, radii, and LoRA's part.

Self-attention has no finite Lipschitz constant on unbounded inputs (Kim, Papamakarios & Mnih, "The Lipschitz constant
of self-attention", ICML 2021). So all is measured at windows of observations that the agent met: the Jacobian of
actions by observations, and of each layer, and of all layers together, as a map of a window of hidden states to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from l4s_gym import forms
from l4s_gym.errors import L4SError
from l4s_gym.evaluation.certify.gains import Sampled, sampled

Floats = npt.NDArray[np.float64]
Product = Callable[[Floats], Floats]
"""A vector times a matrix (N,) -> (N,)."""
KRYLOV: Final = 40
"""Vectors of which eigenvalues are made."""
POWERS: Final = 12
_STEP: Final = 1e-3


def adapters(model: Any) -> list[dict[str, Any]]:
    """Return the spectral norm of what LoRA adds to each weight, and of that weight."""
    import torch

    rows = []
    for name, module in model.backbone.core.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        with torch.no_grad():
            change, base = module.get_delta_weight("default"), module.get_base_layer().weight
            norms = [float(torch.linalg.matrix_norm(each.double(), 2)) for each in (change, base, base + change)]
        rows.append({"weight": name, **dict(zip(("lora", "base", "both"), norms, strict=True))})
    return rows


def without(model: Any) -> Any:
    """Return a context in which a model has no adapters."""
    return model.backbone.model.disable_adapter() if model.backbone.adapted else nullcontext()


def radius(transposed: Product, size: int, krylov: int = KRYLOV) -> float:
    """Return the spectral radius of a matrix by Arnoldi's iteration on its transpose, with the same eigenvalues."""
    rng = np.random.default_rng(0)
    count = min(krylov, size)
    basis, matrix = np.zeros((count + 1, size)), np.zeros((count + 1, count))
    basis[0] = rng.standard_normal(size)
    basis[0] /= np.linalg.norm(basis[0])
    for k in range(count):
        v = transposed(basis[k])
        for _ in range(2):  # twice is enough to be orthogonal
            parts = basis[: k + 1] @ v
            matrix[: k + 1, k] += parts
            v = v - parts @ basis[: k + 1]
        matrix[k + 1, k] = np.linalg.norm(v)
        if matrix[k + 1, k] < 1e-10:
            count = k + 1
            break
        basis[k + 1] = v / matrix[k + 1, k]
    return float(np.abs(np.linalg.eigvals(matrix[:count, :count])).max())


def largest(product: Product, transposed: Product, size: int) -> float:
    """Return the spectral norm of a matrix by power iteration, from below."""
    v = np.random.default_rng(0).standard_normal(size)
    found = 0.0
    for _ in range(POWERS):
        v /= np.linalg.norm(v)
        w = product(v)
        found, v = float(np.linalg.norm(w)), transposed(w)
    return found


def _products(function: Any, at: Any) -> tuple[Product, Product]:
    """Return the products of a function's Jacobian at a tensor with a vector, and of its transpose."""
    import torch

    at = at.detach()
    size = float(at.norm()) / at.numel() ** 0.5

    def product(v: Floats) -> Floats:
        step = torch.as_tensor(v.reshape(at.shape), dtype=at.dtype) * (
            _STEP * size * at.numel() ** 0.5 / np.linalg.norm(v)
        )
        with torch.no_grad():
            change = (function(at + step) - function(at - step)) / 2.0
        return np.asarray(
            change.double().numpy().ravel() * float(np.linalg.norm(v)) / (_STEP * size * at.numel() ** 0.5)
        )

    leaf = at.clone().requires_grad_(True)
    out = function(leaf)

    def transposed(v: Floats) -> Floats:
        given = torch.as_tensor(v.reshape(out.shape), dtype=out.dtype)
        (found,) = torch.autograd.grad(out, leaf, given, retain_graph=True)
        return np.asarray(found.double().numpy().ravel())

    return product, transposed


@contextmanager
def _noted(layers: Sequence[Any]) -> Iterator[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]]:
    """Note what each of some layers is called with."""
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def note(module: Any, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        calls.append((module, args, more))

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Any) -> list[Any]:
    """Return the layers of the backbone: its longest list of modules."""
    from torch import nn

    lists = [module for module in model.backbone.core.modules() if isinstance(module, nn.ModuleList)]
    return max(map(list, lists), key=len)


def window_of(model: Any, x: npt.NDArray[np.float32]) -> tuple[Any, Floats]:
    """Return a window of tokens in which an observation (F,) stays the same, and the slopes of what is seen (S, F).

    The actions before are those of the form that do nothing.
    """
    config = model.config
    copies = 1 + len(config.intervals.onestep.memory_s)
    seen = np.tile(np.log1p(x.astype(np.float64)), (1, copies))
    idle = np.array([forms.get(config.form).idle], np.float64)
    token = model.tokens(seen, idle, np.full(1, float(model.returns[2])))
    slopes = np.tile(np.diag(1.0 / (1.0 + x.astype(np.float64))), (copies, 1)) / model.std.numpy()[:, None]
    inside = np.abs(token[0, : len(slopes)].double().numpy()) < 3.0
    return token[None].expand(1, config.intervals.window, -1).clone(), slopes * inside[:, None]


def actions(model: Any, tokens: Any) -> Any:
    """Return what a model chooses after a window (K,), before it is rounded."""
    import torch

    return model.reach * model(tokens, torch.tensor([tokens.shape[1]]))[0]


def jacobians(model: Any, x: npt.NDArray[np.float32], shares: Sequence[float]) -> tuple[Floats, Floats]:
    """Return the Jacobians `held` and `now` (K, F) at an observation, as `gains.jacobians`."""
    import torch

    tokens, slopes = window_of(model, x)
    tokens.requires_grad_(True)
    out = actions(model, tokens)
    rows = [torch.autograd.grad(value, tokens, retain_graph=True)[0][0].double().numpy() for value in out]
    by_token = np.array(rows)[:, :, : len(slopes)]  # (K, window, S)
    weights = np.repeat((1.0, *shares), len(x))[:, None]
    return by_token.sum(1) @ slopes, by_token[:, -1] @ (weights * slopes)


def _as_dict(found: Sampled) -> dict[str, Any]:
    return {"held": found.held, "now": found.now, "held_median": found.held_median, "now_median": found.now_median}


def measure(folder: Any, observations: npt.NDArray[np.float32], shares: Sequence[float]) -> dict[str, Any]:
    """Return all that is known of a saved agent of kind `llm` about control intervals.

    Args:
        folder: Of the agent, or what was read of it.
        observations: Met in closed loop (P, F).
        shares: With which an observation enters the averages of what is seen (M,).

    Raises:
        L4SError: It decides about packets.
    """
    import torch

    from l4s_gym.agents.llm import saving

    model = saving.load(folder).model
    if model.config.form == forms.PACKET:
        raise L4SError(f"{folder}: decides about packets: only its adapters can be measured")
    model.eval().requires_grad_(False)
    ends: dict[str, Callable[[], Any]] = {"with LoRA": nullcontext, "without": lambda: without(model)}
    found: dict[str, Any] = {"adapters": adapters(model), "points": len(observations)}
    for name, context in ends.items():
        with context():
            found[name] = sampled([jacobians(model, x, shares) for x in observations])
    tokens, _ = window_of(model, observations[len(observations) // 2])
    layers = _layers(model)
    for name, context in ends.items():
        with context(), torch.enable_grad():
            embedded = model.embed(tokens)
            with _noted(layers) as calls, torch.no_grad():
                lengths = torch.tensor([tokens.shape[1]])
                model.features(tokens, lengths)
            rows = []
            for number, (layer, args, more) in enumerate(calls):
                hidden = args[0] if args else more["hidden_states"]
                rest = {key: value for key, value in more.items() if key != "hidden_states"}

                def run(h: Any, layer: Any = layer, args: Any = args, rest: Any = rest) -> Any:
                    out = layer(h, *args[1:], **rest)
                    return out[0] if isinstance(out, tuple) else out

                rows.append({"layer": number, **_map(run, hidden)})
            found[name] = {**_as_dict(found[name]), "features": found[name].features, "layers": rows}
            found[name]["backbone"] = _map(model.hidden, embedded)
    return found


def _map(function: Any, at: Any) -> dict[str, float]:
    """Return spectral radius and norm of a function's Jacobian at a tensor."""
    product, transposed = _products(function, at)
    return {"radius": radius(transposed, at.numel()), "norm": largest(product, transposed, at.numel())}
