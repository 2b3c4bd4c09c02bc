"""Tables as policy and references, for the loop."""

from dataclasses import fields

import torch

from multiref.models import LanguageModel, Tabular, tabular_tokenizer
from multiref.references.local import LocalReference
from multiref.references.rollouts import Rollout
from multiref.training.online import OnlineArguments, OnlineTrainer, Rule


def random_table(seed, vocabulary=3, length=3, prompts=2, spread=1.0):
    table = Tabular(vocabulary, length, prompts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        table.table.copy_(spread * torch.randn(table.table.shape, generator=generator, dtype=torch.float64))
    return table


def as_reference(table):
    return LocalReference(LanguageModel(table, tabular_tokenizer(table), "table"))


def reward_table(table, seed=7):
    return torch.rand(table.sequence_logps().shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reward_function(table, values):
    """Texts "x0", "y2y0y1" → the entry of [prompts, V^L]."""
    size = table.config.answer_tokens

    def reward(prompts, completions):
        out = []
        for prompt, completion in zip(prompts, completions):
            row = 0
            for digit in completion.replace(" ", "").split("y")[1:]:
                row = row * size + int(digit)
            out.append(float(values[int(prompt[1:]), row]))
        return out

    return reward


def make_trainer(policy, tables, regularizer, *, rewards=(), beta=0.5, prompts=None, steps=10, **options):
    settings = {
        "prompts_per_step": 2,
        "max_new_tokens": policy.config.length,
        "learning_rate": 0.05,
        "schedule": "cosine",
        "adam_betas": (0.9, 0.99),
    }
    settings |= options.pop("args", {})
    chosen = {field.name: options.pop(field.name, None) for field in fields(Rule)}
    rule = Rule(**{name: value for name, value in chosen.items() if value is not None})
    references = {f"ref{k}": as_reference(table) for k, table in enumerate(tables)}
    return OnlineTrainer(
        LanguageModel(policy, tabular_tokenizer(policy), "table"),
        regularizer,
        beta=beta,
        references=references,
        prompts=prompts or [f"x{i}" for i in range(policy.config.prompts)],
        args=OnlineArguments(steps=steps, **settings),
        rewards=rewards,
        rule=rule,
        **options,
    )


def kl_to(policy, log_target):
    logps = policy.sequence_logps().detach()
    return float((logps.exp() * (logps - log_target)).sum(-1).mean())


def table_sampler(group):
    """Samples of a table by enumeration: the same law as `generate`, in a tenth of the time."""

    def sample(model, tokenizer, prompts):
        probabilities = model.sequence_logps().detach().exp()
        answers = model.answers()
        rollouts = []
        for prompt in prompts:
            row = int(prompt[1:])
            ids = answers[torch.multinomial(probabilities[row], group, replacement=True)].tolist()
            texts = tuple("".join(f"y{token}" for token in tokens) for tokens in ids)
            rollouts.append(
                Rollout(prompt, texts, (model.config.answer_tokens + row,), tuple(map(tuple, ids)), (False,) * group)
            )
        return rollouts

    return sample
