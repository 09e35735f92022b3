"""A model of control intervals as ONNX: how it is written, in float32, 8 or 4 bits, and how it decides in ONNX Runtime.

One graph reads one window: a router asks for one decision at a time. Weights of 4 bits share a step in blocks along a
row (`MatMulNBits`), those of 8 bits in a row (`MatMulInteger`); both are multiplied by activations of 8 bits.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from l4s_gym import forms
from l4s_gym.agents.llm.backbones import one_line
from l4s_gym.agents.llm.intervals import IntervalModel, Reader
from l4s_gym.agents.llm.settings import LLMConfig
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

BITS: Final = (4, 8)
BLOCK: Final = 32
"""Weights of 4 bits that share a step."""
_MOST: Final = 64
"""Largest weight of 8 bits in steps: with more, sums of two products saturate on CPUs without VNNI."""
GRAPH: Final = "onnx"
"""Name of the graph's bytes among an agent's tensors."""
READ: Final = ("mean", "std", "returns")
"""Names of a `Reader`'s tensors."""


def scales(weight: Tensor, bits: int) -> Tensor:
    """Return the step of each weight (N, K) when it has 4 or 8 bits, as ONNX Runtime chooses it."""
    if bits == 8:
        return weight.abs().amax(1, keepdim=True).clamp_min(1e-12).expand_as(weight) / _MOST
    blocks = weight.reshape(len(weight), -1, BLOCK)
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))  # with its sign: it becomes -8
    step = torch.where(largest == 0, torch.ones_like(largest), largest / -8)
    return step.expand_as(blocks).reshape(weight.shape)


def coarse(weight: Tensor, bits: int) -> Tensor:
    """Return a weight (N, K) as 4 or 8 bits hold it; of 4 bits, K is a multiple of `BLOCK`."""
    low, high = (-8, 7) if bits == 4 else (-_MOST, _MOST)
    step = scales(weight, bits)
    return (weight / step).round().clamp(low, high) * step


def coarse_input(x: Tensor, bits: int) -> Tensor:
    """Return activations (..., K) in 8 bits: for weights of 4 bits in blocks, for those of 8 all alike."""
    if bits == 4:
        blocks = x.reshape(*x.shape[:-1], -1, BLOCK)
        step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-12)
        return ((blocks / step).round() * step).reshape(x.shape)
    low, high = x.amin().clamp_max(0.0), x.amax().clamp_min(0.0)
    step = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / step).round()
    return (((x / step).round() + zero).clamp(0, 255) - zero) * step


def export(model: IntervalModel, window: int, bits: Mapping[str, int]) -> bytes:
    """Return a model as an ONNX graph.

    Args:
        model: In `eval` mode, without adapters.
        window: Decisions that it reads.
        bits: 4 or 8 for the names of the linear layers that are not to stay in float32.
    """
    onnx = optional("onnx", "compress")
    tokens = torch.zeros(1, window, len(model.mean) + len(forms.get(model.config.form).low) + 1)
    with _quiet():
        program: Any = torch.onnx.export(
            model, (tokens, torch.full((1,), window)), input_names=["tokens", "lengths"], verbose=False
        )
    graph = program.model_proto
    names = {_digest(layer.weight.T): name for name, layer in linear(model).items()}
    nodes: dict[int, list[str]] = {each: [] for each in BITS}
    weights = {each.name: each for each in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            name = names.get(_digest(torch.tensor(onnx.numpy_helper.to_array(weights[node.input[1]]))), "")
            if name in bits:
                nodes[bits[name]].append(node.name)
    if sum(map(len, nodes.values())) != len(bits):
        raise L4SError("export: some weights were not found in the graph: give another version of torch or onnx")
    graph = _in_8_bits(graph, nodes[8]) if nodes[8] else graph
    graph = _in_4_bits(graph, nodes[4]) if nodes[4] else graph
    written: bytes = graph.SerializeToString()
    return written


def linear(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a model's backbone by name."""
    backbone = model.get_submodule("backbone")
    found = {f"backbone.{name}": module for name, module in backbone.named_modules()}
    return {name: module for name, module in found.items() if isinstance(module, nn.Linear)}


def _digest(weight: Tensor) -> str:
    return hashlib.sha256(np.ascontiguousarray(weight.detach().numpy()).tobytes()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters and quantizers tell on their way."""
    loggers = [logging.getLogger(name) for name in ("", "torch.onnx", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def _in_8_bits(graph: Any, nodes: list[str]) -> Any:
    quantization = optional("onnxruntime.quantization", "compress")
    onnx = optional("onnx", "compress")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(graph, before)
        how = {
            "weight_type": quantization.QuantType.QInt8,
            "per_channel": True,
            "reduce_range": True,
            "nodes_to_quantize": nodes,
        }
        quantization.quantize_dynamic(before, after, **how)
        return onnx.load(after)


def _in_4_bits(graph: Any, nodes: list[str]) -> Any:
    quantizer = optional("onnxruntime.quantization.matmul_nbits_quantizer", "compress").MatMulNBitsQuantizer
    others = [node.name for node in graph.graph.node if node.name not in nodes]
    how = {"bits": 4, "block_size": BLOCK, "is_symmetric": True, "accuracy_level": 4, "nodes_to_exclude": others}
    with _quiet():
        work = quantizer(graph, **how)
        work.process()
    return work.model.model


class ExportedModel(Reader):
    """A model in ONNX Runtime, on one thread of the CPU."""

    def __init__(self, config: LLMConfig, tensors: Mapping[str, Tensor]) -> None:
        """Open it.

        Args:
            config: Its configuration.
            tensors: `GRAPH` (uint8) and those of `READ`.

        Raises:
            L4SError: ONNX Runtime is missing, or cannot read the graph.
        """
        super().__init__(config)
        runtime = optional("onnxruntime", "compress")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            for name in READ:
                getattr(self, name).copy_(tensors[name])
            self._session = runtime.InferenceSession(tensors[GRAPH].numpy().tobytes(), options)
        except Exception as error:  # ONNX Runtime has no error of its own
            raise L4SError(f"compressed agent: cannot be opened ({one_line(error)}): compress it again") from error

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return actions, as `Reader.forward` does."""
        window = self.config.intervals.window
        padded = np.zeros((len(tokens), window, tokens.shape[2]), np.float32)
        padded[:, : tokens.shape[1]] = tokens.numpy()
        given = zip(padded[:, None], lengths.numpy()[:, None], strict=True)
        rows = [self._session.run(None, {"tokens": x, "lengths": n})[0] for x, n in given]
        return torch.as_tensor(np.concatenate(rows))
