"""An adapter trained under another template than its base's: the folder has it, and is scored by it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import multiref as mr
from tests.conftest import make_llama, make_tokenizer

A, B = (
    "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + opened + "{% endif %}"
    for turn, opened in (
        ("{{ m['role'] }}: {{ m['content'] }}<s>\n", "assistant: "),
        ("[{{ m['role'] }}] {{ m['content'] }} <s>", "[assistant] "),
    )
)


def test_the_folder_is_scored_as_it_was_trained(tmp_path, monkeypatch):
    """By `PreferenceTrainer.save_model`, from a base that was named by a relative path, and loaded from another folder."""
    import peft

    monkeypatch.chdir(tmp_path)
    tokenizer = make_tokenizer()
    model = make_llama(len(tokenizer), std=0.1)
    for name, template in (("baseA", A), ("baseB", B)):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(name)
        model.save_pretrained(name)
    say = lambda role, text: [{"role": role, "content": text}]  # noqa: E731
    rows = [
        {
            "prompt": say("user", f"{w}?"),
            "chosen": say("assistant", f"{w} sat on the mat."),
            "rejected": say("assistant", "no."),
        }
        for w in ("the cat", "a dog", "Max")
    ]
    pairs = [mr.data.as_pair(row) for row in rows]
    torch.manual_seed(0)
    policy = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained("baseA"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
    )
    trainer = mr.training.PreferenceTrainer(
        policy,
        regularizer=mr.ReverseKL([1.0]),
        beta=0.1,
        scores=mr.References({"r": "baseB"}).score(pairs),
        train_dataset=pairs,
        processing_class=tokenizer,  # template B
        args=TrainingArguments(
            "adapter",
            per_device_train_batch_size=3,
            learning_rate=1e-2,
            max_steps=5,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
        ),
    )
    trainer.train()
    trainer.save_model("adapter")
    monkeypatch.chdir(tmp_path.parent)
    folder = str(tmp_path / "adapter")
    with torch.no_grad():
        own = mr.models.completion_logps(trainer.model.eval(), trainer.train_dataset.batch(range(3)).encoded).reshape(-1, 2)
    chosen, rejected = mr.References({"x": folder}).score(pairs).of_pairs(pairs)
    assert torch.stack([chosen[0], rejected[0]], 1) == pytest.approx(own, abs=1e-4)
    assert AutoTokenizer.from_pretrained(folder).chat_template == B == mr.models.load(folder).tokenizer.chat_template
