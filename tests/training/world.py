"""A world in which everything is known: a table as policy, K tables as references, every answer enumerable,
preferences as probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainingArguments

from multiref import ReverseKL
from multiref.data import Pair
from multiref.models import Tabular, Tokenisation, tabular_tokenizer
from multiref.models.small import word_tokenizer
from multiref.references.scores import SequenceScores, content_keys
from multiref.training import Preference, PreferenceData, PreferenceTrainer


@dataclass
class World:
    """answers: Y texts; ref_logps [K, Y]; reward [Y]; pairs in both orders with the probability of each.

    support: which of the table's V^L answers the Y are; None: all of them.
    """

    vocabulary: int
    length: int
    ref_logps: Tensor
    reward: Tensor
    support: Tensor | None = None

    @property
    def answers(self) -> list[str]:
        rows = Tabular(self.vocabulary, self.length).answers()
        rows = rows if self.support is None else rows[self.support]
        return ["".join(f"y{t}" for t in row) for row in rows.tolist()]

    def policy(self) -> Tabular:
        """The first reference, as a table."""
        logps = self.ref_logps[0]
        if self.support is not None:
            logps = torch.full((self.vocabulary**self.length,), -torch.inf, dtype=torch.float64).index_put(
                (self.support,), logps
            )
        return Tabular(self.vocabulary, self.length).assign(logps)

    def logps(self, policy: Tabular) -> Tensor:
        """[Y]: the policy's log-probabilities of the answers."""
        logps = policy.sequence_logps()[0].detach()
        return logps if self.support is None else logps[self.support]

    def scores(self) -> SequenceScores:
        answers = self.answers
        lengths = torch.full(self.ref_logps.shape, self.length)
        keys = content_keys(["x0"] * len(answers), answers)
        names = tuple(f"ref{k}" for k in range(len(self.ref_logps)))
        return SequenceScores(names, keys, self.ref_logps, lengths, torch.zeros_like(lengths, dtype=torch.bool))

    def population(self, partners: int | None = None, seed: int = 0) -> PreferenceData:
        """Every comparison (or `partners` random ones an answer), both ways, with its Bradley-Terry probability as its
        count."""
        size = len(self.reward)
        if partners is None:
            edges = [(a, b) for a in range(size) for b in range(a)]
        else:
            generator = torch.Generator().manual_seed(seed)
            edges = []
            for _ in range(partners):
                order = torch.randperm(size, generator=generator).tolist()
                edges += list(zip(order, order[1:] + order[:1]))
        answers = self.answers
        both = [(a, b) for a, b in edges] + [(b, a) for a, b in edges]
        a, b = torch.tensor(both).T
        pairs = [Pair("x0", answers[i], answers[j]) for i, j in both]
        counts = torch.sigmoid(self.reward[a] - self.reward[b])
        return PreferenceData(
            pairs, self.scores(), tabular_tokenizer(self.policy()), tokenisation=Tokenisation(end=False), counts=counts
        )

    def kl_to(self, policy: Tabular, log_target: Tensor) -> float:
        """KL(π‖target) over all answers."""
        logps = self.logps(policy)
        return float((logps.exp() * (logps - log_target)).sum())


def random_world(k: int, vocabulary: int = 3, length: int = 2, *, seed: int = 0, spread: float = 1.0) -> World:
    generator = torch.Generator().manual_seed(seed)
    size = vocabulary**length
    ref_logps = (spread * torch.randn(k, size, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return World(vocabulary, length, ref_logps, torch.rand(size, generator=generator, dtype=torch.float64))


def arguments(folder, **options) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(**(settings | options))


WORDS = [f"w{k}" for k in range(8)]
END = Tokenisation(end=False)


def word_trainer(model, scores, rows, folder, *, beta=0.3, **options) -> PreferenceTrainer:
    """Preferences in eight words under even weights; every step is logged."""
    settings = {"per_device_train_batch_size": len(rows), "logging_strategy": "steps", "logging_steps": 1, "max_steps": 1}
    return PreferenceTrainer(
        model,
        regularizer=ReverseKL(),
        beta=beta,
        scores=scores,
        train_dataset=rows,
        processing_class=word_tokenizer(WORDS),
        tokenisation=END,
        args=arguments(folder, **(settings | options)),
    )


def train_to_the_end(world: World, objective, folder, *, steps=400, lr=0.1, data=None, beta=None) -> Tabular:
    """Full-batch Adam with a cosine schedule to zero: ends at the stationary point."""
    data = world.population() if data is None else data
    policy = world.policy()
    args = arguments(
        folder,
        per_device_train_batch_size=len(data),
        max_steps=steps,
        learning_rate=lr,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        adam_beta2=0.99,
    )
    objective = objective if beta is None else Preference.of(objective, beta)
    trainer = PreferenceTrainer(policy, objective, args=args, train_dataset=data, processing_class=tabular_tokenizer(policy))
    trainer.train()
    return policy
