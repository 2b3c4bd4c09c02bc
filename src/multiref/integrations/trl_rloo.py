"""K references under TRL's `RLOOTrainer` or `GRPOTrainer`, through their public door: the references are one more reward
function (TRL from 1.16).

    Σ_k w_k KL(π‖π_k) = KL(π‖π_0) − E_π[Σ_k w_k log(π_k/π_0)],      Σ_k w_k = 1

TRL's RLOO keeps its own single reference π_0 with its own β in the reward (k1, whole completions);
`reference_reward` adds β Σ_k w_k log(π_k/π_0). TRL's GRPO has its penalty in the loss, which ends elsewhere (docs/online.md):
there `reference_reward` is the whole penalty, −β (log π − Σ_k w_k log π_k), and GRPO's own `beta` is zero. Either way the sum
is the exact rule for all K, for any tokenizer, LoRA, vLLM server or colocated generation. TRL reports the construction of a
trainer over the network unless HF_HUB_DISABLE_TELEMETRY=1 is set.
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from multiref.decoding.request import flat_weights
from multiref.errors import ArgumentError
from multiref.integrations.trl_conditions import (
    check_arguments,
    check_generation,
    check_grpo,
    check_noise,
    check_reference,
    check_trainer,
    check_version,
    is_grpo,
)
from multiref.models import Tokenisation, score_completions
from multiref.models.encoding import as_tokenizer
from multiref.models.sampling import encode_prompts
from multiref.references import References
from multiref.references.rollouts import Rollout, RolloutScorer
from multiref.regularizers import ReverseKL, check_beta


class ReferenceReward:
    """β Σ_k w_k (log π_k(y|x) − log π_0(y|x)) of each completion, as TRL calls its reward functions.
    Made by `reference_reward`.

    At its first call it finds the trainer that called it and refuses settings under which the sum would be another objective
    (`trl_conditions`). `check(trainer)` does the same at once.
    """

    def __init__(self, scorer: RolloutScorer, weights: Tensor, beta: float, policy_reference: str, tokenizer: Any):
        self.scorer, self.weights, self.beta = scorer, weights, beta
        self.policy_reference, self.tokenizer = policy_reference, tokenizer
        self.__name__ = "reference_reward"
        self.options: Mapping[str, Any] = {}  # for the chat template; the trainer's, once it is known
        self.ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}  # and what else ends the trainer's completions
        self.policy: Any = None  # under GRPO: whose own log-probabilities the reward needs
        self._checked = False

    def check(self, trainer: Any) -> None:
        """ArgumentError where this reward and that trainer do not add up to the objective."""
        if is_grpo(trainer.args):
            check_grpo(trainer.args, temperature=self.scorer.temperature)
            self.policy = trainer.accelerator.unwrap_model(trainer.model)
        else:
            check_arguments(trainer.args, beta=self.beta, temperature=self.scorer.temperature)
        check_trainer(trainer)
        weights = getattr(trainer, "reward_weights", None)
        functions = getattr(trainer, "reward_funcs", [])
        for index, function in enumerate(functions):
            if getattr(function, "reward", function) is self and weights is not None and float(weights[index]) != 1:
                raise ArgumentError(
                    f"reward_weights: expected 1 for reference_reward, found {float(weights[index])}; β already scales it."
                )
        self.ends |= set(getattr(trainer, "eos_token_ids", ()))
        self.options = dict(getattr(trainer, "chat_template_kwargs", None) or {})
        _hear_together([place for place, each in enumerate(functions) if getattr(each, "reward", each) is not self], functions)
        check_generation(getattr(trainer, "model", None))
        if self.policy is None:
            check_reference(trainer, self.scorer, self.policy_reference)
        check_noise(trainer, self.tokenizer)
        self._checked = True

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any] | None = None, **columns: Any
    ) -> list[float]:
        """[N] prompts (repeated as TRL does), completions and their token ids → N rewards."""
        caller = getattr(columns.get("log_metric"), "__self__", None)
        if not self._checked and hasattr(caller, "args") and hasattr(caller, "reward_funcs"):
            self.check(caller)
        if seen := [name for name in ("image", "images") if any(each for each in columns.get(name) or ())]:
            raise ArgumentError(
                f"{seen[0]}: the policy sees them, and references score texts alone: another distribution. Leave them out."
            )
        if completion_ids is None:
            raise ArgumentError(
                "completion_ids: TRL passes the token ids of completions to reward functions; found none. Use TRL 1.3 or newer."
            )
        return self.log_ratios(self.rollouts(prompts, completions, completion_ids)).mul(self.beta).tolist()

    def log_ratios(self, rollouts: Sequence[Rollout]) -> Tensor:
        """[N] float64: Σ_k w_k log π_k − log π_0; under GRPO, which has no penalty of its own in the reward,
        Σ_k w_k log π_k − log π. References of weight zero are not asked."""
        base = self.policy_reference if self.policy is None else None
        names = [name for name, w in zip(self.scorer.names, self.weights.tolist()) if w > 0 or name == base]
        coefficients = torch.tensor(
            [float(self.weights[self.scorer.names.index(name)]) - (name == base) for name in names], dtype=torch.float64
        )
        own = 0 if self.policy is None else score_completions(self.policy, [rollout.encoded() for rollout in rollouts])
        return coefficients @ self.scorer.completions(rollouts, names) - own

    def rollouts(self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Any]) -> list[Rollout]:
        """TRL's batch as rollouts; neighbours with the same prompt share it."""
        texts = zip(map(_frozen, prompts), map(_frozen, completions), completion_ids, strict=True)
        made = []
        for prompt, group in groupby(texts, key=itemgetter(0)):
            _, said, given = zip(*group)
            rows = tuple(tuple(map(int, ids)) for ids in given)
            ended = tuple(bool(ids) and ids[-1] in self.ends for ids in rows)
            made.append(Rollout(prompt, said, _prompt_ids(self.tokenizer, prompt, self.options), rows, ended))
        return made


def reference_reward(
    references: References | Mapping[str, Any],
    regularizer: ReverseKL,
    *,
    beta: float,
    policy_reference: str,
    tokenizer: Any = None,
    temperature: float = 1.0,
    asynchronous: bool = False,
    **options: Any,
) -> Any:
    """A TRL reward function that turns RLOO with one reference into RLOO with K: pass it in `reward_funcs` beside the task's
    own, with `RLOOConfig(beta=beta)`; or GRPO, with `GRPOConfig(beta=0.0, loss_type="dr_grpo", scale_rewards="none")`.

    Args:
        references: all K, by name: folders, hub ids, objects. Give one weight zero to have it as TRL's reference only.
        regularizer: `ReverseKL`; the identity holds for no other.
        beta: TRL's `beta`, the strength for all K together.
        policy_reference: the name of the one that TRL has as its reference: what it reloads from the policy's `_name_or_path`,
            or the base model under LoRA. GRPO: any of them.
        tokenizer: the policy's; None: that of `policy_reference`.
        temperature: TRL's sampling temperature, at which TRL takes log-probabilities too.
        asynchronous: an async function, scored in a thread beside other async rewards.
        options: for opening references (dtype="float32", device, …). float32 where advantages are to be equal to direct
            pooling.

    Raises: ArgumentError here for what is wrong by itself, and at the first call for settings of the trainer that would make
    another objective.
    """
    check_version()
    if not isinstance(regularizer, ReverseKL):
        raise ArgumentError(
            f"regularizer: expected ReverseKL, found {regularizer!r}. Only reverse KL splits into one reference and a reward; "
            "train others with multiref.training.online."
        )
    check_beta(beta)
    collection = references if isinstance(references, References) else References(references, **{"dtype": "float32", **options})
    if policy_reference not in collection.names:
        raise ArgumentError(f"policy_reference: found {policy_reference!r}, expected one of {', '.join(collection.names)}.")
    weights = flat_weights(regularizer.weights, len(collection.names))
    tokenizer = tokenizer if tokenizer is not None else getattr(collection.open(policy_reference), "tokenizer", None)
    if tokenizer is None:
        raise ArgumentError("tokenizer: expected the policy's tokenizer, for its reference is no local model.")
    reward = ReferenceReward(
        RolloutScorer(collection, tokenizer, temperature=temperature), weights, beta, policy_reference, tokenizer
    )
    return _in_a_thread(reward) if asynchronous else reward


def rloo(
    model: Any,
    references: References | Mapping[str, Any],
    regularizer: ReverseKL,
    *,
    beta: float,
    policy_reference: str,
    reward_funcs: Any,
    train_dataset: Any,
    args: Any = None,
    processing_class: Any = None,
    asynchronous: bool = False,
    options: Mapping[str, Any] | None = None,
    **trainer_options: Any,
) -> Any:
    """An `RLOOTrainer` under K references, ready to `.train()`: its arguments, its reference and the reward made and checked in
    one call.

    Args:
        model: the policy, as TRL takes it.
        args: an `RLOOConfig` whose beta and temperature are checked, or its keyword arguments as a mapping (beta is filled in,
            and dropout is off).
        options: for opening references. trainer_options: for `RLOOTrainer`. Others: as of `reference_reward`.
    """
    check_version()
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

    if args is None or isinstance(args, Mapping):
        args = RLOOConfig(**{"output_dir": "rloo", "beta": beta, "disable_dropout": True, **(args or {})})
    check_arguments(args, beta=beta, temperature=args.temperature)
    reward = reference_reward(
        references,
        regularizer,
        beta=beta,
        policy_reference=policy_reference,
        tokenizer=None if processing_class is None else as_tokenizer(processing_class),
        temperature=args.temperature,
        asynchronous=asynchronous,
        **(options or {}),
    )
    functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if args.reward_weights is not None and len(args.reward_weights) == len(functions):
        args.reward_weights = [*args.reward_weights, 1.0]
    if (classes := trainer_options.get("reward_processing_classes")) is not None:
        trainer_options["reward_processing_classes"] = [*(classes if isinstance(classes, list) else [classes]), None]
    trainer = RLOOTrainer(
        model,
        reward_funcs=[*functions, reward],
        args=args,
        train_dataset=train_dataset,
        processing_class=processing_class,
        **trainer_options,
    )
    getattr(reward, "reward", reward).check(trainer)
    return trainer


def _hear_together(others: Sequence[int], functions: list[Any]) -> None:
    """Makes the rewards at these places refuse, together, a completion of which all say None. TRL leaves it out, but not where
    one more reward, this one, has a number for it."""
    heard: list[list[bool]] = []

    def hear(values: Any) -> Any:
        heard.append([value is None for value in values])
        if len(heard) == len(others):
            silent = [all(row) for row in zip(*heard)]
            heard.clear()
            if any(silent):
                raise ArgumentError(
                    f"reward_funcs: all but reference_reward say None of completion {silent.index(True) + 1}. TRL would not "
                    "leave it out, but train it as a reward of 0 less the penalty; expected a number from at least one."
                )
        return values

    def hearing(function: Any) -> Any:
        async def later(**batch: Any) -> Any:
            return hear(list(await function(**batch)))

        waits = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
        made: Any = later if waits else lambda **batch: hear(list(function(**batch)))
        made.heard = True
        return wraps(function)(made)

    if not any(isinstance(functions[place], nn.Module) or hasattr(functions[place], "heard") for place in others):
        for place in others:
            functions[place] = hearing(functions[place])


def _in_a_thread(reward: ReferenceReward) -> Callable[..., Any]:
    async def reference_reward(**batch: Any) -> list[float]:
        return await asyncio.to_thread(reward, **batch)

    reference_reward.reward = reward  # type: ignore[attr-defined]
    return reference_reward


def _prompt_ids(tokenizer: Any, prompt: Any, options: Mapping[str, Any]) -> tuple[int, ...]:
    """As TRL makes them: plain text by the tokenizer, conversations by its template with the generation prompt. ArgumentError
    where the references would condition on others, such as a start token that TRL puts before one in the text."""
    if isinstance(prompt, str):
        made = tuple(tokenizer(text=[prompt])["input_ids"][0])
    else:
        written = tokenizer.apply_chat_template(
            conversation=[list(prompt)], add_generation_prompt=True, tokenize=True, return_dict=True, **options
        )
        made = tuple(written["input_ids"][0])
    (ours,) = encode_prompts(tokenizer, [prompt], Tokenisation(chat_template_kwargs=options))
    if made != ours:
        raise ArgumentError(
            f"The prompt that begins {str(prompt)[:40]!r}: TRL makes {len(made)} tokens of it, {made[:4]}…, and scoring "
            f"{len(ours)}, {ours[:4]}…. Write no start token into the text, and end conversations with a message of the user."
        )
    return made


def _frozen(text: Any) -> Any:
    return text if isinstance(text, str) else tuple(dict(message) for message in text)
