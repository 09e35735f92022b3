"""Low-rank adapters by peft, and counts of parameters.

By default queries and values are adapted. This gives the paper's numbers: Llama-2-7B at rank 128 has
32 layers x 2 modules x 128 x (4096 + 4096) = 67.1 million (1 % of 6.7 billion), OPT-1.3B at the same rank
24 x 2 x 128 x (2048 + 2048) = 25.2 million.
"""

from __future__ import annotations

import warnings
from typing import Any, Final, NamedTuple

from torch import nn

from l4s_gym.agents.llm.config import LoraConfig
from l4s_gym.errors import L4SError
from l4s_gym.extras import optional

TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "gpt2": ("c_attn",),
    "opt": ("q_proj", "v_proj"),
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
    "gpt_neox": ("query_key_value",),
    "t5": ("q", "v"),
}
"""Adapted modules by family: queries and values. GPT-2 and GPT-NeoX have them, and the keys, in one module."""


class Counts(NamedTuple):
    """Numbers of parameters."""

    trainable: int
    total: int

    def __str__(self) -> str:
        """For people."""
        share = 100.0 * self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2f} %)"


def count(model: nn.Module) -> Counts:
    """Numbers of parameters; shared ones count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Counts(sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes))


def import_peft() -> Any:
    """The module.

    Raises:
        L4SError: It is not installed.
    """
    return optional("peft", "llm")


def attach(model: Any, config: LoraConfig, family: str) -> Any:
    """Put adapters into a model of transformers; its own weights keep whether they are trained.

    Args:
        model: The model; it is changed.
        config: Rank above 0.
        family: Its `model_type`.

    Returns:
        The `peft.PeftModel` around it.

    Raises:
        L4SError: peft is missing, or the modules are not known or not there.
    """
    peft = import_peft()
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from transformers.pytorch_utils import Conv1D

    targets = config.targets or TARGETS.get(family) or KNOWN.get(family)
    if not targets:
        raise L4SError(f"lora: no modules are known for {family!r}: name them in lora.targets")
    names = [targets] if isinstance(targets, str) else list(targets)
    found = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names]
    if not found and not isinstance(targets, str):
        leaves = sorted({name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _adaptable(module)})
        raise L4SError(f"lora: {family!r} has no modules {', '.join(names)}: choose of {', '.join(leaves)}")
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha or 2 * config.rank,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else names,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in found),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that peft takes from transformers
        adapted = peft.get_peft_model(model, settings)
    for parameter in adapted.parameters():
        parameter.requires_grad_(before.get(id(parameter), True))
    return adapted


def _adaptable(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2
