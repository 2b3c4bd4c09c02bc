"""lm-evaluation-harness on a pool, a policy, and the optimum itself."""

from pathlib import Path

import multiref as mr
from multiref.integrations.lm_eval import OptimumLM, PoolLM, evaluate


def reward(prompts, completions):
    return [float(len(text) > 5) for text in completions]


# %% PoolLM
pool = PoolLM({"a": "models/a", "b": "models/b"}, mr.ReverseKL([0.3, 0.7]), complete=True)
policy = PoolLM({"policy": "models/policy"})  # one model: that model itself

# %% OptimumLM
optimum = OptimumLM({"a": "models/a", "b": "models/b"}, mr.ReverseKL([0.3, 0.7]), reward, beta=0.5)

# %% evaluate
_ = Path("rows.jsonl").write_text('{"question": "is it 3?", "answer": "yes"}\n' * 2, encoding="utf-8")
task = {
    "task": "yes", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}}, "test_split": "test",
    "doc_to_text": "{{question}}", "doc_to_target": " {{answer}}", "doc_to_choice": [" yes", " no"],
    "output_type": "multiple_choice", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
results = evaluate(policy, [task])["results"]
