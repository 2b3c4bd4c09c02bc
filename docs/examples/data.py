"""`pairs.jsonl`: one preference a line, `{"prompt": …, "chosen": …, "rejected": …}`."""

import torch

import multiref as mr

# %% read_pairs, Pair
pairs = mr.data.read_pairs("pairs.jsonl", limit=4)
pairs[0].prompt, pairs[0].chosen, pairs[0].origin  # the origin is the file and the line

# %% read, Selection, as_pairs
chosen = mr.data.Selection(limit=2, bad_rows="skip")
found = mr.data.read("pairs.jsonl", chosen)
found.rows, found.format  # and `bad`, the rows that were left out, with reasons
rows = [("here:1", {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})]
[pair.origin for pair in mr.data.as_pairs(rows, "here")]  # = ['here:1']

# %% as_pair, as_prompt
row = {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}
mr.data.as_pair(row).rejected  # = ' 5'
mr.data.as_prompt(row)  # = '2 + 2 ='

# %% Conversation
talk = mr.data.Conversation([{"role": "user", "content": "2 + 2?"}], chat_template_kwargs={"enable_thinking": False})
talk[0]["role"]  # = 'user'

# %% privatise, PrivatePairs
private = mr.data.privatise(pairs, epsilon=2.0, generator=torch.Generator().manual_seed(0))
round(private.flip_rate, 3)  # = 0.119
