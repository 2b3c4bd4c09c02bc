"""`run.yaml`, as `multiref init` writes it: a policy, two references, pairs, an output folder."""

from pathlib import Path

from multiref import runs
from multiref.runs.evaluating import EvaluationSettings
from multiref.runs.sweeping import SweepSettings

text = """\
task: preference
model: models/policy
references: [{name: a, model: models/a}, {name: b, model: models/b}]
data: pairs.jsonl
beta: 0.1
output: run
training: {max_steps: 1}
"""
_ = Path("run.yaml").write_text(text, encoding="utf-8")

# %% read_run, BaseRun, PreferenceRun
run = runs.read_run("run.yaml", set=["beta=0.2"])
type(run).__name__, run.beta  # = ('PreferenceRun', 0.2)

# %% run, execute
folder = runs.run("run.yaml", set=["output=run-b"])  # reads the file, and executes it
folder = runs.execute(run)  # the same for a run that was read; run again, it says that it is finished

# %% RunFolder
folder = runs.RunFolder("run")
folder.finished  # = True
folder.read_metrics()[-1:]  # the last line of metrics.jsonl

# %% OnlineRun, DistillRun
online = """\
task: online
model: models/policy
references: [{name: a, model: models/a}, {name: b, model: models/b}]
beta: 0.1
prompts: [{path: pairs.jsonl}]
rewards: [{kind: length, target: 20}]
output: online
training: {steps: 1, prompts_per_step: 2, max_new_tokens: 6}
"""
_ = Path("online.yaml").write_text(online, encoding="utf-8")
type(runs.read_run("online.yaml")).__name__  # = 'OnlineRun'
_ = Path("distill.yaml").write_text(online.replace("online", "distill").replace("rewards: [{kind: length, target: 20}]\n", ""))
type(runs.read_run("distill.yaml")).__name__  # = 'DistillRun'

# %% RewardRun
_ = Path("reward.yaml").write_text("task: reward\nmodel: models/policy\ndata: pairs.jsonl\noutput: reward\n", encoding="utf-8")
type(runs.read_run("reward.yaml")).__name__  # = 'RewardRun'

# %% IterativeRun
labelled = """\
task: iterative
model: models/policy
references: [{name: a, model: models/a}, {name: b, model: models/b}]
beta: 0.1
prompts: pairs.jsonl
oracle: {kind: human_labels, folder: labels}
labels: {each: 8, rounds: 2}
method: {name: iterative}
output: iterative
"""
_ = Path("iterative.yaml").write_text(labelled, encoding="utf-8")
type(runs.read_run("iterative.yaml")).__name__  # = 'IterativeRun'

# %% Document
runs.Document.read("run.yaml").values["beta"]  # = 0.1

# %% evaluate
rewards = [{"kind": "length"}]
settings = EvaluationSettings(policies={"a": "models/a"}, prompts="pairs.jsonl", rewards=rewards, max_new_tokens=16)
_ = runs.evaluate(settings, "evaluated")

# %% sweep
for name, weights in (("alone-a", (1, 0)), ("alone-b", (0, 1))):
    runs.run("run.yaml", set=[f"output={name}", *(f"references.{k}.weight={w}" for k, w in enumerate(weights))])
_ = runs.sweep(["alone-a", "alone-b"], "pairs.jsonl", "swept", SweepSettings(points=2, samples=1, limit=2, max_new_tokens=4))

# %% schema
sorted(runs.schema())[:3]  # JSON schema of a run file, for editors

# %% nearest
runs.nearest("refrences", ["references", "rewards"])  # = '; did you mean `references`?'

# %% Prompts
_ = Path("prompts.txt").write_text("Once upon a time\n\nThe cat sat", encoding="utf-8")
[row["prompt"] for row in runs.Prompts(path="prompts.txt", words=2).rows()]  # = ['Once upon', 'The cat']
