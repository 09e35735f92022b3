"""The text head: prompts, answers that are valid or not, and training until they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from l4s_gym import L4SError
from l4s_gym.agents.llm.settings import LoraConfig
from l4s_gym.schema import ACTIONS

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from l4s_gym.agents.llm import text  # noqa: E402
from l4s_gym.agents.llm.data import Target  # noqa: E402
from l4s_gym.agents.llm.text import ByteTokenizer, TextAgent, TextModel, answer, parse, prompt  # noqa: E402


def _prompts() -> list[str]:
    observations = np.random.default_rng(0).random((4, 8)).astype(np.float32)
    observations[:, 0] = [0, 1, 0, 1]
    return [prompt(row, 1.0) for row in observations]


def test_a_prompt_says_the_state_in_units() -> None:
    observation = [1.0, 0.5, 0.25, 0.2, 0.1, 0.02, 0.3, 1.0]
    assert prompt(observation, 2.5) == (
        "queue L; burst 75000 us; p 0.2500; delay 20000 us; sum of p 0.8500; length 3000 B; drops 3; packet 1500 B; "
        "return 2.5. enqueue, drop, mark?"
    )
    other = prompt([0.0, *observation[1:]], -0.25, missing=True)
    assert other.startswith("queue C; ") and "; sum of p unknown; " in other and "; return -0.25. " in other


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
    assert (answers.tokens == text.ANSWER_TOKENS).all() and len(answers.texts) == 4


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
def test_training_makes_answers_valid(family: str, make_config: Any) -> None:
    """It learns to write words, and which: the action follows the queue. A batch answers as each alone."""
    torch.manual_seed(0)
    model = TextModel(make_config(family, positions=512, hidden=32, lora=LoraConfig()))
    prompts, actions = _prompts(), [0, 2, 0, 2]
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)

    def loss_of(model: TextModel) -> Any:
        return -model.scores(prompts)[range(4), actions].mean()

    first = loss = loss_of(model)
    for _ in range(300):
        loss = loss_of(model)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()
        if loss < 0.3:  # undecided between two words would be 0.7
            break
    assert loss < 0.1 * first
    answers = model.eval().ask(prompts)
    assert answers.valid.all() and answers.actions.tolist() == actions
    assert answers.tokens.tolist() == [len(answer(action)) + 1 for action in actions]
    alone = [model.ask([each]).texts[0] for each in prompts]
    assert alone == list(answers.texts)


def test_a_row_of_draws_gives_the_same_answer_in_any_batch(make_config: Any) -> None:
    model = TextModel(make_config(positions=512)).eval()
    draws = np.random.default_rng(1).random((4, text.ANSWER_TOKENS))
    drawn = model.ask(_prompts(), draws).texts
    assert len(set(drawn)) == 4
    assert drawn[::-1] == model.ask(_prompts()[::-1], draws[::-1].copy()).texts
    assert drawn[2:3] == model.ask(_prompts()[2:3], draws[2:3]).texts


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen3"])
def test_scores_are_the_probabilities_of_the_answers(family: str, make_config: Any) -> None:
    """One pass over the three side by side gives what each alone gives, whatever else is in the batch."""
    model = TextModel(make_config(family, positions=512)).eval()
    prompts = [_prompts()[0], _prompts()[1][40:]]  # of different lengths
    tokenizer, found = model.tokenizer, []
    with torch.no_grad():
        for each in prompts:
            for action in range(len(ACTIONS)):
                asked, told = tokenizer.encode(each), [*tokenizer.encode(answer(action)), tokenizer.end]
                logits = model.backbone.core(input_ids=torch.tensor([asked + told])).logits[0, len(asked) - 1 : -1]
                found.append(float(logits.log_softmax(-1)[range(len(told)), told].sum()))
        scores = model.scores(prompts)
    torch.testing.assert_close(scores.flatten(), torch.tensor(found), atol=1e-4, rtol=1e-5)
    assert (scores.exp().sum(1) < 1).all()
    assert model.read == sum(len(tokenizer.encode(each)) for each in prompts) + 2 * sum(len(a) + 2 for a in ACTIONS)


def test_the_agent_asks_and_reads(make_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what is left of its target, and what it cannot read is "enqueue", and counted."""
    asked: list[str] = []

    def ask(prompts: list[str], draws: Any) -> text.Answers:
        asked.extend(prompts)
        assert (draws is None) == (agent.rule == "argmax")
        return text.Answers(np.array([2, 0]), np.array([True, False]), ("mark", "mork"), np.array([5, 12]))

    for rule in text.RULES:
        agent = TextAgent(TextModel(make_config(positions=512)), Target(10.0, 0.0, 10.0), rule=rule)
        monkeypatch.setattr(agent.model, "ask", ask)
        asked.clear()
        agent.reset(2, 0)
        for reward in (99.0, 1.0, 20.0):  # what comes before the first decision does not count
            taken = agent.act(np.full((2, 8), 0.5, np.float32), np.array([reward, 0.0]))
            assert taken.tolist() == [2, 0]
        told = [each.partition("; return ")[2].partition(". ")[0] for each in asked]
        assert told == ["10", "10", "9", "10", "0", "10"]
        assert agent.counts == {"asked": 6, "invalid": 3, "tokens": 51}
        agent.reset(2, 0)
        assert not agent.counts
    with pytest.raises(L4SError, match="call reset"):
        agent.act(np.zeros((1, 8), np.float32), np.zeros(1))


@pytest.mark.parametrize("rule", text.RULES)
def test_a_batch_of_queues_decides_as_each_alone(rule: str, make_config: Any) -> None:
    torch.manual_seed(0)
    agent = TextAgent(TextModel(make_config(positions=512)), Target(1.0), rule=rule)
    observations = np.random.default_rng(0).random((2, 3, 8)).astype(np.float32)
    texts: list[tuple[str, ...]] = []
    ask = agent.model.ask

    def noted(prompts: list[str], draws: Any) -> text.Answers:
        answers = ask(prompts, draws)
        texts.append(answers.texts)
        return answers

    agent.model.ask = noted  # type: ignore[method-assign, assignment]
    agent.reset(3, 5)
    for row in observations:
        agent.act(row, np.zeros(3))
    together, texts[:] = list(texts), []
    for k in range(3):
        agent.reset(1, 5 + k)
        for row in observations:
            agent.act(row[k : k + 1], np.zeros(1))
    assert texts == [together[step][k : k + 1] for k in range(3) for step in range(2)]
    if rule == "sample":
        assert len(set(texts)) == 6


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
    model: Any = TextModel(make_config(pretrained=str(tmp_path))).eval()
    assert parse(model.tokenizer.decode(model.tokenizer.encode(answer(2)))) == 2
    assert len(model.ask(_prompts()).texts) == 4
    assert torch.isfinite(model.scores(_prompts())).all()


def test_errors(make_config: Any, tmp_path: Path) -> None:
    with pytest.raises(L4SError, match="needs a causal backbone"):
        TextModel(make_config("t5"))
    with pytest.raises(L4SError, match="the backbone has 48: raise positions"):
        TextModel(make_config()).ask(_prompts())
    with pytest.raises(L4SError, match="cannot be loaded"):
        TextModel(make_config(pretrained=str(tmp_path)))
