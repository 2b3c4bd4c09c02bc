"""What a run is: how much of each stage, which rules, which strengths."""

import dataclasses
from dataclasses import dataclass

from multiref_lab.real.problems import KINDS

BASE = "base"
SPECIALISTS = KINDS  # each is called after the kind that it was taught
REFERENCES = (BASE, *SPECIALISTS)

# What `multiref train` reads beside references and β, by rule; "single" is a rule for each reference alone.
EXACT, SINGLE = "exact", "best single"
RULES = {EXACT: {"kind": "ReverseKL"}, "forward KL": {"kind": "ForwardKL"}, "MRPO's pool": {"kind": "PooledKL", "order": -1}}


@dataclass(frozen=True)
class RealSettings:
    """warm, taught: worked answers that the base is warmed up on (of each kind), and each specialist is taught (of its own).
    questions, draws, most: for the pairs: training questions, the base's answers to each, pairs of each at most.
    held_out, few: questions of the evaluation; how many of them the KLs are measured on, and the specialists.
    seeds: each draws its own answers, order and evaluation; the models that it starts from are the same.
    """

    rules: tuple[str, ...] = (EXACT, SINGLE)
    betas: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)
    warm: int = 24
    taught: int = 56
    questions: int = 140
    draws: int = 4
    most: int = 2
    held_out: int = 400
    few: int = 80
    sft_rate: float = 2e-3
    learning_rate: float = 5e-4
    epochs: int = 1
    pairs_per_step: int = 8
    max_new_tokens: int = 20


STANDARD = RealSettings()
QUICK = dataclasses.replace(STANDARD, warm=12, taught=16, questions=24, held_out=40, few=16)
FULL = dataclasses.replace(
    STANDARD,
    rules=(*RULES, *REFERENCES),
    betas=(0.05, 0.2),
    seeds=(0, 1, 2),
)
