"""A transformer over an enumerable space: V tokens, completions of exactly L of them, prompts written in the same tokens.
No end token."""

from dataclasses import dataclass
from itertools import product

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import multiref as mr
from multiref.models import LanguageModel
from multiref.references.local import LocalReference
from multiref.training.online.backward_induction import sequence_logps

PROMPT = 3  # tokens


@dataclass(frozen=True)
class Space:
    """V tokens, length L, the prompts `symbols`^3."""

    vocabulary: int
    length: int
    symbols: int

    def tokenizer(self):
        backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(self.vocabulary)}, unk_token="t0"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend)

    def prompts(self):
        return [" ".join(f"t{i}" for i in ids) for ids in product(range(self.symbols), repeat=PROMPT)]

    def model(self, seed, *, hidden=16, std=0.5):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            initializer_range=std,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return LlamaForCausalLM(config).eval()

    def levels(self, model):
        """Levels [prompts, V^t, V] of next-token log-probabilities, from one pass over every prefix of L − 1 tokens."""
        prefixes = torch.cartesian_prod(*[torch.arange(self.vocabulary)] * (self.length - 1)).reshape(-1, self.length - 1)
        prompts = torch.tensor(list(product(range(self.symbols), repeat=PROMPT)))
        rows = torch.cat([prompts.repeat_interleave(len(prefixes), 0), prefixes.repeat(len(prompts), 1)], 1)
        logps = model(input_ids=rows, use_cache=False).logits[:, PROMPT - 1 :].double().log_softmax(-1)
        logps = logps.reshape(len(prompts), len(prefixes), self.length, self.vocabulary)
        return [logps[:, :: self.vocabulary ** (self.length - 1 - t), t] for t in range(self.length)]

    def whole(self, model):
        """[prompts, V^L] log-probabilities of all completions."""
        return sequence_logps(self.levels(model))

    def reward(self, seed=7):
        """[prompts, V^L]: a sum over positions of random numbers of (a prompt's token, position, token),
        and a random number of each completion."""
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(PROMPT, self.symbols, self.length, self.vocabulary, generator=generator, dtype=torch.float64)
        prompts = torch.tensor(list(product(range(self.symbols), repeat=PROMPT)))
        answers = torch.cartesian_prod(*[torch.arange(self.vocabulary)] * self.length)
        each = sum(table[i, prompts[:, i]][:, t][:, answers[:, t]] for i in range(PROMPT) for t in range(self.length))
        noise = torch.randn(each.shape, generator=generator, dtype=torch.float64)
        return 0.2 * each + 0.4 * noise

    def reward_function(self, values):
        places = {prompt: i for i, prompt in enumerate(self.prompts())}

        def reward(prompts, completions):
            found = []
            for prompt, completion in zip(prompts, completions):
                row = 0
                for word in completion.split():
                    row = row * self.vocabulary + int(word[1:])
                found.append(float(values[places[prompt], row]))
            return found

        return reward

    def reference(self, model):
        return LocalReference(LanguageModel(model, self.tokenizer(), "memory"))


def distance(space, model, target):
    """KL(π‖target), nats per completion, mean over prompts; differentiable."""
    return mr.divergences.kl(space.whole(model), target).mean()


def descended(space, model, target, steps, rate=0.02):
    """Exact gradient descent on the enumerated objective: J* − J = β KL(π‖π*), so on KL(π‖π*).
    Returns where it ends; `model` is changed."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        distance(space, model, target).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(distance(space, model, target))
