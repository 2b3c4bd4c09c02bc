"""A language model that is a table: one row of logits per prompt and prefix. Whatever trains, trains on it;
everything is enumerable."""

from itertools import product
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from multiref.errors import ArgumentError


class TabularConfig(PreTrainedConfig):
    """answer_tokens: V; length: tokens of an answer L; prompts: how many have a table of their own.
    vocab_size counts all ids."""

    model_type = "multiref_tabular"

    def __init__(self, answer_tokens: int = 2, length: int = 1, prompts: int = 1, **options: Any) -> None:
        self.answer_tokens, self.length, self.prompts = answer_tokens, length, prompts
        self.vocab_size = answer_tokens + prompts + 1
        self.num_hidden_layers = 0
        options.pop("vocab_size", None)
        options.setdefault("bos_token_id", answer_tokens)
        options.setdefault("pad_token_id", answer_tokens + prompts)
        super().__init__(**options)


class Tabular(PreTrainedModel, GenerationMixin):
    """π(y_t | x, y_<t) = softmax(table[x, y_<t]): any distribution over answers of `length` tokens, for each of `prompts`
    prompts.

    Token ids: 0 … V−1 are answer tokens; V + x is prompt x (so that V, prompt 0, is also the start token); V + prompts is
    padding. A sequence is a prompt and at most L answer tokens; whatever stands before the prompt (left padding) is ignored.
    Logits have width V: only answers can be predicted. After the last token the logits are zero.

    `table` is [prompts, (V^L − 1)/(V − 1), V], float64, zero (the uniform model) at first. Row of a prefix:
    0 for the empty one, V · (row of y_<t) + 1 + y_t for one token more.
    """

    config_class = TabularConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: TabularConfig | int, length: int | None = None, prompts: int = 1) -> None:
        if isinstance(config, int):
            if config < 1 or length is None or length < 1 or prompts < 1:
                raise ArgumentError(f"Tabular({config}, {length}, prompts={prompts}); expected positive numbers.")
            config = TabularConfig(config, length, prompts, dtype="float64", use_cache=False)
        super().__init__(config)
        rows = sum(config.answer_tokens**t for t in range(config.length))
        self.table = nn.Parameter(torch.zeros(config.prompts, rows, config.answer_tokens, dtype=torch.float64))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """The table is zero as made; there is nothing to draw."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> CausalLMOutput:
        """[B, T] → logits [B, T, V]; `labels` as everywhere in transformers: shifted inside, −100 is left out, mean."""
        size, depth_limit = self.config.answer_tokens, self.config.length
        prompt = torch.zeros_like(input_ids[:, 0])
        row, depth, logits = torch.zeros_like(prompt), torch.zeros_like(prompt), []
        for t in range(input_ids.shape[1]):
            ids = input_ids[:, t]
            is_prompt = (ids >= size) & (ids < size + self.config.prompts)
            is_answer = ids < size
            prompt = torch.where(is_prompt, ids - size, prompt)
            depth = torch.where(is_prompt, 0, depth + is_answer)
            row = torch.where(is_prompt, 0, torch.where(is_answer & (depth < depth_limit), size * row + 1 + ids, row))
            here = self.table[prompt, row]
            logits.append(torch.where((depth < depth_limit)[:, None], here, torch.zeros_like(here)))
        stacked = torch.stack(logits, 1)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(stacked[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=stacked)

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Whole sequences: a table has no cache."""
        return {"input_ids": input_ids}

    def answers(self) -> Tensor:
        """[V^L, L]: every answer as token ids, in the order of `sequence_logps`."""
        tokens = range(self.config.answer_tokens)
        return torch.tensor(list(product(tokens, repeat=self.config.length)), device=self.table.device)

    def sequence_logps(self) -> Tensor:
        """[prompts, V^L]: log π(y | x) of every answer, differentiable: the exact policy, nothing sampled."""
        logps = self.table.log_softmax(-1)
        size, first = self.config.answer_tokens, 0
        total = logps.new_zeros(self.config.prompts, 1)
        for t in range(self.config.length):
            step = logps[:, first : first + size**t]
            total = (total[..., None] + step).flatten(1)
            first += size**t
        return total

    @torch.no_grad()
    def assign(self, sequence_logps: Tensor) -> "Tabular":
        """Makes π(y | x) proportional to exp of [prompts, V^L] (or [V^L]); returns itself. Answers of zero mass: −inf."""
        size, length = self.config.answer_tokens, self.config.length
        logps = sequence_logps.to(self.table).expand(self.config.prompts, size**length)
        first = self.table.shape[1]
        for t in reversed(range(length)):
            first -= size**t
            block = logps.reshape(self.config.prompts, size**t, size)
            logps = block.logsumexp(-1)
            self.table[:, first : first + size**t] = block - torch.where(logps.isinf(), 0.0, logps)[..., None]
            self.table[:, first : first + size**t][logps.isinf()] = 0.0  # a prefix without mass: any row will do
        return self


def tabular_tokenizer(model: Tabular) -> PreTrainedTokenizerFast:
    """A tokenizer for a table: prompt k is the text "xk", answer tokens are "y0", "y1", …: prompt "x0", completion "y2y0y3".

    It has no end token: score and train with `end=False`. The start token is prompt 0, and is not put in front by itself.
    """
    config = model.config
    words = [f"y{k}" for k in range(config.answer_tokens)] + [f"x{k}" for k in range(config.prompts)] + ["<pad>"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[xy]\d+"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="x0", pad_token="<pad>", unk_token="<pad>", model_max_length=config.length + 1
    )
