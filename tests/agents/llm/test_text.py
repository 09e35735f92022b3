"""The text head: prompts, answers that are valid or not, and training until they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.config import LoraConfig
from l4s_gym.schema import ACTIONS, OBSERVED

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from l4s_gym.agents.llm import text  # noqa: E402
from l4s_gym.agents.llm.text import ByteTokenizer, TextModel, answer, parse, prompt  # noqa: E402


def _prompts() -> list[str]:
    observations = np.random.default_rng(0).random((4, 8)).astype(np.float32)
    observations[:, 0] = [0, 1, 0, 1]
    return [prompt(row, 1.0) for row in observations]


def test_a_prompt_says_the_state_in_units() -> None:
    observation = [1.0, 0.5, 0.25, 0.2, 0.1, 0.02, 0.3, 1.0]
    written = prompt(observation, 2.5)
    for part in ("queue L;", "burst_allowance 75000 us;", "drop_probability 0.2500;", "current_queue_delay 20000 us;",
                 "accumulated_probability 0.8500;", "length_in_bytes 3000 B;", "total_drops 3 packets;",
                 "packet_length 1500 B;", "return to go 2.5."):  # fmt: skip
        assert part in written, written
    assert written.endswith("enqueue, drop, mark? Answer:")
    assert all(name in written for name in OBSERVED[1:])
    assert prompt([0.0, *observation[1:]], 2.5).startswith("queue C;")


@pytest.mark.parametrize(
    ("written", "action"),
    [(" enqueue", 0), ("Drop.", 1), ("mark!\n", 2), ("", None), ("enqueue drop", None), ("marked", None), ("3", None)],
)
def test_parsing(written: str, action: int | None) -> None:
    assert parse(written) == action


def test_answers_are_read_back() -> None:
    tokenizer = ByteTokenizer()
    for action in range(len(ACTIONS)):
        assert parse(tokenizer.decode([*tokenizer.encode(answer(action)), tokenizer.end, tokenizer.pad])) == action
    assert tokenizer.decode(tokenizer.encode("Verzögerung 3 µs")) == "Verzögerung 3 µs"
    assert max(tokenizer.pad, tokenizer.end) < tokenizer.size


def test_an_untrained_model_babbles(make_config: Any) -> None:
    """No answer is valid, each counts as enqueue, and all are cut off."""
    model = TextModel(make_config(positions=512)).eval()
    answers = model.ask(_prompts())
    assert not answers.valid.any() and (answers.actions == 0).all()
    assert answers.tokens == text.ANSWER_TOKENS and answers.seconds > 0 and len(answers.texts) == 4


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_training_makes_answers_valid(family: str, make_config: Any) -> None:
    """It learns to write words, and which: the action follows the queue. A batch answers as each alone."""
    torch.manual_seed(0)
    model = TextModel(make_config(family, positions=512, hidden=32, lora=LoraConfig()))
    prompts, actions = _prompts(), [0, 2, 0, 2]
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    first = loss = model.loss(prompts, actions)
    for _ in range(300):
        loss = model.loss(prompts, actions)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        if loss < 0.03:  # undecided between two words would be 0.08
            break
    assert loss < 0.1 * first
    answers = model.eval().ask(prompts)
    assert answers.valid.all() and answers.actions.tolist() == actions
    assert answers.tokens == len(" enqueue") + 1
    alone = [model.ask([each]).texts[0] for each in prompts]
    assert alone == list(answers.texts)


def test_sampling_follows_the_generator(make_config: Any) -> None:
    model = TextModel(make_config(positions=512)).eval()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.ask(_prompts(), sample=True).texts)
    assert drawn[0] == drawn[1] != drawn[2]


def test_only_adapters_train_when_frozen(make_config: Any) -> None:
    model = TextModel(make_config(positions=512, freeze=True))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)


def test_a_pretrained_model_brings_its_tokenizer(make_config: Any, tmp_path: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<end>", *sorted({word for each in _prompts() for word in each.replace(":", " :").split()} | {*ACTIONS})]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=inner, eos_token="<end>").save_pretrained(tmp_path)
    sizes = transformers.GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(sizes).save_pretrained(tmp_path)
    model = TextModel(make_config(pretrained=str(tmp_path))).eval()
    assert parse(model.tokenizer.decode(model.tokenizer.encode(answer(2)))) == 2
    assert len(model.ask(_prompts()).texts) == 4
    assert torch.isfinite(model.loss(_prompts(), [0, 1, 2, 0]))


def test_errors(make_config: Any, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="needs a causal backbone"):
        TextModel(make_config("t5"))
    with pytest.raises(L4SError, match="the backbone has 48: raise positions"):
        TextModel(make_config()).ask(_prompts())
    with pytest.raises(L4SError, match="cannot be loaded"):
        TextModel(make_config(pretrained=str(tmp_path)))
