"""One online run on a table, in as many processes as it was launched with; the main one writes its curve.
Started by test_processes.py."""

import json
import sys

import torch

import multiref as mr
from multiref.references.rollouts import Rollout
from multiref.training.online import RLOO, AdaptiveBeta
from tests.training.leave import leave
from tests.training.online.tables import make_trainer, random_table, reward_function, reward_table


def keyed_sampler(group):
    """Completions of a prompt at a step, whoever draws them: so that one process and two see the same."""
    calls = iter(range(10_000))

    def sample(model, tokenizer, prompts):
        step, rollouts = next(calls), []
        probabilities, answers = model.sequence_logps().detach().exp(), model.answers()
        for prompt in prompts:
            row = int(prompt[1:])
            generator = torch.Generator().manual_seed(1000 * step + row)
            ids = answers[torch.multinomial(probabilities[row], group, replacement=True, generator=generator)].tolist()
            texts = tuple("".join(f"y{token}" for token in tokens) for tokens in ids)
            rollouts.append(
                Rollout(prompt, texts, (model.config.answer_tokens + row,), tuple(map(tuple, ids)), (False,) * group)
            )
        return rollouts

    return sample


def main(size: str, out: str, folder: str) -> None:
    policy = random_table(1, prompts=4)
    trainer = make_trainer(
        policy,
        [random_table(1, prompts=4), random_table(2, prompts=4)],
        mr.ReverseKL((0.3, 0.7)),
        rewards=reward_function(policy, reward_table(policy)),
        steps=12,
        method=RLOO(group=8),
        sampler=keyed_sampler(8),
        adaptive_beta=AdaptiveBeta(target=0.85, rate=1.0),
        args={"prompts_per_step": int(size), "save_every": 5},
    )
    lines = trainer.train(folder=folder)
    if trainer.accelerator.is_main_process:
        with open(out, "w") as stream:
            json.dump({"lines": lines, "table": policy.table.detach().flatten().tolist()}, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
