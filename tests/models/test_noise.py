"""Noise that is left in evaluation mode is caught by the name of its module, wherever its random numbers come from; a draw
that decides nothing is not; and the policy's generators, weights and later mode are as they were."""

import random
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import multiref as mr
from multiref.errors import ArgumentError, ModelError
from multiref.models import LanguageModel, completion_logps, encode
from multiref.models.architecture import run
from multiref.models.noise import plain_rows, refuse_adapter_dropout, refuse_noise, set_evaluation_mode, zeros_moved
from multiref.models.small import small_llama, word_tokenizer
from multiref.references.scores import SequenceScores, content_keys
from tests.training.world import END, WORDS, word_trainer


def drop(x, generator=None):
    """A dropout of our own: ones and zeros from a torch generator."""
    return x * (torch.rand(x.shape, generator=generator) > 0.2)


class HardCoded(nn.Linear):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.1, training=True)


class Jitter(nn.Linear):
    """As a router that multiplies what it reads by numbers near one, always."""

    def forward(self, x):
        return super().forward(x * torch.empty_like(x).uniform_(0.99, 1.01))


class Numpy(nn.Linear):
    def forward(self, x):
        return super().forward(x) * float(np.random.uniform(0.9, 1.1))


class Python(nn.Linear):
    def forward(self, x):
        return super().forward(x) * random.uniform(0.9, 1.1)


class Own(nn.Linear):
    """With a generator that the module holds."""

    def forward(self, x):
        self.source = getattr(self, "source", None) or torch.Generator()
        return drop(super().forward(x), self.source)


class OwnNumpy(nn.Linear):
    def forward(self, x):
        self.source = getattr(self, "source", None) or np.random.default_rng(0)
        return super().forward(x) * float(self.source.uniform(0.9, 1.1))


class BehindZero(nn.Linear):
    """An adapter with dropout before a matrix that is zero at first: the noise shows after the first step only."""

    def forward(self, x):
        if not hasattr(self, "b"):
            self.b = nn.Parameter(torch.zeros(self.out_features, self.in_features))
        return super().forward(x) + nn.functional.dropout(x, 0.1, training=True) @ self.b.T


class Sometimes(nn.Linear):
    """LayerDrop with probability zero: a number is drawn and decides nothing."""

    def forward(self, x):
        return super().forward(x) if float(torch.rand(())) >= 0.0 else x


def examine(kind, place="model.layers.1.mlp.up_proj"):
    model = small_llama(9).eval()
    parent, _, name = place.rpartition(".")
    plain = model.get_submodule(place)
    other = kind(plain.in_features, plain.out_features, bias=False)
    other.load_state_dict(plain.state_dict())
    setattr(model.get_submodule(parent), name, other)
    rows = [encode(word_tokenizer(WORDS), "w0 w1", (" w2 w3", " w4"), END)]
    with torch.no_grad():
        plain_rows(model, rows)()  # makes what it makes on first use
    torch.manual_seed(3)
    found = [torch.get_rng_state(), *(value.detach().clone() for value in model.state_dict().values())]
    try:
        refuse_noise(model, plain_rows(model, rows))
    finally:
        kept = [torch.get_rng_state(), *model.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


@pytest.mark.parametrize("kind", [HardCoded, Jitter, Numpy, Python, Own, OwnNumpy, BehindZero])
def test_noise_is_refused_by_the_name_of_its_module(kind):
    with pytest.raises(ModelError, match=rf"^model\.layers\.1\.mlp\.up_proj \({kind.__name__}\) draws random numbers"):
        examine(kind)


def test_a_draw_that_decides_nothing_is_fine():
    examine(Sometimes)


DRAWS = {"torch": lambda: float(torch.rand(())), "python": random.random, "numpy": np.random.rand}
KEPT = {"above": lambda u: u < 0.98, "below": lambda u: u >= 0.02, "half": lambda u: u >= 0.5}
# every generator once and every share once are quick; the other pairs of them are slow
SELDOM = [
    pytest.param(draw, kept, id=f"{share}-{name}", marks=[] if i == j else pytest.mark.slow)
    for i, (name, draw) in enumerate(DRAWS.items())
    for j, (share, kept) in enumerate(KEPT.items())
]


@pytest.mark.parametrize(("draw", "kept"), SELDOM)
def test_what_is_decided_once_a_pass_is_found_however_seldom(draw, kept):
    """A path that is dropped at random in evaluation mode: under most seeds alike."""

    class Dropped(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (1.0 if kept(draw()) else 0.0)

    with pytest.raises(ModelError, match=r"up_proj \(Dropped\) draws random numbers"):
        examine(Dropped)


def test_the_module_that_matters_is_named_and_not_a_draw_before_it():
    class Both(HardCoded):
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)
            self.before = Sometimes(sizes[0], sizes[0])

        def load_state_dict(self, state, **_):
            return super().load_state_dict(state, strict=False)

        def forward(self, x):
            self.before(x)
            return super().forward(x)

    with pytest.raises(ModelError, match=r"up_proj \(Both\)"):
        examine(Both)


def test_a_hook_that_adds_noise_is_found():
    model = small_llama(9).eval()
    model.model.norm.register_forward_hook(lambda module, inputs, output: drop(output))
    rows = [encode(word_tokenizer(WORDS), "w0", (" w2",), END)]
    with pytest.raises(ModelError, match=r"^model\.norm "):
        refuse_noise(model, plain_rows(model, rows))


class Seldom(nn.Linear):
    """So rare that most passes are alike."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 2e-4, training=True)


class Once(nn.Linear):
    """One pass in fifty."""

    def forward(self, x):
        return super().forward(x) * (1.0 if random.random() >= 0.02 else 0.5)


@pytest.mark.parametrize("kind", [HardCoded, Seldom, Once])
def test_a_reference_that_draws_is_refused_by_the_same_name(kind):
    model = small_llama(9, spread=0.3)
    model.model.layers[0].mlp.up_proj.__class__ = kind
    rows = [{"prompt": "w0 w1", "chosen": " w2 w3 w4 w5", "rejected": " w3 w1 w1"}]
    loaded = LanguageModel(model, word_tokenizer(WORDS), "noisy")
    with pytest.raises(ModelError, match=rf"model\.layers\.0\.mlp\.up_proj \({kind.__name__}\) draws random numbers"):
        mr.References({"a": loaded}, tokenisation=END).score(rows)


def test_a_reference_may_draw_what_decides_nothing():
    model = small_llama(9, spread=0.3)
    rows = [{"prompt": "w0 w1", "chosen": " w2 w3 w4 w5", "rejected": " w3 w1 w1"}]
    plain = mr.References({"a": LanguageModel(model, word_tokenizer(WORDS), "still")}, tokenisation=END).score(rows)
    model.model.layers[0].mlp.up_proj.__class__ = Sometimes
    drawn = mr.References({"a": LanguageModel(model, word_tokenizer(WORDS), "drawing")}, tokenisation=END).score(rows)
    assert torch.equal(plain.logps, drawn.logps)


def pairs_and_scores():
    rows = [{"prompt": f"w{k}", "chosen": " w1 w2", "rejected": " w3"} for k in range(4)]
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    keys = content_keys(*map(list, zip(*texts)))
    shape = (1, len(texts))
    return rows, SequenceScores(
        ("a",), keys, -torch.ones(shape, dtype=torch.float64), torch.ones(shape).long(), torch.zeros(shape).bool()
    )


def preference_trainer(model, folder):
    rows, scores = pairs_and_scores()
    return word_trainer(model, scores, rows, folder)


def test_a_trainer_refuses_before_its_first_step_and_before_it_evaluates(tmp_path):
    model = small_llama(9)
    model.lm_head.__class__ = HardCoded
    before = model.lm_head.weight.detach().clone()
    trainer = preference_trainer(model, tmp_path)
    with pytest.raises(ModelError, match="lm_head"):
        trainer.train()
    assert torch.equal(before, model.lm_head.weight) and trainer.state.global_step == 0
    rows, _ = pairs_and_scores()
    with pytest.raises(ModelError, match="lm_head"):
        preference_trainer(model, tmp_path).evaluate(rows)


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}])
def test_an_adapter_made_with_dropout_is_an_error_that_says_why(options, tmp_path):
    model = get_peft_model(small_llama(9), LoraConfig(target_modules="all-linear", **options))
    with pytest.raises(ArgumentError, match=r"'default': lora_dropout: found 0\.1, expected 0\. Dropout is noise"):
        preference_trainer(model, tmp_path)
    model.peft_config["default"].inference_mode = True  # as one that was loaded, and had been trained so
    refuse_adapter_dropout(model)


def test_layers_that_recompute_train_alone_and_evaluate_inside(tmp_path):
    """The gradient under recomputed activations is that without, though the layers hold dropout of every kind."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=9, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        dropout=0.3, attention_dropout=0.3, init_std=0.3, pad_token_id=0,
    )  # fmt: skip
    model = OPTForCausalLM(config)
    rows = [encode(word_tokenizer(WORDS), "w0 w1", (" w2 w3", " w4"), END)]

    def gradient():
        model.zero_grad()
        completion_logps(model, rows).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    set_evaluation_mode(model)
    completion_logps(model, rows)  # looks at what the model can do, once
    plain = gradient()
    model.activation_checkpointing_enable()
    ran = []
    model.model.decoder.layers[0].fc1.register_forward_hook(lambda *_: ran.append(1))
    for _ in range(2):
        set_evaluation_mode(model)
        trains = {type(module).__name__ for module in model.modules() if module.training}
        assert trains == {"OPTDecoderLayer"}
        torch.testing.assert_close(gradient(), plain)
    assert len(ran) == 4  # each layer forward twice a pass: it was recomputed
    model.eval()
    assert not any(module.training for module in model.modules())


def test_zeros_are_moved_for_no_other_thread():
    """A reward model's new head is moved while it is audited; who scored meanwhile was given that head's rewards."""
    model = small_llama(9)
    model.model.norm.weight.data.zero_()
    row = torch.tensor([[1, 2]])
    with ThreadPoolExecutor(1) as pool:
        with torch.no_grad(), zeros_moved(model):
            other = pool.submit(run, model, input_ids=row)
            wait([other], 0.1)
            assert run(model, input_ids=row).logits.any()
        assert not other.result().logits.any()
