"""The reward trainer: its loss worked out by hand, nothing beside a pair matters, the population optimum, exact resumption,
and what it writes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from multiref.data import as_pair
from multiref.errors import ArgumentError, DataError, ModelError, MultirefWarning
from multiref.models import ModelSpec, Tokenisation
from multiref.models.small import word_tokenizer
from multiref.training import RewardData, RewardTrainer
from multiref.training.dataset import collate
from multiref.training.online import RewardModel
from multiref.training.reward import open_reward_model, rewards_of
from multiref.training.reward.model import with_lora
from tests.models.templates import byte_tokenizer
from tests.training.world import arguments

WORDS = [f"w{k}" for k in range(8)]
PAIRS = [
    {"prompt": "w0 w1", "chosen": " w2 w3 w4", "rejected": " w5"},
    {"prompt": "w3", "chosen": " w1", "rejected": " w2 w2", "margin": 0.7},
    {"prompt": "w5 w6 w7", "chosen": " w0 w3", "rejected": " w4 w1 w1 w2", "margin": -0.2},
]


def small(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        pad_token_id=0,
        num_labels=1,
    )
    return LlamaForSequenceClassification(config).to(dtype)


def trainer(folder, *, model=None, pairs=PAIRS, **options):
    tokenizer = word_tokenizer(WORDS)
    data = pairs if isinstance(pairs, RewardData) else RewardData(pairs, tokenizer, tokenisation=Tokenisation(end=False))
    given = {name: options.pop(name) for name in ("label_smoothing", "privacy", "centre", "eval_dataset") if name in options}
    return RewardTrainer(
        model or small(), args=arguments(folder, **options), train_dataset=data, processing_class=tokenizer, **given
    )


def alone(model, text):
    """The reward of one text by the model's own forward pass, without a batch."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([word_tokenizer(WORDS)(text)["input_ids"]])).logits[0, 0].item()


@pytest.mark.parametrize("smoothing, centre", [(0.0, 0.0), (0.1, 0.0), (0.2, 0.05)])
def test_the_loss_is_the_formula(tmp_path, smoothing, centre):
    """NumPy, one text at a time: −(1−ε) log σ(d) − ε log σ(−d) + c (r_w + r_l)², d = r_w − r_l − margin."""
    made = trainer(tmp_path, label_smoothing=smoothing, centre=centre)
    expected = []
    for row in PAIRS:
        w, l = (alone(made.model, row["prompt"] + row[side]) for side in ("chosen", "rejected"))
        d = w - l - row.get("margin", 0.0)
        expected.append((1 - smoothing) * np.log1p(np.exp(-d)) + smoothing * np.log1p(np.exp(d)) + centre * (w + l) ** 2)
    data = made.train_dataset
    loss, values = made.compute_loss(made.model.eval(), collate([(data, i) for i in range(3)]), return_outputs=True)
    np.testing.assert_allclose(values["loss"].numpy(), expected, rtol=1e-9)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-6)
    filled, _ = made.compute_loss(made.model, collate([(data, 0), (data, 1), (data, -3)]), return_outputs=True)
    assert filled.item() == pytest.approx(np.mean(expected[:2]), rel=1e-6)  # a pair that only fills does not count


def test_a_reward_depends_on_its_text_alone():
    model, tokenizer = small().eval(), word_tokenizer(WORDS)
    texts = [(row["prompt"], row[side]) for row in PAIRS for side in ("chosen", "rejected")]
    prompts, completions = zip(*texts)
    expected = torch.tensor([alone(model, p + c) for p, c in texts], dtype=torch.float64)
    for batch in (1, 2, 6):
        torch.testing.assert_close(
            rewards_of(model, tokenizer, prompts, completions, batch=batch, end=False), expected, rtol=1e-9, atol=1e-12
        )
    tokenizer.padding_side = "left"
    inputs = tokenizer([p + c for p, c in texts], return_tensors="pt", padding=True)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    left = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], position_ids=positions).logits[:, 0]
    torch.testing.assert_close(left.detach(), expected, rtol=1e-9, atol=1e-12)


def test_it_ends_at_the_population_optimum(tmp_path):
    """Six completions, every comparison both ways with its Bradley–Terry probability as count.
    SciPy minimises the population loss over six free numbers:

        Σ_{a≠b} σ(r*_a − r*_b) {−log σ(r_a − r_b) + c (r_a + r_b)²}

    Without the centring term that is r* up to a constant; the term settles the constant, and shrinks differences a little (c is
    not free).
    """
    true = torch.tensor([0.0, 1.0, -0.5, 2.0, 0.3, -1.2], dtype=torch.float64)
    a, b = (~torch.eye(6, dtype=torch.bool)).nonzero(as_tuple=True)
    counts, centre = torch.sigmoid(true[a] - true[b]), 0.01

    def population(r, c=centre):
        return float((counts.numpy() * (np.log1p(np.exp(r[b] - r[a])) + c * (r[a] + r[b]) ** 2)).sum())

    best = torch.tensor(minimize(population, np.zeros(6), tol=1e-12).x)
    free = torch.tensor(minimize(population, np.zeros(6), args=(0.0,), tol=1e-12).x)
    torch.testing.assert_close(free - free.mean(), true - true.mean(), atol=1e-4, rtol=0)
    pairs = [{"prompt": "w7", "chosen": f" w{i}", "rejected": f" w{j}"} for i, j in zip(a.tolist(), b.tolist())]
    data = RewardData(pairs, word_tokenizer(WORDS), tokenisation=Tokenisation(end=False), counts=counts)
    made = trainer(
        tmp_path,
        pairs=data,
        per_device_train_batch_size=len(data),
        max_steps=100,
        learning_rate=0.03,
        lr_scheduler_type="cosine",
        centre=centre,
        eval_dataset=data,
        per_device_eval_batch_size=7,
    )
    made.train()
    found = rewards_of(made.model, made.processing_class, ["w7"] * 6, [f" w{k}" for k in range(6)], end=False)
    torch.testing.assert_close(found, best, atol=0.02, rtol=0)
    metrics = made.evaluate()
    assert metrics["eval_loss"] == pytest.approx(population(best.numpy()) / counts.sum().item(), abs=1e-4)
    assert metrics["eval_nll"] == pytest.approx(population(best.numpy(), 0.0) / counts.sum().item(), abs=1e-3)
    assert metrics["eval_rewards/accuracies"] == pytest.approx(torch.maximum(counts, 1 - counts).sum().item() / 30, abs=1e-6)
    assert metrics["eval_calibration_error"] < 0.03 and sum(bin.count for bin in made.reliability.bins) == pytest.approx(15)


def test_a_resumed_run_is_the_same_run(tmp_path):
    options = {
        "per_device_train_batch_size": 1,
        "max_steps": 6,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "seed": 3,
    }
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    first = trainer(tmp_path / "parts", **options, save_strategy="steps", save_steps=3)
    first.train()
    again = trainer(tmp_path / "parts", model=small(seed=9), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    assert not list(Path(tmp_path).rglob("training_args.bin"))


def test_micro_batches_change_nothing(tmp_path):
    results = []
    for batch, accumulation in ((3, 1), (1, 3)):
        made = trainer(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=0.01,
            optim="sgd",
        )
        made.train()
        results.append(torch.cat([p.detach().flatten() for p in made.model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_what_it_writes_loads_as_everybodys(tmp_path):
    made = trainer(tmp_path, max_steps=2, learning_rate=0.01)
    made.train()
    made.save_model(str(tmp_path / "model"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert loaded.config.num_labels == 1 and loaded.config.multiref_reward == {
        "start": True, "end": False, "join": "text", "chat_template_kwargs": {}
    }  # fmt: skip
    again = open_reward_model(ModelSpec(str(tmp_path / "model"), dtype="float64"))
    prompts, completions = ["w1", "w2 w3"], [" w4", " w5"]
    expected = rewards_of(made.model, made.processing_class, prompts, completions)
    torch.testing.assert_close(rewards_of(again.model, again.tokenizer, prompts, completions), expected, rtol=1e-6, atol=1e-7)
    from multiref.training.online import RewardModel

    online = torch.tensor(RewardModel(str(tmp_path / "model"), dtype="float64")(prompts, completions), dtype=torch.float64)
    torch.testing.assert_close(online, expected, rtol=1e-6, atol=1e-7)


def test_texts_are_encoded_as_they_were_in_training(tmp_path):
    """For evaluation pairs that come as texts, and for whoever uses the model: without the start token here."""
    tokenizer, pairs = byte_tokenizer(bos=True), [{"prompt": "ab", "chosen": " c", "rejected": " d"}]
    data = RewardData(pairs, tokenizer, tokenisation=Tokenisation(start=False))
    shape = small().config
    shape.vocab_size, shape.max_position_embeddings = len(tokenizer), 128
    given = {"args": arguments(tmp_path), "train_dataset": data, "eval_dataset": pairs, "processing_class": tokenizer}
    made = RewardTrainer(LlamaForSequenceClassification(shape).double(), **given)
    assert made.eval_dataset.encoded == data.encoded != RewardData(pairs, tokenizer).encoded
    with torch.no_grad():
        expected = made.model.eval()(input_ids=torch.tensor([data.rows(0)[0]])).logits[0]
    assert rewards_of(made.model, tokenizer, ["ab"], [" c"]).tolist() == pytest.approx(expected.tolist(), rel=1e-9)
    with pytest.raises(ArgumentError, match="tokenisation: found another than that of train_dataset"):
        RewardTrainer(made.model, tokenisation=Tokenisation(join="tokens"), **given)


def test_an_adapter_that_is_saved_reads_texts_as_they_were_in_training(tiny_folder, tmp_path):
    """Its base's configuration does not say that an end token closed each of them."""
    opened = open_reward_model(tiny_folder, device="cpu")
    model = with_lora(opened.model, {"r": 2, "target_modules": ["q_proj"]})
    pairs = [
        {"prompt": "the cat", "chosen": " sat", "rejected": " on the mat"},
        {"prompt": "a", "chosen": " b", "rejected": " c"},
    ]
    options = {"processing_class": opened.tokenizer, "train_dataset": pairs}
    made = RewardTrainer(model, args=arguments(tmp_path, max_steps=3, learning_rate=1e-1), **options)
    made.train()
    made.save_model(tmp_path / "saved")
    opened.tokenizer.save_pretrained(tmp_path / "saved")
    given = ["the cat", "a"], [" sat", " b c"]
    expected = rewards_of(made.model, opened.tokenizer, *given)
    assert RewardModel(str(tmp_path / "saved"), device="cpu")(*given) == pytest.approx(expected.tolist(), abs=1e-5)
    assert float((rewards_of(made.model, opened.tokenizer, *given, end=False) - expected).abs().min()) > 1e-3


@pytest.mark.parametrize(
    ("changed", "error", "name"),
    [
        ({"learning_rate": 0.1}, ArgumentError, "learning_rate"),  # transformers would go on at the old one
        ({"weight_decay": 0.1}, ArgumentError, "weight_decay"),
        ({"adam_beta2": 0.9}, ArgumentError, "adam_beta2"),
        ({"optim": "sgd"}, ArgumentError, "optim"),
        ({"seed": 4}, MultirefWarning, "seed"),
        ({"per_device_train_batch_size": 1}, MultirefWarning, "per_step"),
        ({"train_sampling_strategy": "sequential"}, MultirefWarning, "shuffle"),
        ({"pairs": [*PAIRS[:2], {**PAIRS[2], "chosen": " w0 w4"}]}, MultirefWarning, "data"),
        ({"pairs": [*PAIRS[:2], {**PAIRS[2], "margin": 0.2}]}, MultirefWarning, "margins"),
        ({"model": "float32"}, MultirefWarning, "dtype"),
        ({"centre": 0.1}, MultirefWarning, "centre"),
        ({"max_steps": 3, "lr_scheduler_type": "cosine"}, None, ""),  # these are taken as they are now
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_going_on_under_other_settings_is_refused_or_said(changed, error, name, tmp_path):
    given = {"max_steps": 2, "learning_rate": 0.01, "seed": 3}
    trainer(tmp_path, **given, save_strategy="steps", save_steps=1).train()
    model = small(dtype=torch.float32) if changed.get("model") else None
    again = trainer(tmp_path, **given | changed | {"model": model})
    where = {"resume_from_checkpoint": str(tmp_path / "checkpoint-1")}
    if error is ArgumentError:
        with pytest.raises(error, match=f"^{name}: the checkpoint was written under"):
            again.train(**where)
    elif error is MultirefWarning:
        order = name in ("seed", "per_step", "shuffle", "data")
        what = "pairs come twice or not at all" if order else "What was trained before was of the other"
        with pytest.warns(error, match=f"^{name}: the checkpoint was written under.*{what}"):
            again.train(**where)
    else:
        again.train(**where)


def test_a_language_model_s_new_head_is_zero(tiny_folder):
    opened = open_reward_model(str(tiny_folder), device="cpu")
    assert torch.equal(opened.model.score.weight, torch.zeros(1, 32))
    assert (
        opened.tokenizer.pad_token_id != opened.tokenizer.eos_token_id
        and opened.model.config.pad_token_id == opened.tokenizer.pad_token_id
    )
    assert torch.equal(rewards_of(opened.model, opened.tokenizer, ["the cat"], [" sat"]), torch.zeros(1, dtype=torch.float64))


def test_labels_that_are_marked_as_private_are_recognised(tmp_path):
    """In training and evaluation data; clean evaluation labels are fine beside private ones."""
    marked = [{**pair, "privacy_epsilon": 1.0} for pair in PAIRS]
    held, clean = (RewardData(each, word_tokenizer(WORDS), tokenisation=Tokenisation(end=False)) for each in (marked, PAIRS))
    for options in ({"pairs": marked}, {"eval_dataset": {"held": held}}, {"pairs": marked, "privacy": 2.0}):
        with pytest.raises(DataError, match=r"private at ε = 1.*RewardTrainer: privacy="):
            trainer(tmp_path, **options)
    trainer(tmp_path, pairs=marked, privacy=1.0, eval_dataset=clean)


def test_bad_input_is_one_clear_error(tmp_path):
    with pytest.raises(ArgumentError, match=r"label_smoothing: found 0\.5"):
        trainer(tmp_path, label_smoothing=0.5)
    with pytest.raises(ArgumentError, match="centre: found -1"):
        trainer(tmp_path, centre=-1.0)
    with pytest.raises(DataError, match="No pair"):
        trainer(tmp_path, pairs=[])
    with pytest.raises(DataError, match=r"rows\.jsonl:4: `margin` is 'much'"):
        as_pair({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, origin="rows.jsonl:4")
    with pytest.raises(ModelError, match="2 outputs, expected one"):
        config = small().config
        config.num_labels = 2
        trainer(tmp_path, model=LlamaForSequenceClassification(config))
    with pytest.raises(ModelError, match="no classification head"):
        from multiref.models.small import small_llama

        trainer(tmp_path, model=small_llama(9))
    with pytest.raises(ModelError, match="no model folder"):
        open_reward_model(str(tmp_path / "nothing-here"))
    bare = word_tokenizer(WORDS)
    bare.pad_token = None
    with pytest.raises(ArgumentError, match="no padding token"):
        RewardData(PAIRS, bare, tokenisation=Tokenisation(end=False))


@pytest.mark.shared
def test_a_real_small_model_learns_real_preferences(shared, tmp_path):
    """stories260K tells true continuations of stories from another story's, which it has not seen:
    well above chance, and better than its zero head."""
    import json

    lines = (shared / "data" / "tinystories" / "stories.jsonl").read_text(encoding="utf-8").splitlines()[:260]
    words = [json.loads(line)["text"].split() for line in lines]
    pairs = [
        {"prompt": " ".join(own[:12]), "chosen": " " + " ".join(own[12:24]), "rejected": " " + " ".join(reversed(own[12:24]))}
        for own in words
    ]
    opened = open_reward_model(str(shared / "models" / "stories260K"), device="cpu")
    made = RewardTrainer(
        opened.model,
        args=arguments(tmp_path, per_device_train_batch_size=16, max_steps=16, learning_rate=3e-3, lr_scheduler_type="cosine"),
        train_dataset=pairs[:200],
        eval_dataset=pairs[200:],
        processing_class=opened.tokenizer,
        centre=0.01,
    )
    before = made.evaluate()
    assert before["eval_nll"] == pytest.approx(math.log(2), abs=1e-6) and before["eval_rewards/accuracies"] == 0.5
    made.train()
    after = made.evaluate()
    assert after["eval_rewards/accuracies"] > 0.8 and after["eval_nll"] < 0.5
    assert abs(after["eval_rewards/chosen"] + after["eval_rewards/rejected"]) < 1.0
