"""What a model computes and does not save: the numbers of its class, not what loading left in the memory."""

import warnings

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from multiref.errors import ModelError, MultirefWarning
from multiref.models import completion_logps, encode
from multiref.models.buffers import check_buffers
from multiref.models.checkpoint import load_whole

WIDTH = 16


class Positions(nn.Module):
    """A rotary table as models' own code has it: computed when it is built, known to nobody else."""

    def __init__(self, kind):
        super().__init__()
        table = torch.rand(WIDTH) if kind == "random" else 100.0 ** (-torch.arange(WIDTH) / WIDTH)
        if kind == "plain":
            self.table = table
        else:
            self.register_buffer("table", table, persistent=False)

    def forward(self, ids):
        return torch.cos(torch.arange(ids.shape[1])[:, None] * self.table)


class Foreign(PreTrainedModel):
    """A decoder that sees two tokens, and positions. It comes from nowhere in transformers."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.tokens, self.positions = nn.Embedding(config.vocab_size, WIDTH), Positions(config.kind)
        self.head = nn.Linear(WIDTH, config.vocab_size)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, **_):
        tokens = self.tokens(input_ids)
        before = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1]
        return CausalLMOutput(logits=self.head(torch.tanh(tokens + before) * self.positions(input_ids)))


@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """kind of table → (the model, its folder)."""

    def save(kind):
        torch.manual_seed(0)
        model = Foreign(LlamaConfig(vocab_size=len(tiny_tokenizer), kind=kind)).eval()
        model.save_pretrained(tmp_path)
        return model, tmp_path

    return save


@pytest.mark.parametrize("kind", ["buffer", "plain"])
def test_tables_that_no_file_holds(saved, kind, tiny_tokenizer):
    """transformers alone leaves them as the memory was, or without memory. Here they are the table, and scores too."""
    model, folder = saved(kind)
    with pytest.warns(MultirefWarning, match=r"positions\.table of Foreign did not hold"):
        loaded, _ = load_whole(Foreign, str(folder))
    assert torch.equal(loaded.positions.table, 100.0 ** (-torch.arange(WIDTH) / WIDTH))
    row = [encode(tiny_tokenizer, "the dog", [" sat", " on the log"])]
    assert torch.allclose(completion_logps(loaded.eval(), row), completion_logps(model, row), atol=1e-5)


def test_a_table_in_another_dtype_is_no_other_table(saved):
    model, _ = saved("buffer")
    model.positions.table = model.positions.table.to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        check_buffers(model)


def test_a_random_table_in_no_file(saved):
    _, folder = saved("random")
    with pytest.raises(ModelError, match=r"positions\.table of Foreign are random numbers.*persistent buffers"):
        load_whole(Foreign, str(folder))


class Gated(Foreign):
    """Its own code fills a weight of a module that has a buffer in no file, as it is built and once more behind loading."""

    def __init__(self, config):
        super().__init__(config)
        self.positions.scale = nn.Parameter(torch.full((WIDTH,), 2.0))

    def _init_weights(self, module):
        if hasattr(module, "scale"):
            module.scale.data.zero_()


def test_a_weight_that_the_models_code_sets_anew(tiny_tokenizer, tmp_path):
    Gated(LlamaConfig(vocab_size=len(tiny_tokenizer), kind="buffer")).save_pretrained(tmp_path)
    assert (Gated.from_pretrained(tmp_path).positions.scale == 0).all(), "transformers loads what was saved: leave this out"
    with (
        pytest.warns(MultirefWarning, match="did not hold their numbers"),
        pytest.raises(ModelError, match=r"positions\.scale of this Gated is not what model\.safetensors holds"),
    ):
        load_whole(Gated, str(tmp_path))


def test_a_model_in_memory_that_somebody_else_loaded(saved, tiny_tokenizer):
    """Its numbers are its owner's: it is scored as it stands, and told."""
    _, folder = saved("buffer")
    theirs = Foreign.from_pretrained(folder).eval()
    theirs.positions.table.fill_(0.5)
    row = [encode(tiny_tokenizer, "the dog", [" sat", " on the log"])]
    with pytest.warns(MultirefWarning, match=r"in memory: positions\.table .* multiref\.models\.load"):
        completion_logps(theirs, row)
    assert (theirs.positions.table == 0.5).all()
