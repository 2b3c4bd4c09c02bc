"""A step of online training with two more references against TRL's RLOO with one: same model, prompts, group,
length and method, one run, in turn.

    python benchmarks/online.py                                             a random Llama of 20 M parameters, vocabulary 32,000
    python benchmarks/online.py --size 135M --lora 8 --prompts-per-step 4 --group 8 --tokens 20 --steps 4 --repeats 1
    python benchmarks/online.py --model path/to/stories260K --more path/to/stories260K-gsm8k path/to/stories-xs-280K \\
        --prompts path/to/stories.jsonl

A step is what lies between two calls of the reward function, which both sides call once a step:
sampling, all scores, backward pass, optimizer. The first step is left out on both sides.
Without --model the completions are as long as allowed on both sides, so the work is the same;
with a real one their mean length is printed. Ours has the initial model and K = 2 more as references, under the exact rule;
TRL (1.16, extra `trl`) has the initial model.
Under --lora the policy is an adapter on a base, the references are that base and two more adapters on it (K = 3, one base in
memory), and TRL's reference is its policy without the adapter. Then the sampler against plain batched `generate` on the same
prompts, in turn. The marks: ours at most 0.3 of TRL's (of processor time), the sampler at least 0.9 of `generate`.
Processor time is printed too: on a busy machine, with --threads 1, it is the fair figure.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

from record import machine, record

os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


class Clock:
    """A reward function that keeps the moments of its calls, and how long the completions were."""

    __name__ = "clock"

    def __init__(self):
        self.moments, self.tokens = [], []

    def __call__(self, prompts, completions, **_):
        self.moments.append((time.perf_counter(), time.process_time()))
        return [completion.count("e") / 10 + completion.count("1") / 100 for completion in completions]

    def steps(self):
        """[(seconds, seconds of processor time)] of every step but the first."""
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(self.moments[1:], self.moments[2:])]


def theirs(options, models, prompts, folder):
    import datasets
    import transformers
    import trl

    clock = Clock()
    args = trl.RLOOConfig(
        output_dir=folder, beta=0.1, per_device_train_batch_size=options.prompts_per_step * options.group,
        num_generations=options.group,
        max_completion_length=options.tokens, max_steps=options.steps + 2, use_cpu=options.device == "cpu", bf16=False,
        gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=1e-4,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    data = datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    peft = lora_config(options) if options.lora else None
    trainer = trl.RLOOTrainer(models[0], reward_funcs=clock, args=args, train_dataset=data, peft_config=peft)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return clock.steps(), trainer.state.num_input_tokens_seen / (options.steps + 2)


def ours(options, models, prompts):
    import multiref as mr
    from multiref.models import load
    from multiref.training.online import RLOO, OnlineArguments, OnlineTrainer, Rule

    clock, loaded = Clock(), load(models[0], device=options.device)
    if options.lora:
        from peft import get_peft_model

        loaded = replace(loaded, model=get_peft_model(loaded.model, lora_config(options)))
    args = OnlineArguments(
        steps=options.steps + 2, prompts_per_step=options.prompts_per_step, max_new_tokens=options.tokens, learning_rate=1e-4
    )
    trainer = OnlineTrainer(
        loaded,
        mr.ReverseKL(),
        beta=0.1,
        references={f"model {k}": path for k, path in enumerate(models)},
        prompts=prompts,
        args=args,
        rewards=clock,
        rule=Rule(RLOO(group=options.group)),
    )
    history = trainer.train()
    parts = {
        name: statistics.mean(line[f"seconds/{name}"] for line in history[1:]) for name in ("sampling", "scoring", "update")
    }
    print("  " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()), flush=True)
    return clock.steps(), statistics.mean(line["completions/mean_length"] for line in history)


def lora_config(options):
    from peft import LoraConfig

    return LoraConfig(r=options.lora, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def against_generate(options, folder, prompts):
    """Processor time of transformers' `generate` over that of our sampler: the median of three runs in turn."""
    import torch

    from multiref.models import Generation, load
    from multiref.models.sampling import sample

    loaded, chosen = load(folder, device=options.device), prompts[: options.prompts_per_step]
    tokenizer, seconds = loaded.tokenizer, {"ours": [], "generate": []}
    tokenizer.padding_side = "left"
    inputs = tokenizer([text for text in chosen for _ in range(options.group)], return_tensors="pt", padding=True)
    inputs = inputs.to(options.device)
    inputs.pop("token_type_ids", None)
    fixed = {"do_sample": True, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "top_k": 0, "top_p": 1.0}
    generation = Generation(options.tokens, min_new_tokens=options.tokens)
    for repeat in range(4):  # the first checks the draws
        for name in seconds:
            began = time.process_time()
            if name == "ours":
                sample(loaded.model, tokenizer, chosen, generation, group=options.group, generator=torch.default_generator)
            else:
                loaded.model.generate(**inputs, **fixed)
            seconds[name] += [time.process_time() - began] if repeat else []
    return statistics.median(seconds["generate"]) / statistics.median(seconds["ours"])


def random_models(folder, count, options):
    """Folders of Llamas that share a tokenizer of whole words (under LoRA: one base, and adapters on it), and prompts of mean
    length 64."""
    import torch
    from scoring import build, with_adapter

    from multiref.models import ModelSpec

    shape = argparse.Namespace(size=options.size, model=options.base, vocabulary=None, device="cpu", dtype="float32")
    models = []
    for number in range(count):
        model, tokenizer = build(shape)
        place = f"{folder}/{number}"
        if options.lora:
            with_adapter(model, tokenizer, place, options.lora)
            base = f"{folder}/0/base"
            models.append(ModelSpec(base, adapter=f"{place}/adapter") if number else base)
            continue
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.002 * number * torch.randn_like(parameter))
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        models.append(place)
    rng = random.Random(0)
    lengths = [max(8, min(256, round(rng.lognormvariate(0, 0.5) * 56))) for _ in range(256)]
    return models, ["<s> " + " ".join(f"w{rng.randrange(31000)}" for _ in range(n)) for n in lengths]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder with its own tokenizer; default: a Llama of --size")
    parser.add_argument("--size", default="20M", help="as of scoring.py")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base", help="a folder of this size's shape; default: random weights")
    parser.add_argument(
        "--lora", type=int, default=0, help="rank of the policy's adapter and of the references'; 0: whole models"
    )
    parser.add_argument("--more", nargs="+", default=[], help="folders of the two more references")
    parser.add_argument("--prompts", help=".jsonl with `text`: its first 16 words")
    parser.add_argument("--prompts-per-step", type=int, default=8)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    found = {"trl": [], "multiref": []}
    with tempfile.TemporaryDirectory() as folder:
        if options.model:
            lines = Path(options.prompts).read_text(encoding="utf-8").splitlines()[:256]
            models, prompts = (
                [options.model, *options.more],
                [" ".join(json.loads(line)["text"].split()[:16]) for line in lines],
            )
        else:
            models, prompts = random_models(folder, 3, options)
        print(
            f"{machine()}; {options.threads} threads; {options.prompts_per_step} prompts × {options.group} completions of at "
            f"most {options.tokens} tokens, float32",
            flush=True,
        )
        for repeat in range(options.repeats):
            for side in ("trl", "multiref") if repeat % 2 == 0 else ("multiref", "trl"):
                steps, tokens = theirs(options, models, prompts, folder) if side == "trl" else ours(options, models, prompts)
                found[side] += steps
                clock, work = (statistics.median(column) for column in zip(*steps))
                length = f", {tokens:.1f} tokens a completion" if side == "multiref" else ""
                print(f"{side:9} {clock:.3f} s a step, {work:.3f} s of processor time{length}", flush=True)
        sampler = against_generate(options, models[0], prompts)
    asked = f"{options.prompts_per_step} × {options.group} × {options.tokens}, {options.size}"
    record(f"sampling, {asked}, processor time", sampler, against="our speed (plain batched generate)", at_least=0.9)
    medians = {side: [statistics.median(column) for column in zip(*steps)] for side, steps in found.items()}
    (a, b), (c, d) = medians["multiref"], medians["trl"]
    case = f"a step with {len(models)} references{f', LoRA {options.lora}' if options.lora else ''}, {asked}"
    peer, steps = "TRL's RLOO with 1", len(found["trl"])
    record(case, a / c, against=peer, ours_s=round(a, 3), trl_s=round(c, 3), steps=steps)
    record(f"{case}, processor time", b / d, against=peer, at_most=0.3, ours_s=round(b, 3), trl_s=round(d, 3), steps=steps)


if __name__ == "__main__":
    main()
