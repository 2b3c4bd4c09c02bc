"""Port of cases/scoring_end_twice: TRL's trainer under our columns sees what was scored, so an untrained policy that
is its own reference has the loss log 2, whatever end the texts carry."""

import copy
import math

import pytest

import multiref as mr
from multiref.errors import ArgumentError, MultirefWarning
from multiref.models import LanguageModel, Tokenisation
from multiref.training import PreferenceData
from tests.conftest import make_llama
from tests.models.templates import CHATML, byte_tokenizer

USER = [{"role": "user", "content": "hi"}]
ROWS = {
    "plain": {"prompt": "hello", "chosen": " world", "rejected": " no"},
    "ended": {"prompt": "hello", "chosen": " world<|im_end|>", "rejected": " no<|im_end|>"},
    "ended and a line": {"prompt": "hello", "chosen": " world<|im_end|>\n", "rejected": " no"},
    "started": {"prompt": "<s>hello", "chosen": " world", "rejected": " no<|im_end|>"},
    "chat": {
        "prompt": USER,
        "chosen": [{"role": "assistant", "content": "yes<|im_end|>"}],
        "rejected": [{"role": "assistant", "content": "no"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
}
TEMPLATE = "{{ tools | tojson if tools }}" + CHATML


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    pytest.importorskip("trl")


def first_loss(row, folder, scored=None, **options):
    """TRL's loss before the first step, of a policy that is its own reference."""
    from datasets import Dataset
    from trl import DPOConfig

    from multiref.integrations.trl import ReferenceColumnsDPOTrainer, with_reference_columns

    tokenizer = byte_tokenizer(TEMPLATE if not isinstance(row["prompt"], str) else None, eos="<|im_end|>", bos=True)
    model = make_llama(len(tokenizer), context=512)
    references = mr.References(
        {"self": LanguageModel(copy.deepcopy(model), tokenizer, "m")}, tokenisation=scored or Tokenisation()
    )
    data = Dataset.from_list([row])
    data = with_reference_columns(data, references.score(data), mr.ReverseKL([1.0]))
    config = DPOConfig(
        str(folder), precompute_ref_log_probs=True, beta=1.0, max_steps=1, learning_rate=0.0, logging_steps=1, report_to="none",
        use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True, save_strategy="no", **options,
    )  # fmt: skip
    trainer = ReferenceColumnsDPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    return next(line["loss"] for line in trainer.state.log_history if "loss" in line)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("end", [True, False])
def test_the_first_loss_is_log_two(kind, end, tmp_path):
    assert first_loss(ROWS[kind], tmp_path, Tokenisation(end=end)) == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*texts did not fit")
def test_what_trl_would_cut_or_scores_otherwise_is_not_trained_in_silence(tmp_path):
    with pytest.raises(ArgumentError, match="max_length"):
        first_loss(ROWS["plain"], tmp_path, max_length=8)
    with pytest.raises(ArgumentError, match="are cut"):
        first_loss(ROWS["plain"], tmp_path, Tokenisation(max_length=8))
    with pytest.warns(MultirefWarning, match="cannot be compared"):
        first_loss(ROWS["plain"], tmp_path, Tokenisation(start=False))


def test_policy_and_references_have_one_convention():
    """Scores with the end beside a policy without it, or joined otherwise: refused by the reference's name."""
    tokenizer = byte_tokenizer(eos="<|im_end|>")
    references = mr.References({"a": LanguageModel(make_llama(len(tokenizer)), tokenizer, "m")})
    pairs = [mr.data.as_pair(ROWS["plain"])]
    scores = references.score(pairs)
    PreferenceData(pairs, scores, tokenizer)
    for other in (Tokenisation(end=False), Tokenisation(join="tokens")):
        with pytest.raises(ArgumentError, match="'a' was scored with"):
            PreferenceData(pairs, scores, tokenizer, tokenisation=other)
