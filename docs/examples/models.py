"""`models/a` and `models/b`: two causal language models in folders; hub ids do as well."""

import torch

from multiref import models

opened = models.load("models/a")
pair = models.encode(opened.tokenizer, "is it 3?", [" yes it is 3", " no"])

# %% load, LanguageModel, load_tokenizer, best_device
opened = models.load("models/a")
opened.name, opened.model.device.type, models.best_device().type
models.load_tokenizer("models/a").eos_token  # = '<s>'

# %% ModelSpec
models.load(models.ModelSpec("models/a", dtype="bfloat16")).model.dtype  # = torch.bfloat16

# %% encode, Encoded, Tokenisation, encode_many
pair = models.encode(opened.tokenizer, "is it 3?", [" yes it is 3", " no"], models.Tokenisation(max_length=64))
len(pair.completions), any(pair.truncated)  # = (2, False)
rows = models.encode_many(opened.tokenizer, [("is it 3?", [" yes"]), ("is it 4?", [" no"])])

# %% score_completions, score_tokens
logps = models.score_completions(opened.model, [pair])  # [2]: log π of both, nats
[round(float(each.sum() - logp), 4) for each, logp in zip(models.score_tokens(opened.model, [pair]), logps)]  # = [-0.0, 0.0]

# %% completion_logps, token_logps
logps = models.completion_logps(opened.model, [pair])  # with gradients, in one forward pass
logps.sum().backward()
len(models.token_logps(opened.model, [pair]))  # = 2

# %% Generation, sample, Rollout
generator = torch.Generator().manual_seed(0)
rollouts = models.sample(
    opened.model, opened.tokenizer, ["is it 3?"], models.Generation(max_new_tokens=5), group=2, generator=generator
)
len(rollouts[0].completions)  # = 2

# %% draw
ends, generator = [opened.tokenizer.eos_token_id], torch.Generator().manual_seed(0)
drawn = models.draw(opened.model, [pair.prompt_ids], models.Generation(5), group=2, ends=ends, generator=generator)
ids, sampled_logps = drawn[0]

# %% Reader
reader = models.Reader(opened.model, [pair.prompt_ids], 2, models.Generation(5), 0)  # two rows of one prompt
logits = reader.read_prompts()  # [2, V], of the next token; with a cache from here on
logits = reader.read(logits.argmax(-1))
reader.ids.shape[1] - len(pair.prompt_ids)  # = 1

# %% audit_layout, Audit
audit = models.audit_layout(opened.model, [pair])
print(audit.summary())  # which layout of a batch scores as a completion alone does

# %% choose_precision, Precision
models.choose_precision(models.ModelSpec("models/a")).dtype  # "float32" or "bfloat16": what was faster, within its tolerance

# %% free_memory
models.free_memory(torch.device("cpu")) > 0  # = True

# %% context_of
models.context_of(opened.model.config)  # = 128

# %% product_of, Product, ProductConfig
pool = models.product_of([models.load("models/a").model, models.load("models/b").model], [0.5, 0.5])
pool(input_ids=torch.tensor([pair.prompt_ids])).logits.shape[:2]  # = torch.Size([1, 6])

# %% Tabular, TabularConfig, tabular_tokenizer
table = models.Tabular(3, length=2)  # the law of all nine answers, every one enumerable
table.sequence_logps().exp().sum()  # = tensor(1.0000, dtype=torch.float64, grad_fn=<SumBackward0>)
models.tabular_tokenizer(table).vocab_size

# %% small_llama, word_tokenizer
tokenizer = models.word_tokenizer(["yes", "no", "maybe"])
small = models.small_llama(len(tokenizer), hidden=32)  # a new transformer, for tests and toys

# %% token_budget_batches
models.token_budget_batches([5, 3, 9, 2], token_budget=10)  # = [[2], [0, 1], [3]]
