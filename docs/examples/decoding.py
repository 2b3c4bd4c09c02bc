"""Two references of one vocabulary, two prompts, and a reward of one's own."""

import multiref as mr
from multiref.models import load


def reward(prompts, completions):
    return [float(len(text) > 5) for text in completions]


refs = mr.References({"a": "models/a", "b": "models/b"})
prompts = ["is it 3?", "is it 4?"]

# %% sample, Draws, Budget
draws = mr.decoding.sample(
    prompts, refs, mr.ReverseKL([0.5, 0.5]), reward, beta=0.5, n=4, islands=2, max_new_tokens=6,
    budget=mr.decoding.Budget(tokens=10_000),
)  # fmt: skip
print(draws)  # log Z with its error, and how much to trust it
draws.pick(seed=1)  # one completion of each prompt, by weight

# %% stream_tokens
"".join(mr.decoding.stream_tokens("is it 3?", refs, mr.ReverseKL([0.5, 0.5]), 6))

# %% PoolLogitsProcessor
a, b = load("models/a"), load("models/b")
inputs = a.tokenizer("is it 3?", return_tensors="pt")
pool = mr.decoding.PoolLogitsProcessor([a.model, b.model], [0.5, 0.5], attention_mask=inputs["attention_mask"])
a.model.generate(**inputs, max_new_tokens=4, logits_processor=[pool], do_sample=True, top_k=0)
