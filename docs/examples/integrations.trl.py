"""A policy, pairs as a data set, and the stored scores of two references."""

from datasets import Dataset
from trl import DPOConfig, RLOOConfig

import multiref as mr
from multiref.integrations.trl import ReferenceColumnsDPOTrainer, reference_reward, rloo, with_reference_columns
from multiref.models import load

policy = load("models/policy")
rows = [{"prompt": f"is it {n}?", "chosen": f" yes it is {n}", "rejected": " no"} for n in range(4)]
dataset = Dataset.from_list(rows)
scores = mr.References({"a": "models/a", "b": "models/b"}).score(dataset)

# %% with_reference_columns, ReferenceColumnsDPOTrainer
columns = with_reference_columns(dataset, scores, mr.ReverseKL([0.5, 0.5]))
args = DPOConfig("dpo", precompute_ref_log_probs=True, max_length=None, max_steps=1, report_to=[], use_cpu=True, bf16=False)
trainer = ReferenceColumnsDPOTrainer(policy.model, args=args, train_dataset=columns, processing_class=policy.tokenizer)
trainer.train()

# %% rloo
args = RLOOConfig(
    "rloo", num_generations=2, per_device_train_batch_size=2, max_completion_length=6, max_steps=1, beta=0.1,
    report_to=[], use_cpu=True, bf16=False,
)  # fmt: skip
trainer = rloo(
    policy.model, {"base": "models/policy", "b": "models/b"}, mr.ReverseKL([0.5, 0.5]), beta=0.1, policy_reference="base",
    reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
    train_dataset=dataset.select_columns(["prompt"]), args=args, processing_class=policy.tokenizer,
)  # fmt: skip

# %% reference_reward
more = reference_reward(
    {"base": "models/policy", "b": "models/b"}, mr.ReverseKL([0.5, 0.5]), beta=0.1, policy_reference="base",
    tokenizer=policy.tokenizer,
)  # fmt: skip
more(prompts=["is it 3?"], completions=[" yes"], completion_ids=[policy.tokenizer(" yes")["input_ids"]])
