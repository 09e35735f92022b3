"""The ablation: the language model itself writes the answer, token by token, to a state given as text.

There is no head of ours: the prompt describes the state, the backbone's own language-model head continues it,
and the answer is parsed. An answer that names no action is invalid and counts as "enqueue"; how many were valid, and
how long they took, is the result of the ablation. Each decision is a separate question: the prompt holds the packet's
state and the return left to reach, not what came before.

A pretrained model brings its tokenizer. A random one gets a tokenizer of our own, one token for each byte: prompts
are then about four times as long as with a tokenizer made from text, which its latencies include.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4s_gym.agents.llm.backbones import Backbone, Counts, additive, count, one_line, placed
from l4s_gym.agents.llm.data import ReturnsToGo, Target
from l4s_gym.agents.llm.intervals import IntervalModel
from l4s_gym.agents.llm.network import DecisionModel
from l4s_gym.agents.llm.pretrained import place
from l4s_gym.agents.llm.settings import UNKNOWN, LLMConfig
from l4s_gym.agents.protocol import Actions, Floats, Observations, check_batch, check_count
from l4s_gym.data.trajectory import Trajectory
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional
from l4s_gym.forms import PACKET
from l4s_gym.schema import ACTIONS, BY_NAME, ENQUEUE, OBSERVED, unscale_observation

ANSWER_TOKENS: Final = 12
"""Longest answer in tokens; longer ones are cut off."""
RULES: Final = ("sample", "argmax")
"""How tokens are chosen. `diffuse` needs probabilities of actions, which an answer does not have."""
_STREAM: Final = 0x746578
_PROMPTS: Final = 64
_WORDS: Final = dict(
    zip(OBSERVED, ("queue", "burst", "p", "delay", "sum of p", "length", "drops", "packet"), strict=True)
)


class ByteTokenizer:
    """One token for each byte, and two special ones: `pad` before a prompt, `end` after an answer."""

    size = 258
    pad = 256
    end = 257

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes without special tokens."""
        return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


class PretrainedTokenizer:
    """Tokenizer of a pretrained model."""

    def __init__(self, name: str, revision: str = "") -> None:
        """Load the tokenizer.

        Raises:
            L4SError: There is none.
        """
        try:
            self._inner = optional("transformers", "llm").AutoTokenizer.from_pretrained(
                place(name), revision=revision or "main"
            )
        except (OSError, ValueError) as error:
            raise L4SError(f"tokenizer of {name!r}: cannot be loaded ({one_line(error)}): check the folder") from error
        self.end = int(self._inner.eos_token_id)
        self.pad = self.end if self._inner.pad_token_id is None else int(self._inner.pad_token_id)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without special ones at its start or end."""
        tokens: list[int] = self._inner(text, add_special_tokens=False)["input_ids"]
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""
        return str(self._inner.decode(list(tokens), skip_special_tokens=True))


def prompt(observation: npt.ArrayLike, return_to_go: float, missing: bool = False) -> str:
    """Return a state as text.

    Args:
        observation: (8,), scaled.
        return_to_go: The return to reach.
        missing: Whether the accumulated probability is unknown.
    """
    parts = []
    for name, value in zip(OBSERVED, unscale_observation(observation), strict=True):
        unit = BY_NAME[name].unit
        if name == "queue_type":
            said = "L" if value > 0.5 else "C"
        elif missing and name == UNKNOWN:
            said = "unknown"
        elif unit.startswith("1/"):
            said = f"{value / (2**31 - 1):.4f}"
        else:
            said = f"{value:.0f}" + f" {unit}" * (unit in ("us", "B"))
        parts.append(f"{_WORDS[name]} {said}")
    return f"{'; '.join(parts)}; return {return_to_go:.3g}. {', '.join(ACTIONS)}?"


def answer(action: int) -> str:
    """Return an action as text."""
    return " " + ACTIONS[action]


def parse(text: str) -> int | None:
    """Return the action that an answer names; None: it names none, or more than one."""
    words = text.strip().lower().rstrip(".!")
    return ACTIONS.index(words) if words in ACTIONS else None


@dataclass(frozen=True)
class Answers:
    """Answers to a batch of prompts.

    Attributes:
        actions: (n,) int64; "enqueue" where the answer is invalid.
        valid: (n,) bool.
        texts: The answers.
        tokens: Tokens of each answer, including its end (n,) int64.
    """

    actions: npt.NDArray[np.int64]
    valid: npt.NDArray[np.bool_]
    texts: tuple[str, ...]
    tokens: npt.NDArray[np.int64]


class TextModel(nn.Module):
    """A causal language model that is asked for actions.

    Attributes:
        config: Its configuration: backbone and adapters, discount of the return-to-go.
        tokenizer: Its tokenizer.
        backbone: The language model, including its own head.
        read: Tokens read in the last call.
    """

    def __init__(self, config: LLMConfig) -> None:
        """Build or load the model.

        Raises:
            L4SError: It is no causal model, does not exist, or a library is missing.
        """
        super().__init__()
        self.config, backbone = config, config.backbone
        if backbone.family == "t5" and not backbone.pretrained:
            raise L4SError("llm: head = 'text' needs a causal backbone: choose another family than t5")
        self.tokenizer: ByteTokenizer | PretrainedTokenizer = ByteTokenizer()
        if backbone.pretrained:
            self.tokenizer = PretrainedTokenizer(backbone.pretrained, backbone.revision)
        else:
            backbone = replace(backbone, vocabulary=self.tokenizer.size)
        self.backbone: Any = Backbone(backbone, config.lora, words=True)
        told = [[*self.tokenizer.encode(answer(action)), self.tokenizer.end] for action in range(len(ACTIONS))]
        self._answers = torch.tensor([token for tokens in told for token in tokens])
        self._of = torch.tensor([action for action, tokens in enumerate(told) for _ in tokens])
        self.read = 0

    def _tokens(self, prompts: Sequence[str], more: int) -> tuple[Tensor, Tensor]:
        """Return prompts as tokens (n, N), padded on the left, and which are real (n, N); `more` tokens will follow."""
        texts = [self.tokenizer.encode(text) for text in prompts]
        length, limit = max(map(len, texts)), self.backbone.limit
        if length + more > limit:
            raise L4SError(f"llm: a prompt takes {length + more} positions, the backbone has {limit}: raise positions")
        tokens = np.full((len(texts), length), self.tokenizer.pad)
        for row, each in zip(tokens, texts, strict=True):
            row[length - len(each) :] = each
        device = self.backbone.core.get_input_embeddings().weight.device
        lengths = torch.tensor([len(each) for each in texts], device=device)
        real = torch.arange(length, device=device) >= length - lengths[:, None]
        return torch.from_numpy(tokens).to(device), real

    def forward(
        self,
        returns: Tensor,
        observations: Tensor,
        actions: Tensor,
        timesteps: Tensor,
        mask: Tensor,
        missing: Tensor | None = None,
    ) -> Tensor:
        """Compute as `DecisionModel.forward`, but treat each step as a separate question.

        Returns:
            Log-probabilities of the three answers (B, K, 3); the rest up to 1 is that of invalid answers.
        """
        del actions, timesteps, mask
        missing = torch.zeros_like(returns, dtype=torch.bool) if missing is None else missing
        rows = zip(*(each.flatten(0, 1).cpu().numpy() for each in (observations, returns, missing)), strict=True)
        return self.scores([prompt(*row) for row in rows]).view(*returns.shape, len(ACTIONS))

    def scores(self, prompts: Sequence[str]) -> Tensor:
        """Return log-probabilities (n, 3) with which the model writes each of the three answers.

        One pass: the three follow the prompt side by side, and none sees the others.
        """
        answers, of = self._answers, self._of
        tokens, real = self._tokens(prompts, len(answers))
        answers, of = answers.to(tokens.device), of.to(tokens.device)
        n, length = tokens.shape
        size = length + len(answers)
        segment = torch.cat((torch.full((length,), -1, device=of.device), of))
        index = torch.arange(size, device=of.device)
        seen = (index[:, None] >= index) & ((segment[:, None] == segment) | (segment == -1))
        seen = seen & F.pad(real, (0, len(answers)), value=True)[:, None] | (index[:, None] == index)  # (n, S, S)
        place = index[length:] - length - torch.searchsorted(of, of)  # within its answer
        positions = torch.cat((real.cumsum(1) - 1, real.sum(1, keepdim=True) + place), 1).clamp_min(0)
        logits = self.backbone.core(
            input_ids=torch.cat((tokens, answers.expand(n, -1)), 1),
            attention_mask=additive(seen, self.backbone.dtype)[:, None],
            position_ids=positions,
            use_cache=False,
            logits_to_keep=len(answers) + 1,
        ).logits  # (n, 1 + answers, V): the first is that at the end of the prompt
        self.read = int(real.sum()) + n * len(answers)
        before = torch.where(place == 0, 0, torch.arange(len(answers), device=of.device))
        told = torch.log_softmax(logits[:, before].float(), -1).gather(2, answers.expand(n, -1)[..., None])[..., 0]
        return told.new_zeros(n, len(ACTIONS)).index_add(1, of, told)

    @torch.no_grad()
    def ask(self, prompts: Sequence[str], draws: npt.NDArray[np.float64] | None = None) -> Answers:
        """Generate the answers, token by token.

        Args:
            prompts: One for each queue.
            draws: Numbers in [0, 1) to draw the tokens with (n, `ANSWER_TOKENS`); None: the most probable tokens.
        """
        ids, real = self._tokens(prompts, ANSWER_TOKENS)
        positions, cache = (real.cumsum(1) - 1).clamp_min(0), self.backbone.new_cache()
        chance = None if draws is None else torch.from_numpy(draws).to(ids.device)
        over = torch.zeros(len(prompts), dtype=torch.bool, device=ids.device)
        written: list[Tensor] = []
        while len(written) < ANSWER_TOKENS and not bool(over.all()):
            logits = self.backbone.core(
                input_ids=ids,
                attention_mask=real.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if chance is None:
                token = logits.argmax(-1)
            else:
                edges = torch.softmax(logits.double(), -1).cumsum(-1)
                below = chance[:, len(written), None] * edges[:, -1:]
                token = torch.searchsorted(edges, below, right=True)[:, 0].clamp_max(edges.shape[1] - 1)
            token = torch.where(over, self.tokenizer.pad, token)
            over = over | (token == self.tokenizer.end)
            written.append(token)
            ids, positions = token[:, None], positions[:, -1:] + 1
            real = F.pad(real, (0, 1), value=True)
        rows = [_until(row, self.tokenizer.end) for row in torch.stack(written, 1).tolist()]
        texts = tuple(map(self.tokenizer.decode, rows))
        found = [parse(text) for text in texts]
        return Answers(
            actions=np.array([ENQUEUE if action is None else action for action in found], np.int64),
            valid=np.array([action is not None for action in found]),
            texts=texts,
            tokens=np.array([min(len(row) + 1, len(written)) for row in rows]),
        )


def _until(tokens: list[int], end: int) -> list[int]:
    """Return the tokens before the first end."""
    return tokens[: tokens.index(end)] if end in tokens else tokens


Model = DecisionModel | TextModel | IntervalModel


def build(config: LLMConfig) -> Model:
    """Build the model of a configuration, by its form and head."""
    if config.form != PACKET:
        return IntervalModel(config)
    return TextModel(config) if config.head == "text" else DecisionModel(config)


class TextAgent:
    """A trained language model that writes its decision as text.

    Attributes:
        model: In `eval` mode.
        target: The return to reach.
        training: Facts about its training.
        counts: Since `reset`: decisions (`asked`), those whose answer named no action (`invalid`), and the `tokens` of
            all answers. Each `reset` starts new counts.
    """

    def __init__(
        self,
        model: TextModel,
        target: Target,
        *,
        rule: str = "sample",
        name: str = "llm",
        device: str = "cpu",
        parameters: Counts | None = None,
        training: dict[str, Any] | None = None,
    ) -> None:
        """Wrap a model; the arguments are those of `LLMAgent`, the rule is one of `RULES`."""
        if rule not in RULES:
            raise unknown("decision rule of an agent that writes", rule, RULES)
        self.rule, self.name, self.target = rule, name, target
        self.training, self._counts = training or {}, parameters or count(model)
        self.model = placed(model, device)
        self.reset(1, 0)

    def reset(self, n: int, seed: int) -> None:
        """Start `n` episodes."""
        check_count(n)
        self.model.eval()
        self._draws = [np.random.default_rng([seed + i, _STREAM]) for i in range(n)]
        self._told = ReturnsToGo(self.target, n, self.model.config.gamma)
        self.counts = Counter[str]()

    def act(self, obs: Observations, rewards: Floats) -> Actions:
        """Return actions (n,) from the written answers."""
        check_batch(obs, len(self._draws))
        prompts = [prompt(row, left) for row, left in zip(obs, self._told.after(rewards).tolist(), strict=True)]
        draws = np.stack([rng.random(ANSWER_TOKENS) for rng in self._draws]) if self.rule == "sample" else None
        answers = self.model.ask(prompts, draws)
        invalid, tokens = int((~answers.valid).sum()), int(answers.tokens.sum())
        self.counts.update(asked=len(prompts), invalid=invalid, tokens=tokens)
        return answers.actions

    def logged_probabilities(self, logged: Trajectory, index: npt.NDArray[np.int64]) -> Floats:
        """Return probabilities (B, 3) of the actions in valid answers, given the returns that followed."""
        left = logged.returns_to_go(self.model.config.gamma)
        found = [np.zeros((0, 3))]
        with torch.inference_mode():
            for at in range(0, len(index), _PROMPTS):
                some = index[at : at + _PROMPTS].tolist()
                scores = self.model.scores([prompt(logged.observations[step], left[step]) for step in some])
                found.append(scores.double().softmax(-1).cpu().numpy())
        return np.concatenate(found)

    def cost(self) -> dict[str, float]:
        """Return the numbers of parameters."""
        return self._counts.cost()
