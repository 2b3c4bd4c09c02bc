"""Two references in folders, and pairs in a file."""

import torch

import multiref as mr
from multiref import references
from multiref.models import Generation, load, sample

pairs = mr.data.read_pairs("pairs.jsonl")
refs = mr.References({"a": "models/a", "b": "models/b"})

# %% References, LocalReference, Reference, Scored
refs = mr.References({"a": "models/a", "b": references.LocalReference("models/b", dtype="float32")})
scores = refs.score(pairs, store="scores/")  # once; a second call reads the store

# %% SequenceScores
chosen, rejected = scores.of_pairs(pairs)  # [K, pairs] each, nats
scores.select(["b"]).names  # = ('b',)

# %% read_scores, Store
scores = references.read_scores("scores/", ["a", "b"])
list(references.Store("scores/").references())[:1]  # identities, under which names

# %% Item
item = references.Item("is it 3?", (" yes", " no"))
scored = references.LocalReference("models/a").score([item])
len(scored.logps)  # = 2

# %% content_key
references.content_key("is it 3?", " yes").hex()  # = '36636f4b1fb6fe6a69e2bc0ba8435ff4'

# %% token_scores, TokenScores
tokens = references.token_scores(refs, pairs[:2])
tokens.summed().shape  # = torch.Size([2, 4])

# %% measure_token_level, TokenLevel
references.measure_token_level(refs, pairs, completions=4).names  # = ('a', 'b')

# %% RolloutScorer, Rollout
policy = load("models/policy")
drawn = sample(policy.model, policy.tokenizer, ["is it 3?"], Generation(5), group=2, generator=torch.Generator().manual_seed(0))
references.RolloutScorer(refs, policy.tokenizer).completions(drawn).shape  # = torch.Size([2, 2])

# %% same_vocabulary
references.same_vocabulary(["a", "b"], [{"yes": 0, "no": 1}, {"yes": 0, "no": 1}])  # silent: one numbering of tokens

# %% ServerReference, Connection
server = references.ServerReference(
    "http://127.0.0.1:8000/v1", model="big", tokenizer="models/a", connection=references.Connection(timeout=30)
)  # nothing is asked before the first `score`
