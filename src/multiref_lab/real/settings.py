"""What a run is: how much of each stage, which rules, which strengths."""

import dataclasses
from dataclasses import dataclass

from multiref_lab.real.problems import KINDS

BASE = "base"
SPECIALISTS = KINDS  # each is called after the kind that it was taught
REFERENCES = (BASE, *SPECIALISTS)

# What `multiref train` reads beside references and β, by rule; "single" is a rule for each reference alone.
EXACT, SINGLE, ONLINE = "exact", "best single", "RLOO"
RULES = {
    EXACT: {"kind": "ReverseKL"},
    "MRPO's pool": {"kind": "PooledKL", "order": -1},
    "forward KL": {"kind": "ForwardKL"},
    ONLINE: {"kind": "ReverseKL"},
}


@dataclass(frozen=True)
class RealSettings:
    """warm, taught: worked answers that the base is warmed up on (of each kind), and each specialist is taught.
    mixed: of these the share of the other kind: at 0 the specialists are complementary, at ½ they were taught alike.
    questions, draws, most: for the pairs: training questions, the base's answers to each, pairs of each at most.
    held_out: questions that the base and the exact rule are judged on; compared: every so many of them all policies;
        few: every so many of these the KLs are measured on, and the specialists. Each divides the one before it.
    greedy: whether greedy answers are asked for too.
    online_rate, steps, prompts_per_step, group: of online training: learning rate, batches, questions and answers to each.
    seeds: each draws its own answers and order; the models that it starts from, the questions and the base's own answers to
        them (one for each seed) are the same.
    """

    rules: tuple[str, ...] = (EXACT, SINGLE)
    betas: tuple[float, ...] = (0.1,)
    seeds: tuple[int, ...] = (0,)
    warm: int = 24
    taught: int = 56
    mixed: float = 0.0
    questions: int = 240
    draws: int = 4
    most: int = 2
    held_out: int = 400
    compared: int = 400
    few: int = 50
    greedy: bool = True
    sft_rate: float = 2e-3
    learning_rate: float = 1e-4
    epochs: int = 1
    pairs_per_step: int = 4
    online_rate: float = 5e-4
    steps: int = 12
    prompts_per_step: int = 4
    group: int = 8
    max_new_tokens: int = 20

    def lesson(self, specialist: str) -> list[int]:
        """How many answers of each kind it is taught."""
        other = round(self.mixed * self.taught)
        return [self.taught - other if kind == specialist else other for kind in KINDS]

    def places(self, count: int) -> range:
        """Of the held-out questions so many, evenly spread."""
        return range(0, self.held_out, self.held_out // count)


STANDARD = RealSettings()
QUICK = dataclasses.replace(STANDARD, warm=12, taught=16, questions=24, held_out=40, compared=40, few=20)
FULL = dataclasses.replace(
    STANDARD,
    rules=(EXACT, *REFERENCES, *(rule for rule in RULES if rule != EXACT)),
    betas=(0.05, 0.2),
    seeds=(0, 1, 2),
    compared=200,
    greedy=False,
)
SINGLES = dataclasses.replace(FULL, rules=(EXACT, *REFERENCES), betas=(0.05,))
