"""The scores that TRL's DPOTrainer precomputes for the same model and pairs: the same to 1e-3."""

import pytest
import torch

from multiref.models import LanguageModel
from multiref.references.local import LocalReference
from multiref.references.protocol import Item
from tests.conftest import make_llama, make_tokenizer

trl = pytest.importorskip("trl")
pytestmark = pytest.mark.slow

PAIRS = [
    {"prompt": "the dog", "chosen": " sat on the log", "rejected": " and the cat sat on the mat and the dog"},
    {"prompt": "what is two plus three?", "chosen": " two plus three is five.", "rejected": " yes"},
    {"prompt": "Question: is it raining? Answer:", "chosen": " yes, it is raining hard.", "rejected": " is it"},
    {"prompt": "Once upon a time", "chosen": " there was a little dog named Max.", "rejected": " there was a mat"},
    {"prompt": "the", "chosen": " cat", "rejected": " dog"},
]
CHATS = [
    {key: [{"role": "user" if key == "prompt" else "assistant", "content": text.strip()}] for key, text in pair.items()}
    for pair in PAIRS
]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
@pytest.mark.parametrize("rows", [PAIRS, CHATS], ids=["plain", "conversations"])
def test_precomputed_reference_scores(rows, kind, tmp_path):
    from datasets import Dataset

    tokenizer = make_tokenizer(kind, chat=True)
    model = make_llama(len(tokenizer))
    args = trl.DPOConfig(
        output_dir=str(tmp_path), precompute_ref_log_probs=True, precompute_ref_batch_size=2, per_device_train_batch_size=2,
        bf16=False,
        max_length=None, report_to=[], use_cpu=True, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    theirs = torch.tensor([[row["ref_chosen_logps"], row["ref_rejected_logps"]] for row in trainer.train_dataset]).double()

    def text(value):
        return value if isinstance(value, str) else tuple(value)

    items = [Item(text(row["prompt"]), (text(row["chosen"]), text(row["rejected"]))) for row in rows]
    ours = LocalReference(LanguageModel(model, tokenizer, "tiny")).score(items).logps.view(-1, 2)
    assert torch.allclose(ours, theirs, atol=1e-3, rtol=0)
