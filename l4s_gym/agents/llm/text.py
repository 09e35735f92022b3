"""The ablation: the language model itself writes the answer, token by token, to a state written as text.

There is no head of ours here: the prompt describes the state, the backbone's own language-model head continues it,
and the answer is parsed. An answer that names no action is invalid and counts as "enqueue"; how many were valid, and
how long they took, is the result of the ablation.

A pretrained model brings its tokenizer. A random one gets a tokenizer of our own, one token for each byte: prompts
are then about four times as long as with a tokenizer made from text, which its latencies include.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.backbones import import_transformers, one_line, random_config
from l4s_gym.agents.llm.config import LLMConfig
from l4s_gym.agents.llm.lora import attach
from l4s_gym.errors import L4SError
from l4s_gym.schema import ACTIONS, BY_NAME, ENQUEUE, OBSERVED, unscale_observation

ANSWER_TOKENS: Final = 12
"""An answer is cut off here."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer."""

    size: int
    pad: int
    end: int

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without any at its start or end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        ...


class ByteTokenizer:
    """One token for each byte, and two special ones."""

    size = 258
    pad = 256
    end = 257

    def encode(self, text: str) -> list[int]:
        """The bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of bytes; special tokens are left out."""
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


class PretrainedTokenizer:
    """That of a pretrained model."""

    def __init__(self, name: str, revision: str = "") -> None:
        """Load it.

        Raises:
            L4SError: There is none.
        """
        try:
            self._inner = import_transformers().AutoTokenizer.from_pretrained(name, revision=revision or "main")
        except (OSError, ValueError) as error:
            raise L4SError(f"tokenizer of {name!r}: cannot be loaded ({one_line(error)}): check the folder") from error
        self.size = len(self._inner)
        self.end = int(self._inner.eos_token_id)
        self.pad = self.end if self._inner.pad_token_id is None else int(self._inner.pad_token_id)

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        tokens: list[int] = self._inner(text, add_special_tokens=False)["input_ids"]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def prompt(observation: npt.ArrayLike, return_to_go: float) -> str:
    """A state as text.

    Args:
        observation: (8,), scaled.
        return_to_go: What shall be reached.
    """
    raw = unscale_observation(observation)
    parts = []
    for name, value in zip(OBSERVED, raw, strict=True):
        field = BY_NAME[name]
        if field.unit.startswith("1/"):
            parts.append(f"{name} {value / (2**31 - 1):.4f}")
        elif name == "queue_type":
            parts.append(f"queue {'L' if value > 0.5 else 'C'}")
        else:
            parts.append(f"{name} {value:.0f} {field.unit}")
    return f"{'; '.join(parts)}; return to go {return_to_go:.3g}. {', '.join(ACTIONS)}? Answer:"


def answer(action: int) -> str:
    """An action as text."""
    return " " + ACTIONS[action]


def parse(text: str) -> int | None:
    """The action that an answer names; None: not one, or none alone."""
    words = text.strip().lower().rstrip(".!")
    return ACTIONS.index(words) if words in ACTIONS else None


@dataclass(frozen=True)
class Answers:
    """What a batch of prompts gave.

    Attributes:
        actions: (n,) int64; "enqueue" where the answer is invalid.
        valid: (n,) bool.
        texts: The answers.
        tokens: Tokens written by the longest one.
        seconds: Time for the batch.
    """

    actions: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    texts: tuple[str, ...]
    tokens: int
    seconds: float


class TextModel(nn.Module):
    """A causal language model that is asked for actions.

    Attributes:
        config: What it is made of (backbone and adapters).
        tokenizer: Its tokenizer.
        model: The model of transformers, or the `peft.PeftModel` around it.
    """

    def __init__(self, config: LLMConfig) -> None:
        """Build or load it.

        Raises:
            L4SError: It is no causal model, does not exist, or a library is missing.
        """
        super().__init__()
        transformers = import_transformers()
        self.config, backbone = config, config.backbone
        if backbone.family == "t5" and not backbone.pretrained:
            raise L4SError("llm: head = 'text' needs a causal backbone: choose another family than t5")
        if backbone.pretrained:
            self.tokenizer: Tokenizer = PretrainedTokenizer(backbone.pretrained, backbone.revision)
            try:
                model = transformers.AutoModelForCausalLM.from_pretrained(
                    backbone.pretrained, revision=backbone.revision or "main", dtype=getattr(torch, backbone.dtype)
                )
            except (OSError, ValueError) as error:
                raise L4SError(
                    f"backbone {backbone.pretrained!r}: cannot be loaded ({one_line(error)}): check it"
                ) from error
        else:
            self.tokenizer = ByteTokenizer()
            sizes = random_config(replace(backbone, vocabulary=self.tokenizer.size))
            sizes.pad_token_id, sizes.eos_token_id, sizes.bos_token_id = self.tokenizer.pad, self.tokenizer.end, None
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(backbone.seed)
                model = transformers.AutoModelForCausalLM.from_config(sizes).to(getattr(torch, backbone.dtype))
        self.positions = int(getattr(model.config, "max_position_embeddings", 1 << 20))
        family = model.config.model_type
        model.requires_grad_(not backbone.frozen)
        self.model = attach(model, config.lora, family) if config.lora.rank else model

    def _batch(self, texts: Sequence[list[int]], left: bool) -> tuple[Tensor, Tensor]:
        """Token lists as tensors: tokens (n, N) padded on one side, and which are real (n, N) int64."""
        length = max(len(tokens) for tokens in texts)
        if length + ANSWER_TOKENS > self.positions:
            need = length + ANSWER_TOKENS
            raise L4SError(f"llm: a prompt takes {need} positions, the backbone has {self.positions}: raise positions")
        device = next(self.model.parameters()).device
        tokens = torch.full((len(texts), length), self.tokenizer.pad, device=device)
        real = torch.zeros_like(tokens)
        for row, each in enumerate(texts):
            where = slice(length - len(each), length) if left else slice(0, len(each))
            tokens[row, where] = torch.tensor(each, device=device)
            real[row, where] = 1
        return tokens, real

    def loss(self, prompts: Sequence[str], actions: Sequence[int]) -> Tensor:
        """Mean cross-entropy of the tokens of the right answers."""
        asked = [self.tokenizer.encode(text) for text in prompts]
        told = [[*self.tokenizer.encode(answer(action)), self.tokenizer.end] for action in actions]
        tokens, real = self._batch([a + b for a, b in zip(asked, told, strict=True)], left=False)
        labels = torch.full_like(tokens, -100)
        for row, (a, b) in enumerate(zip(asked, told, strict=True)):
            labels[row, len(a) : len(a) + len(b)] = tokens[row, len(a) : len(a) + len(b)]
        logits = self.model(input_ids=tokens, attention_mask=real).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)

    @torch.no_grad()
    def ask(self, prompts: Sequence[str], *, sample: bool = False) -> Answers:
        """Let the model answer.

        Args:
            prompts: One for each queue.
            sample: Draw each token (from PyTorch's global generator) instead of taking the most probable.
        """
        began = time.perf_counter()
        tokens, real = self._batch([self.tokenizer.encode(text) for text in prompts], left=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about settings that a model's own configuration brings
            written = self.model.generate(
                input_ids=tokens,
                attention_mask=real,
                max_new_tokens=ANSWER_TOKENS,
                do_sample=sample,
                pad_token_id=self.tokenizer.pad,
                eos_token_id=self.tokenizer.end,
            )[:, tokens.shape[1] :]
        texts = tuple(self.tokenizer.decode(_until(row, self.tokenizer.end)) for row in written.tolist())
        seconds = time.perf_counter() - began
        found = [parse(text) for text in texts]
        return Answers(
            actions=np.array([ENQUEUE if action is None else action for action in found], np.int64),
            valid=np.array([action is not None for action in found]),
            texts=texts,
            tokens=int(written.shape[1]),
            seconds=seconds,
        )


def _until(tokens: list[int], end: int) -> list[int]:
    """Tokens before the first end."""
    return tokens[: tokens.index(end)] if end in tokens else tokens
