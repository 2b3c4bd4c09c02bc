"""When TRL's RLOO or GRPO plus one reward function is the objective under K references, and when it is not:
each condition refused with one message."""

import math
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from multiref.errors import ArgumentError, ModelError
from multiref.models import Encoded
from multiref.models.noise import plain_rows, refuse_noise

SUPPORTED = "trl>=1.16"


def check_version() -> None:
    """ArgumentError unless an installed TRL is in the range that this was tested for."""
    from packaging.specifiers import SpecifierSet

    try:
        found = version("trl")
    except PackageNotFoundError:
        raise ArgumentError(f"TRL is not installed; expected {SUPPORTED}. Install it: pip install 'multiref[trl]'.") from None
    if not SpecifierSet(SUPPORTED.removeprefix("trl"), prereleases=True).contains(found):
        raise ArgumentError(
            f"TRL {found} is installed; multiref supports {SUPPORTED} (tested with 1.16.0): pip install 'multiref[trl]'."
        )


def check_arguments(args: Any, *, beta: float, temperature: float) -> None:
    """An `RLOOConfig` under which TRL's own penalty and the added reward sum to the objective.
    ArgumentError naming the first that does not."""
    if not math.isclose(args.beta, beta, rel_tol=1e-12):
        raise ArgumentError(
            f"beta: TRL's own penalty has {args.beta}, the reference reward {beta}; they are two parts of one penalty. Set "
            f"RLOOConfig(beta={beta})."
        )
    if not math.isclose(args.temperature, temperature, rel_tol=1e-12):
        raise ArgumentError(
            f"temperature: TRL samples and scores at {args.temperature}, the references at {temperature}. Give "
            f"reference_reward temperature={args.temperature}, or set RLOOConfig(temperature={temperature})."
        )
    _check_sampling(args)
    wrong = {
        "reward_clip_range": "clips the reference reward with the task's (log-ratios of any size), but not TRL's own penalty",
        "mask_truncated_completions": "drops truncated completions from TRL's penalty but not from the reference reward",
        "normalize_advantages": "divides by the batch's deviation, so that β means another strength at every step",
        "sync_ref_model": "moves TRL's reference, so that it is no longer the policy reference",
    }
    _refuse_set(args, wrong)


def is_grpo(args: Any) -> bool:
    """Whether these are a `GRPOConfig`."""
    return any(kind.__name__ == "GRPOConfig" for kind in type(args).__mro__)


def check_grpo(args: Any, *, temperature: float) -> None:
    """A `GRPOConfig` under which the whole penalty in the reward is the objective's gradient, up to one factor.
    ArgumentError naming the first setting that is not so."""
    expected: dict[str, tuple[Any, str]] = {
        "beta": (0.0, "TRL's own penalty is a loss at each state, which ends elsewhere; here the reward has all of it"),
        "temperature": (1.0, "the policy is scored at temperature 1"),
        "scale_rewards": ("none", "advantages are divided by a deviation, so that β means another strength for every prompt"),
        "loss_type": ("dr_grpo", "others weigh a completion by lengths, or move where ratios are not one"),
        "top_entropy_quantile": (1.0, "tokens are left out"),
        "entropy_coef": (0.0, "entropy is another term of the objective"),
        "use_adaptive_entropy": (False, "entropy is another term of the objective"),
        "multi_objective_aggregation": ("sum_then_normalize", "the penalty would be normalised apart from the reward"),
        "mask_truncated_completions": (False, "what is long is dropped from the objective"),
        "off_policy_mask_threshold": (None, "completions are dropped by their likelihood"),
    }
    for name, (wanted, why) in expected.items():
        found = getattr(args, name, wanted)
        if found != wanted and not (wanted == "none" and found is False):
            raise ArgumentError(f"{name}: found {found!r}, expected {wanted!r}: {why}. Set GRPOConfig({name}={wanted!r}).")
    if temperature != 1:
        raise ArgumentError(f"temperature: expected 1 for reference_reward under GRPO, found {temperature}.")
    _check_sampling(args)


def _refuse_set(args: Any, wrong: dict[str, str]) -> None:
    for name, why in wrong.items():
        found, neutral = getattr(args, name, None), _NEUTRAL.get(name, ())
        if found not in neutral if neutral else found:
            raise ArgumentError(f"{name}: found {found!r}, expected it unset: it {why}. Remove it.")


_NEUTRAL: dict[str, tuple[Any, ...]] = {"top_p": (1, None), "top_k": (0, -1, None), "repetition_penalty": (1, None)}


def _check_sampling(args: Any) -> None:
    """Every step is on samples of the policy as it is."""
    bent = "samples another policy than the one whose log-probabilities are taken"
    names = ("min_p", "vllm_structured_outputs_regex", *_NEUTRAL)
    _refuse_set(args, {**dict.fromkeys(names, bent), "generation_kwargs": "may change the distribution that is sampled"})
    for name, most in (("num_iterations", 1), ("steps_per_generation", args.gradient_accumulation_steps)):
        if (found := getattr(args, name, None)) is not None and found > most:
            raise ArgumentError(
                f"{name}: found {found}, expected at most {most}: later steps would train on samples of an older policy, with "
                "clipped ratios and with that policy's penalty. Remove it."
            )


def check_trainer(trainer: Any) -> None:
    """The policy draws every token of a completion, and TRL adds no loss of its own. ArgumentError, naming what is not so."""
    foreign = "may put tokens that the policy did not draw into completions, and the references would score them"
    _refuse_set(trainer, dict.fromkeys(("tools", "rollout_func"), foreign))
    if getattr(trainer, "aux_loss_enabled", False):
        raise ArgumentError(
            f"router_aux_loss_coef: found {trainer.router_aux_loss_coef}, expected 0.0: the balance of a router is another "
            f"term of the objective. Set {type(trainer.args).__name__}(router_aux_loss_coef=0.0)."
        )


def check_noise(trainer: Any, tokenizer: Any) -> None:
    """The policy's log-probabilities in the mode in which TRL trains, training mode, are no draws.
    ModelError, naming the module. (Not asked of a model that is spread over processes.)"""
    if trainer.accelerator.num_processes > 1:
        return
    ids = tuple(tokenizer("a b c")["input_ids"])
    modes = {module: module.training for module in trainer.model.modules()}
    trainer.model.train()
    try:
        refuse_noise(trainer.model, plain_rows(trainer.model, [Encoded(ids, (ids,), (False,))]))
    except ModelError as error:
        raise ModelError(f"{error} Set RLOOConfig(disable_dropout=True), and lora_dropout to 0.") from None
    finally:
        for module, training in modes.items():
            module.training = training


_UNBENT = {
    "max_length",
    "max_new_tokens",
    "transformers_version",
    "cache_implementation",
    "use_cache",
    "return_dict_in_generate",
}
_SET_BY_TRL = {"do_sample", "temperature", "top_p", "top_k", "repetition_penalty"}  # RLOOConfig's values take their place


def check_generation(model: Any) -> None:
    """The policy's generation settings leave its distribution as it is: TRL takes from them what `RLOOConfig` does not name.
    ArgumentError."""
    config = getattr(model, "generation_config", None)
    given = {} if config is None else config.to_diff_dict()
    bent = {
        name: value
        for name, value in given.items()
        if name not in _UNBENT | _SET_BY_TRL and not name.startswith(("_", "output_")) and not name.endswith("_token_id")
    }
    if bent:
        raise ArgumentError(
            f"generation_config: the policy's has {', '.join(f'{name}={value!r}' for name, value in bent.items())}; "
            "completions would be sampled from another policy than the one whose log-probabilities are taken. Set "
            "model.generation_config = transformers.GenerationConfig(eos_token_id=…) before training."
        )


def check_reference(trainer: Any, scorer: Any, policy_reference: str) -> None:
    """The model that the trainer has as its reference is the one called `policy_reference`, weight by weight;
    under LoRA that is the policy's base.

    Raises: ArgumentError. TRL reloads its reference from the policy's `_name_or_path`: a policy that was edited, or made in
    memory, gets another.
    """
    reloaded = getattr(trainer, "ref_model", None)
    theirs = _weights_under_lora(trainer) if reloaded is None else _weights(trainer, reloaded)
    ours = scorer.weights(policy_reference)
    if ours is None:
        return  # a server: its weights cannot be compared
    if not ours.keys() & theirs.keys():
        raise ModelError(
            f"policy_reference: {policy_reference!r} has no weight in common with TRL's reference; expected the same model."
        )
    compared = theirs.keys() if reloaded is not None else ours.keys() & theirs.keys()
    wrong = next((name for name in sorted(compared) if not _equal(ours.get(name), theirs[name])), None)
    if wrong is not None and reloaded is None:
        raise ArgumentError(
            f"policy_reference: under LoRA TRL's reference is the policy's base, whose weight {wrong} is not that of "
            f"{policy_reference!r}. Name the base model as the policy reference."
        )
    if wrong is not None:
        where = getattr(trainer.model.config, "_name_or_path", "") or "nowhere"
        raise ArgumentError(
            f"policy_reference: TRL reloaded its reference from {where!r} (the policy's _name_or_path), and its weight {wrong} "
            f"is not that of {policy_reference!r}. Save the intended reference as a folder, load the policy from there, and "
            f"name that folder as {policy_reference!r}."
        )


def _weights(trainer: Any, model: Any) -> dict[str, Tensor]:
    return dict(trainer.accelerator.unwrap_model(model).named_parameters())


def _weights_under_lora(trainer: Any) -> dict[str, Tensor]:
    """The weights of the policy's base, by the names that they have in a model of its own."""
    adapters = getattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config", None)
    if adapters is None:
        raise ArgumentError(
            "beta: TRL has no reference model (its beta is 0), so there is nothing that the reference reward could complete."
        )
    if "ref" in adapters:
        raise ArgumentError(
            "policy_reference: TRL's reference is a copy of the adapter that the policy came with, which no reference here can "
            "be. Merge the adapter into its base, and pass a peft_config for a new one."
        )
    named = {name: value for name, value in _weights(trainer, trainer.model).items() if "lora_" not in name}
    return {name.removeprefix("base_model.model.").replace(".base_layer", ""): value for name, value in named.items()}


def _equal(ours: Tensor | None, theirs: Tensor) -> bool:
    if ours is None or ours.shape != theirs.shape:
        return False
    return bool((ours.detach().to(theirs).cpu() == theirs.detach().cpu()).all())
