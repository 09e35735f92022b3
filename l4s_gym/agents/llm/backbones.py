"""Backbones: models of transformers that take our embeddings and mask, with or without adapters (LoRA).

Positions. A stream never ends, but a table of positions does; and cached keys were computed at the position that
they had then. So a position may depend only on the step's number:

- learned positions (GPT-2, OPT): the step's number modulo the number of whole steps in the table. A window that
  contains the wrap sees high positions before low ones, in training as in use.
- rotary positions (Llama, Mistral, Qwen): only differences matter, so they count up, and before they exceed a
  limit all keys in the cache are rotated back.
- relative biases (T5): nothing to do.

Adapters, by peft, are on queries and values by default. The paper's numbers follow: Llama-2-7B at rank 128 has
32 layers x 2 modules x 128 x (4096 + 4096) = 67.1 million (1 % of 6.7 billion), OPT-1.3B at the same rank
24 x 2 x 128 x (2048 + 2048) = 25.2 million.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from l4s_gym.agents.llm import pretrained
from l4s_gym.agents.llm.settings import FAMILIES, BackboneConfig, LoraConfig
from l4s_gym.errors import L4SError, unknown
from l4s_gym.extras import optional

_LIMIT: Final = 1024
"""Rotary positions are kept below this (or four windows), where their angles are exact to about 1e-4."""
_SAME: Final = 1e-3
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    "gpt2": ("c_attn",),
    "gpt_neox": ("query_key_value",),
    "t5": ("q", "v"),
    **dict.fromkeys(("opt", "llama", "mistral", "qwen2", "qwen3"), ("q_proj", "v_proj")),
}
"""Adapted modules by family: queries and values. GPT-2 and GPT-NeoX have them, and the keys, in one module."""
_Model = TypeVar("_Model", bound=nn.Module)


def one_line(error: BaseException) -> str:
    """Return the start of an error's message, on one line."""
    return " ".join(str(error).split())[:200]


class Counts(NamedTuple):
    """Numbers of parameters."""

    trainable: int
    total: int

    def __str__(self) -> str:
        """Return the counts as text."""
        share = 100.0 * self.trainable / max(self.total, 1)
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({share:.2f} %)"

    def cost(self) -> dict[str, float]:
        """Return the counts in the form of `Agent.cost`."""
        return {"parameters": float(self.total), "trainable_parameters": float(self.trainable)}


def count(model: nn.Module) -> Counts:
    """Return the numbers of parameters; shared ones count once."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return Counts(sum(size for size, trainable in sizes if trainable), sum(size for size, _ in sizes))


def placed(model: _Model, device: str) -> _Model:
    """Return the model on a device, ready to decide.

    Raises:
        L4SError: There is no such device.
    """
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise L4SError(f"llm: device {device!r} cannot be used ({reason}): give another, such as cpu") from error


# -- attention masks of the banded causal kind


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where allowed, else the most negative number (not -inf: a row without any would become NaN)."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def banded(visible: Tensor, tokens: int, window: int, dtype: torch.dtype) -> Tensor:
    """Return the mask of a whole pass: which token sees which.

    Args:
        visible: (B, N) bool: whether other tokens may see a token. Each sees itself, so that no row is empty.
        tokens: Tokens of a step; N is a multiple.
        window: A token sees those of its own step and of the `window - 1` steps before.
        dtype: Type of the mask.

    Returns:
        (B, 1, N, N), additive.
    """
    index = torch.arange(visible.shape[1], device=visible.device)
    group = index // tokens
    causal = index[:, None] >= index
    near = group[:, None] - group < window
    self_seen = index[:, None] == index
    allowed = (causal & near) & visible[:, None, :] | self_seen  # (B, N, N)
    return additive(allowed[:, None], dtype)


# -- models of transformers


def random_config(config: BackboneConfig) -> Any:
    """Return a configuration of transformers for the given family and size."""
    transformers = optional("transformers", "llm")
    wide, heads = config.feedforward or 4 * config.hidden, config.heads
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": config.vocabulary}
    size = {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": config.positions,
    }
    head = config.hidden // heads
    if config.family == "gpt2":
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
        special: dict[str, Any] = size | {"n_inner": wide} | dropout
    elif config.family == "opt":
        special = size | {"ffn_dim": wide, "word_embed_proj_dim": config.hidden, "dropout": config.dropout}
    elif config.family == "t5":
        special = {"d_model": config.hidden, "d_ff": wide, "d_kv": head, "num_heads": heads}
        special |= {"num_layers": config.layers, "dropout_rate": config.dropout, "decoder_start_token_id": 0}
    else:
        special = size | {"intermediate_size": wide, "attention_dropout": config.dropout}
        special |= {"num_key_value_heads": config.kv_heads or heads}
        if config.family in FAMILIES:
            special["head_dim"] = head
        if config.family in ("mistral", "qwen2", "qwen3"):
            special["sliding_window"] = None  # the window is that of our mask
    try:
        return transformers.AutoConfig.for_model(config.family, **tokens, **special)
    except ValueError as error:
        if "Unrecognized model" in str(error):
            wrong = unknown("family", config.family, FAMILIES)
            raise L4SError(f"backbone: {wrong}, or another model_type of transformers") from None
        raise L4SError(f"backbone: {config.family!r} of this size: {one_line(error)}: choose another size") from None


def _build(make: Callable[[str], Any]) -> Any:
    """Build a model with fused attention, or plain attention where its kind has no fused one (Gemma 2)."""
    try:
        return make("sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return make("eager")


@contextmanager
def _without_bars(bars: Any, where: str) -> Iterator[None]:
    """Show no bars of transformers while a folder is read, which takes a moment; a download keeps them."""
    if not (Path(where).is_dir() and bars.is_progress_bar_enabled()):
        yield
        return
    bars.disable_progress_bar()
    try:
        yield
    finally:
        bars.enable_progress_bar()


def _load(config: BackboneConfig, words: bool) -> tuple[Any, str]:
    """Load a pretrained model; return it and its commit on the hub."""
    transformers = optional("transformers", "llm")
    name, revision, dtype = pretrained.place(config.pretrained), config.revision or "main", getattr(torch, config.dtype)
    try:
        found = transformers.AutoConfig.from_pretrained(name, revision=revision)
        t5_encoder = found.model_type == "t5" and not config.decoder
        kind = transformers.T5EncoderModel if t5_encoder else transformers.AutoModel
        kind = transformers.AutoModelForCausalLM if words else kind
        options = {"revision": revision, "dtype": dtype}
        with _without_bars(transformers.utils.logging, name):
            model = _build(lambda attention: kind.from_pretrained(name, attn_implementation=attention, **options))
    except Exception as error:  # not found, hub unreachable, unknown type, or any error of a damaged file
        remedy = "give the folder of a downloaded model, or check name and connection"
        if name != config.pretrained:
            remedy = "remove it, it is made anew"
        raise L4SError(f"backbone {name!r}: cannot be loaded ({one_line(error)}): {remedy}") from error
    model.name_or_path = pretrained.original(config.pretrained)  # peft notes it
    return model, str(getattr(found, "_commit_hash", None) or "")


def _checked_digest(config: BackboneConfig, commit: str) -> str:
    """Return the digest of a pretrained model.

    Raises:
        L4SError: It is not the one of the configuration.
    """
    if not config.pretrained:
        return ""
    found = pretrained.digest(config.pretrained, commit or config.revision or "main")
    if config.digest not in ("", found):
        raise L4SError(
            f"backbone {config.pretrained!r}: is not the model that the agent was trained with (its SHA-256 is "
            f"{found[:8]}..., not {config.digest[:8]}...): put that model there again, or train the agent again"
        )
    return found


def _make(config: BackboneConfig, words: bool) -> tuple[Any, str]:
    """Return the model of transformers, and the commit of a pretrained one."""
    if config.pretrained:
        return _load(config, words)
    transformers = optional("transformers", "llm")
    sizes = random_config(config)
    t5_encoder = sizes.model_type == "t5" and not config.decoder
    if t5_encoder:
        sizes.use_cache = False
    plain = transformers.AutoModelForCausalLM if words else transformers.AutoModel
    kind = transformers.T5EncoderModel._from_config if t5_encoder else plain.from_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = _build(lambda attention: kind(sizes, attn_implementation=attention))
        except (ValueError, TypeError) as error:
            raise L4SError(
                f"backbone {config.family!r}: cannot be used ({one_line(error)}): choose another family"
            ) from error
    return model.to(getattr(torch, config.dtype)), ""


def cut(model: Any, last: int) -> None:
    """Remove the layers of a model of transformers behind layer `last`; the final normalisation stays.

    Raises:
        L4SError: It has fewer.
    """
    layers = int(model.config.num_hidden_layers)
    if last > layers:
        raise L4SError(f"backbone: {last} layers are to stay (exit_layer, keep of a recipe), of {layers}: give less")
    done: list[str] = []
    for name, module in list(model.named_modules()):
        inside = any(name.startswith(f"{outer}.") for outer in done)  # a layer may be a list, too
        if isinstance(module, nn.ModuleList) and len(module) == layers and not inside:
            done.append(name)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module[:last])
    model.config.num_hidden_layers = last


def _drop(model: nn.Module, weight: Tensor) -> None:
    """Free the memory of word embeddings, wherever they are; the row that stays tells their width and type."""
    row = nn.Parameter(weight.detach()[:1].clone(), requires_grad=False)
    for module in model.modules():
        if getattr(module, "weight", None) is weight:
            module.weight = row


def _attach(model: Any, config: LoraConfig, family: str) -> Any:
    """Put adapters into a model of transformers; frozen weights stay frozen.

    Returns:
        The `peft.PeftModel` around it.

    Raises:
        L4SError: peft is missing, or the modules are unknown or absent.
    """
    peft = optional("peft", "llm")
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from transformers.pytorch_utils import Conv1D

    targets = config.targets or TARGETS.get(family) or KNOWN.get(family)
    if not targets:
        raise L4SError(f"lora: no modules are known for {family!r}: name them in lora.targets")
    names = [targets] if isinstance(targets, str) else list(targets)
    found = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names]
    if not found and not isinstance(targets, str):
        weights = [name.split(".") for name, parameter in model.named_parameters() if parameter.ndim == 2]
        leaves = sorted({name[-2] for name in weights if name[-1] == "weight"})
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


class Backbone(nn.Module):
    """A transformer between embeddings and hidden states.

    Attributes:
        family: Its `model_type`.
        model: The model of transformers, or the `peft.PeftModel` around it.
        width: Width of embeddings and hidden states.
        commit: Commit of a pretrained model on the hub; else empty.
        digest: Digest of a pretrained model; else empty.
        weights: Which weights it started from (`pretrained.weights`).
        positions: `learned`, `rotary` or `bias`.
        limit: Number of positions.
    """

    def __init__(self, config: BackboneConfig, lora: LoraConfig, *, words: bool = False) -> None:
        """Build or load it.

        Args:
            config: What it is.
            lora: Adapters.
            words: Keep its language-model head; then call `core`, not the backbone itself.

        Raises:
            L4SError: It does not exist, or cannot be used; or a library is missing.
        """
        super().__init__()
        self.config = config
        model, self.commit = _make(config, words)
        self.digest, self.weights = _checked_digest(config, self.commit), pretrained.weights(config.pretrained)
        self.family: str = model.config.model_type
        if config.exit_layer:
            cut(model, config.exit_layer)
        model.requires_grad_(not config.frozen)
        try:
            embedding = model.get_input_embeddings()
        except NotImplementedError:
            embedding = None
        if not isinstance(embedding, nn.Embedding):
            raise L4SError(f"backbone {self.family!r}: cannot be used (it does not read text): choose another family")
        self.width = int(embedding.weight.shape[1])
        if not words:  # they are never read
            embedding.weight.requires_grad_(False)
            if config.pretrained:
                _drop(model, embedding.weight)
        if config.checkpointing:
            newer = getattr(model, "activation_checkpointing_enable", None)  # the newer name
            (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
        self.model = _attach(model, lora, self.family) if lora.rank else model
        self._tell_positions()
        if not words and self.family not in FAMILIES and not embedding.weight.is_meta:
            self._check()

    @property
    def adapted(self) -> bool:
        """Whether there are unmerged adapters."""
        return type(self.model).__name__.startswith("Peft")

    @property
    def core(self) -> Any:
        """The model of transformers, including any adapters."""
        return self.model.base_model.model if self.adapted else self.model

    @property
    def dtype(self) -> torch.dtype:
        """Type of embeddings and masks."""
        weight: Tensor = self.core.get_input_embeddings().weight
        return weight.dtype

    def _tell_positions(self) -> None:
        core = self.core
        count = int(getattr(core.config, "max_position_embeddings", 0) or 0)
        names = {name.rsplit(".", 1)[-1]: module for name, module in core.named_modules()}
        self._rotary: Any = names.get("rotary_emb")
        if self.family == "t5":
            self.positions, self.limit = "bias", 0
        elif self._rotary is not None and hasattr(self._rotary, "inv_freq"):
            self.positions, self.limit = "rotary", min(count or _LIMIT, _LIMIT)
        elif any(isinstance(names.get(name), nn.Embedding) for name in ("wpe", "embed_positions")):
            self.positions, self.limit = "learned", count
        else:
            raise L4SError(f"backbone {self.family!r}: its positions are of no known kind: choose another family")

    def merge(self) -> None:
        """Merge the adapters, if any, into the weights; the model can then no longer be trained or saved."""
        if self.adapted:
            self.model = self.model.merge_and_unload()

    def new_cache(self) -> Any:
        """Return an empty cache of keys and values."""
        transformers = optional("transformers", "llm")
        cache = transformers.DynamicCache()  # without a configuration: Mistral's would use its own window
        if not (self.family == "t5" and self.config.decoder):
            return cache
        return cache, transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())

    def forward(self, embeddings: Tensor, mask: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """Compute the hidden states.

        Args:
            embeddings: (B, N, width).
            mask: Additive (B or 1, 1, N, S); S counts the cached tokens and the new ones.
            positions: (B or 1, N) int64.
            cache: From `new_cache`; the new tokens are added to it; None: there are no earlier tokens.

        Returns:
            (B, N, width) float32.
        """
        embeddings = embeddings.to(self.dtype)
        if self.family == "t5":
            hidden = self._t5(embeddings, mask, cache)
        else:
            # Not through peft's wrapper: the adapters are in the model, and the wrapper takes time.
            hidden = self.core(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        return hidden.float()

    def _t5(self, embeddings: Tensor, mask: Tensor, cache: Any) -> Tensor:
        core = self.core
        encoder_cache, decoder_cache = cache if self.config.decoder and cache is not None else (cache, None)
        encoded = _t5_stack(core.encoder, embeddings, mask, encoder_cache)
        if not self.config.decoder:
            return encoded
        if decoder_cache is not None:
            decoder_cache.is_updated = {}  # the encoder's output grows, unlike that of a sentence
        mask = mask.expand(embeddings.shape[0], -1, -1, -1)
        hidden: Tensor = core.decoder(
            inputs_embeds=embeddings,
            attention_mask=mask,
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=decoder_cache,
            use_cache=decoder_cache is not None,
        ).last_hidden_state
        return hidden

    def forget(self, cache: Any, keep: int) -> Any:
        """Return the cache with its last `keep` tokens."""
        if keep == 0:
            return self.new_cache()
        for layer in _layers(cache):
            if layer.keys.shape[-2] > keep:
                layer.keys, layer.values = layer.keys[:, :, -keep:], layer.values[:, :, -keep:]
        return cache

    def shift(self, cache: Any, distance: int) -> None:
        """Rotate the keys of rotary positions back, as if each token's position were smaller by `distance`."""
        angle = distance * self._rotary.inv_freq.double()  # (D / 2,)
        angle = torch.cat((angle, angle))
        for layer in _layers(cache):
            size = len(angle)  # some models rotate only a part of the head
            keys, rest = layer.keys[..., :size].float(), layer.keys[..., size:]
            first, second = keys.chunk(2, -1)
            turned = keys * angle.cos().float() - torch.cat((-second, first), -1) * angle.sin().float()
            layer.keys = torch.cat((turned.to(rest.dtype), rest), -1)

    @torch.no_grad()
    def _check(self) -> None:
        """Check that an untested model respects mask, positions and cache; else its decisions would be wrong."""
        training = self.training
        self.eval()
        device = self.core.get_input_embeddings().weight.device
        x = torch.linspace(-2, 2, 6 * self.width, device=device).sin().view(1, 6, self.width)
        mask = banded(torch.ones(1, 6, dtype=torch.bool, device=device), 2, 2, self.dtype)
        position = torch.arange(6, device=device)[None]
        try:
            whole, cache, parts = self(x, mask, position), self.new_cache(), []
            for start in (0, 2, 4):
                if start == 4 and self.positions == "rotary":
                    self.shift(cache, 1)
                    position = position - 1
                seen = mask[..., -2:, -min(start, 2) - 2 :]
                parts.append(self(x[:, start : start + 2], seen, position[:, start : start + 2], cache))
                cache = self.forget(cache, 2)
            same = torch.allclose(whole, torch.cat(parts, 1), atol=_SAME if self.dtype == torch.float32 else 0.1)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
            raise L4SError(
                f"backbone {self.family!r}: does not take embeddings, mask and cache as others do ({one_line(error)}): "
                "choose another family"
            ) from error
        if not same:
            raise L4SError(f"backbone {self.family!r}: step by step it differs from one pass: choose another family")
        self.train(training)


def _layers(cache: Any) -> list[Any]:
    """Return the layers of all parts of a cache."""
    if isinstance(cache, tuple):
        encoder, both = cache
        return [*encoder.layers, *both.self_attention_cache.layers, *both.cross_attention_cache.layers]
    return list(cache.layers)


def _t5_stack(stack: Any, embeddings: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """Run T5's encoder with a causal mask; transformers gives it no cache, though its layers can use one."""
    if cache is None:
        whole: Tensor = stack(
            inputs_embeds=embeddings, attention_mask=mask.expand(embeddings.shape[0], -1, -1, -1)
        ).last_hidden_state
        return whole
    hidden, bias = stack.dropout(embeddings), None
    for block in stack.block:
        hidden, bias, _ = block(hidden, mask, bias, None, None, None, past_key_values=cache)
    last: Tensor = stack.dropout(stack.final_layer_norm(hidden))
    return last
