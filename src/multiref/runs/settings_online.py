"""What an online run's YAML file can say. These dataclasses are the documentation of the format (docs/online.md, docs/distillation.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from multiref.runs.settings import Lora, Model, Reference
from multiref.errors import ConfigError

__all__ = ["OnlineEvaluation", "OnlineRun", "Prompts", "RewardSetting", "ServerSetting", "WarmUpSetting"]


@dataclass
class Prompts:
    """A source of prompts. kind: "text" (.jsonl with `prompt` or `text` a line, or .txt with one text a blank-line paragraph; `words`: only the first so many)
    or "gsm8k" (a file or hub id; `style`: chat or plain; `split`). `skip`, `limit`: so many are left out at the start, and
    at most so many taken. `weights`: {reference: weight} for these prompts: routing. `words` with gsm8k: question and solution are one text, and the prompt its
    first words. `pieces`: paragraphs of a .txt are joined to pieces of at least so many characters, stretches of a longer text that do not end."""

    path: str
    kind: str = "text"
    words: int | None = None
    pieces: int | None = None
    style: str = "chat"
    split: str = "train"
    skip: int = 0
    limit: int | None = None
    weights: dict | None = None


@dataclass
class RewardSetting:
    """kind: gsm8k (the five rewards of the paper's script), lexicon (`path`), length (−|words − `target`|/`target`), model (`path`: a reward model)."""

    kind: str
    weight: float = 1.0
    path: str | None = None
    target: int = 50


@dataclass
class WarmUpSetting:
    """Distillation's first `share` of the steps at the states of the texts that follow the prompts, for a share `text_share` of them, and else at the student's
    own, under `penalty` (docs/distillation.md). `max_new_tokens`: where texts are cut there, if not as completions are."""

    share: float = 0.8
    max_new_tokens: int | None = None
    text_share: float = 1.0
    penalty: str = "per_token_forward_kl"


@dataclass
class ServerSetting:
    """Generation by a vLLM server at `endpoint` in place of transformers; it is given the policy's adapter (`lora`) every so many steps (`ServerSampler`)."""

    endpoint: str
    every: int = 1
    concurrency: int = 8
    timeout: float = 600.0


@dataclass
class OnlineEvaluation:
    """Held-out prompts, before and after. Online: `samples` completions of each, their rewards, and pass@k for each of `k` where the reward is gsm8k.
    Distillation: nats per token of the texts that follow the prompts, cut at `max_new_tokens`, under the student and under each teacher; and where `floor` is
    above 0, on that many prompts of each source Σ_k w_k KL(π‖π_k) of sampled completions beside its floor −log F by sequential Monte Carlo."""

    prompts: list[Prompts]
    samples: int = 4
    k: list[int] = field(default_factory=lambda: [1])
    floor: int = 0
    particles: int = 256


@dataclass
class OnlineRun:
    """`task`: online, or distill (no rewards). `method`: {name: rloo | reinforce | grpo, …its arguments}. `penalty`: a name of
    `multiref.training.online.PENALTIES`, or nothing for the exact rule of the regularizer. `training`: arguments of `OnlineArguments`.
    `text_share`: in distillation with one completion a prompt, the share of prompts whose states are those of the text that follows them (`TextStates`).
    `server`: completions from a server; needs `lora`.
    `warm_up`: distillation from a student that is far from its teachers: first at states of the texts, with completions of one a prompt.
    `start`: "model", or "product": the student is a product of copies of its teachers (`product_of`), as large as all of them; `model` gives the tokenizer.
    `too_long`: prompts that leave no room for `max_new_tokens` in the policy's context: "drop" or "error"."""

    task: str
    model: str | Model
    references: list[Reference]
    beta: float
    prompts: list[Prompts]
    output: str
    regularizer: str | dict = "ReverseKL"
    rewards: list[RewardSetting] = field(default_factory=list)
    method: dict = field(default_factory=lambda: {"name": "rloo"})
    penalty: str | None = None
    adaptive_beta: dict | None = None
    evaluation: OnlineEvaluation | None = None
    text_share: float = 0.0
    start: str = "model"
    warm_up: WarmUpSetting | None = None
    server: ServerSetting | None = None
    too_long: str = "drop"
    training: dict = field(default_factory=dict)
    lora: Lora | None = None

    def __post_init__(self) -> None:
        self.model = Model(self.model) if isinstance(self.model, str) else self.model
        self.regularizer = {"kind": self.regularizer} if isinstance(self.regularizer, str) else self.regularizer
        if self.task not in ("online", "distill"):
            raise ConfigError(f"task: found {self.task!r}, expected online, distill or reward.")
        if self.too_long not in ("drop", "error"):
            raise ConfigError(f"too_long: found {self.too_long!r}, expected drop or error.")
        if self.task == "distill" and self.rewards:
            raise ConfigError("rewards: distillation has none; use task: online.")
        if self.text_share and (self.task != "distill" or self.penalty != "per_token_reverse_kl"):
            raise ConfigError(
                "text_share: completions that the policy did not sample are for task: distill with penalty: per_token_reverse_kl alone; other rules would be biased."
            )
        if self.server is not None and (self.lora is None or self.text_share):
            raise ConfigError(
                "server: expected with lora, whose adapter it is given, and without text_share: through a configuration a server takes no whole model."
            )
        if self.warm_up is not None and self.task != "distill":
            raise ConfigError(
                "warm_up: expected only with task: distill; its states are no samples of the policy, and a reward on them is biased."
            )
        if self.start not in ("model", "product") or (self.start != "model" and self.task != "distill"):
            raise ConfigError(f"start: found {self.start!r}, expected model, or product with task: distill.")
        one = str(self.method.get("name", "rloo")).lower() == "reinforce" and self.method.get("group", 1) == 1
        if (self.warm_up is not None or self.text_share) and not one:
            raise ConfigError(
                "method: expected one completion a prompt with warm_up or text_share (there is one text a prompt): method: {name: reinforce}."
            )
        if self.task == "online" and not self.rewards:
            raise ConfigError("rewards: expected at least one; without a reward it is distillation, task: distill.")

    def plain(self) -> dict[str, Any]:
        """The resolved configuration, defaults written out."""
        return asdict(self)
