"""A task of Hugging Face models: a policy (a LoRA adapter on a base, or whole), K frozen references of its vocabulary, a reward
head on frozen hidden states, prompts, an oracle.

Tokens, samples and log-probabilities are those of `multiref.models`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, ModelError
from multiref.models import Encoded, Generation, LanguageModel, Tokenisation, completion_logps
from multiref.models.architecture import run
from multiref.models.forward import inputs_of
from multiref.models.logps import audited, in_order
from multiref.models.noise import plain_rows, refuse_adapter_dropout, refuse_noise
from multiref.models.rows import Rows
from multiref.models.sampling import Rollout, decode_behind, draw, encode_prompts, end_ids
from multiref.models.spec import TOKENISATION
from multiref.models.witness import dtype_of
from multiref.references.local import LocalReference
from multiref.references.scores import same_vocabulary
from multiref.regularizers import FDivergence, Regularizer
from multiref.training.adapters import save_whole
from multiref.training.arguments import with_lora
from multiref.training.checkpoint import put_back
from multiref.training.checks import digest_of
from multiref.training.honoured import check_trainable
from multiref.training.iterative.state import State
from multiref.training.iterative.task import Oracle, Policy, Task
from multiref.training.start import check_first, held_elsewhere, identity_of, refuse_the_policy, starts_as

Hidden = Callable[[Sequence[Any], Sequence[str]], Sequence[float]]
_REMEMBERED = 100_000
_TOGETHER = 64  # completions of one pass that keeps the hidden states of every layer


class TextWorld:
    """Prompts, a tokenizer, and what turns token ids back into texts. Completions are [B, n, L], padded with −1,
    end token included.

    Args:
        prompts: texts, or conversations, as `models.encode` has them; `tokenisation` says how they become ids.
    """

    def __init__(
        self, prompts: Sequence[Any], tokenizer: Any, *, max_new_tokens: int, tokenisation: Tokenisation = TOKENISATION
    ) -> None:
        if not prompts or max_new_tokens < 1:
            raise ArgumentError(
                f"prompts: found {len(prompts)} and max_new_tokens {max_new_tokens}, expected at least one of each"
            )
        self.prompts, self.tokenizer, self.max_new_tokens = list(prompts), tokenizer, max_new_tokens
        self.tokenisation = tokenisation
        self.ids = encode_prompts(tokenizer, self.prompts, tokenisation)

    def decode(self, prompts: Tensor, completions: Tensor) -> tuple[list[Any], list[str]]:
        """[B], [B, L] → the prompts and the completions' texts."""
        places = prompts.tolist()
        rows = [tuple(t for t in row if t >= 0) for row in completions.tolist()]
        return [self.prompts[x] for x in places], decode_behind(self.tokenizer, [self.ids[x] for x in places], rows, 1)

    def encoded(self, prompts: Tensor, completions: Tensor) -> list[Encoded]:
        """[B], [B, n, L] → each prompt with its n completions, as models score them."""
        return [
            Encoded(self.ids[x], tuple(tuple(t for t in row if t >= 0) for row in rows), (False,) * len(rows))
            for x, rows in zip(prompts.tolist(), completions.tolist())
        ]


def with_adapter(model: Any, options: Mapping[str, Any], *, seed: int = 0) -> Any:
    """The model with one LoRA adapter called `start`, which changes nothing yet;
    drawn from `seed`, the global random state left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return with_lora(model, options, name="start")


class TextPolicy:
    """A causal language model as a policy; with `adapter`, one LoRA adapter of a PEFT model, whose copies share its base."""

    once_differentiable = True  # in log π: the pass that saves memory has no second derivative

    def __init__(self, world: TextWorld, model: Any, *, adapter: str | None = None) -> None:
        self.world, self.model, self.adapter = world, model.eval(), adapter

    def worn(self) -> Any:
        """The model with this policy's adapter on."""
        if self.adapter is not None:
            self.model.set_adapter(self.adapter)
            for parameter in self.parameters():
                parameter.requires_grad_(True)
        return self.model

    def parameters(self) -> list[Tensor]:
        """All of them, or the adapter's alone."""
        if self.adapter is None:
            return list(self.model.parameters())
        return [p for name, p in self.model.named_parameters() if self.adapter in name.split(".")]

    def matrices(self) -> list[Tensor]:
        """[m, n] each, of those in training: what Muon may orthogonalise, that is neither embeddings nor the head."""
        ends = {
            id(end.weight) for end in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if end is not None
        }
        return [p for p in self.parameters() if p.ndim == 2 and id(p) not in ends]

    def copy(self) -> "TextPolicy":
        """Without an adapter a whole model; with one, another adapter on the same base. ModelError where that is not the same
        policy, or this one is another then."""
        if self.adapter is None:
            return TextPolicy(self.world, copy.deepcopy(self.model))
        name, config = f"copy{len(self.model.peft_config)}", self.model.peft_config[self.adapter]
        some = torch.tensor([0]), torch.tensor([[self.world.ids[0][: self.world.max_new_tokens]]])
        plain = copy.deepcopy(config)
        if hasattr(config, "init_lora_weights"):
            plain.init_lora_weights = True  # PiSSA, say, would change the base a second time
        try:
            if (bias := getattr(config, "bias", "none")) != "none":
                raise ValueError(f"it trains the base's biases (bias={bias!r})")
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                was = self.logps(*some)
                self.model.add_adapter(name, plain)
                self.model.peft_config[name] = copy.deepcopy(config)
                other = TextPolicy(self.world, self.model, adapter=name)
                put_back(zip(other.parameters(), self.parameters(), strict=True))
                if not all(torch.allclose(was, each.logps(*some), atol=1e-3) for each in (self, other)):
                    raise ValueError("the second is not as the first")
        except ValueError as error:
            raise ModelError(
                f"The policy's adapter ({config.peft_type.value}) cannot be held twice on one base, as this method needs: "
                f"{error}. Put a new one on top (lora), or merge it."
            ) from None
        return other

    def logps(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n] float32."""
        logps = completion_logps(self.worn(), self.world.encoded(prompts, completions))
        return logps.float().cpu().view(completions.shape[:-1])

    def sample(self, prompts: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """[B] → [B, n, L], ancestral at temperature 1."""
        world, model = self.world, self.worn()
        rows = draw(
            model,
            [world.ids[x] for x in prompts.tolist()],
            Generation(world.max_new_tokens),
            group=n,
            ends=end_ids(model, world.tokenizer),
            pad=world.tokenizer.pad_token_id or 0,
            generator=generator,
        )
        padded = [[*ids, *[-1] * (world.max_new_tokens - len(ids))] for ids, _ in rows]
        return torch.tensor(padded).view(len(prompts), n, -1)


def save_policy(policy: Policy, folder: str | Path) -> None:
    """A text policy as transformers or PEFT loads it, tokenizer included.

    Raises:
        ArgumentError: a policy that is no language model.
    """
    if not isinstance(policy, TextPolicy):
        raise ArgumentError(f"save_policy: found {type(policy).__name__}, expected a TextPolicy")
    options = {} if policy.adapter is None else {"selected_adapters": [policy.adapter]}
    save_whole(policy.worn(), policy.world.tokenizer, Path(folder), **options)


def sample_rollouts(policy: Policy, count: int) -> list[Rollout]:
    """One completion each of the first prompts, as the policy draws and spells them."""
    if not isinstance(policy, TextPolicy):
        raise ArgumentError(f"sample_rollouts: found {type(policy).__name__}, expected a TextPolicy")
    world, few = policy.world, torch.arange(min(count, len(policy.world.prompts)))
    drawn = policy.sample(few, 1, torch.Generator().manual_seed(0))
    items = world.encoded(few, drawn)
    return [Rollout(prompt, (None,), item.prompt_ids, item.completions, (False,)) for prompt, item in zip(world.prompts, items)]


def frozen_references(world: TextWorld, references: Mapping[str, LanguageModel]) -> Callable[[Tensor, Tensor], Tensor]:
    """K frozen models of one vocabulary → ref_logps of a task.

    Raises:
        VocabularyMismatch: a tokenizer that maps another way.
    """
    tokenizers = world.tokenizer, *(each.tokenizer for each in references.values())
    same_vocabulary(["the policy", *references], [each.get_vocab() for each in tokenizers])
    frozen = [TextPolicy(world, reference.model) for reference in references.values()]

    @torch.no_grad()
    def ref_logps(prompts: Tensor, completions: Tensor) -> Tensor:
        return torch.stack([each.logps(prompts, completions) for each in frozen])

    return ref_logps


class TextReward(nn.Module):
    """r_φ = ⟨φ, f⟩/√d with f the mean of a frozen model's hidden states over the completion,
    standardised on the starting policy's completions.

    Args:
        calibration: prompts [B] and completions [B, n, L] on which the features get mean 0 and deviation 1.
    """

    def __init__(self, world: TextWorld, model: nn.Module, calibration: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._frozen = _Hidden(world, model)
        self.centre, self.scale = torch.zeros(1), torch.ones(1)
        raw = self.features(*calibration).flatten(0, 1)
        self.centre, self.scale = raw.mean(0), raw.std(0).clamp_min(1e-6)
        self.phi = nn.Parameter(torch.zeros(raw.shape[-1]))

    def features(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n, d]."""
        raw = self._frozen(prompts.repeat_interleave(completions.shape[1]), completions.flatten(0, 1))
        standard: Tensor = (raw - self.centre) / self.scale
        return standard.view(*completions.shape[:-1], -1)

    def jacobian(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n, d]: ∂r/∂φ."""
        jacobian: Tensor = self.features(prompts, completions) / len(self.phi) ** 0.5
        return jacobian

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[B], [B, n, L] → [B, n]."""
        reward: Tensor = self.jacobian(prompts, completions) @ self.phi
        return reward


@dataclass
class _Hidden:
    """A frozen model's last hidden states, averaged over a completion, each completion read once:
    labelled pairs come back in every step of a fit."""

    world: TextWorld
    model: Any
    seen: dict[bytes, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hidden":
        return self  # frozen: copies of a reward share it, and what it has read

    def __call__(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """[N], [N, L] → [N, d]."""
        keys = [x.to_bytes(8, "little") + row.numpy().tobytes() for x, row in zip(prompts.tolist(), completions)]
        if len(self.seen) > _REMEMBERED:
            self.seen.clear()
        fresh = list({key: place for place, key in enumerate(keys) if key not in self.seen}.values())
        for few in (fresh[start : start + _TOGETHER] for start in range(0, len(fresh), _TOGETHER)):
            found = self._read(self.world.encoded(prompts[few], completions[few].unsqueeze(1)))
            self.seen.update({keys[place]: row for place, row in zip(few, found)})
        return torch.stack([self.seen[key] for key in keys])

    @torch.no_grad()
    def _read(self, items: Sequence[Encoded]) -> Tensor:
        """[N, d], laid out as the model's audit finds it right; of an empty completion zeros."""

        def states(rows: Rows) -> Tensor:
            out = run(self.model, **inputs_of(self.model, rows), output_hidden_states=True)
            return torch.as_tensor(out.hidden_states[-1].flatten(0, 1)[rows.where + 1].float())

        hidden, owner = in_order(self.model, items, audited(self.model, items, share=False), states)
        total = hidden.new_zeros(len(items), hidden.shape[-1]).index_add(0, owner, hidden)
        return (total / torch.bincount(owner, minlength=len(items)).clamp_min(1)[:, None]).cpu()


# ---- the task ----


@dataclass(frozen=True)
class TextSetting:
    """How a text task is set up, and what is measured of it.

    Attributes:
        lora: options of `peft.LoraConfig`; the policies of the two levels are then adapters on one base.
            None trains all parameters.
        hidden: the reward behind the oracle, where there is one: measured and reported, never shown to the method.
        held_out: completions drawn for each measurement.
        seed: of the adapter and of the completions on which the reward's features are standardised.
    """

    max_new_tokens: int = 24
    tokenisation: Tokenisation = TOKENISATION
    lora: Mapping[str, Any] | None = None
    hidden: Hidden | None = None
    held_out: int = 128
    seed: int = 0


def text_task(
    policy: LanguageModel,
    references: Mapping[str, LanguageModel],
    regularizer: Regularizer,
    *,
    beta: float,
    prompts: Sequence[Any],
    oracle: Callable[[TextWorld], Oracle],
    setting: TextSetting = TextSetting(),
) -> Task:
    """What the methods are given.

    Args:
        oracle: makes the oracle from the world (which turns token ids into texts).

    Raises:
        VocabularyMismatch: a reference of another vocabulary.
    """
    world = TextWorld(prompts, policy.tokenizer, max_new_tokens=setting.max_new_tokens, tokenisation=setting.tokenisation)
    ref_logps = frozen_references(world, references)
    worn = policy.model.active_adapter if hasattr(policy.model, "peft_config") else None
    learner = TextPolicy(world, policy.model, adapter=worn)
    if setting.lora is not None:
        learner = TextPolicy(world, with_adapter(policy.model, setting.lora, seed=setting.seed), adapter="start")
    everyone = torch.arange(len(world.prompts))
    refuse_adapter_dropout(learner.model)
    check_trainable(learner.worn())
    calibration = (everyone, learner.sample(everyone, 2, torch.Generator().manual_seed(setting.seed)))
    refuse_noise(learner.model, plain_rows(learner.model, world.encoded(everyone[:2], calibration[1][:2])))
    _check_start(learner, references, everyone[:8], calibration[1][:8, :1])
    task = Task(
        prompts=len(world.prompts),
        policy=learner,
        ref_logps=ref_logps,
        regularizer=regularizer,
        beta=beta,
        oracle=oracle(world),
        reward_model=TextReward(world, next(iter(references.values())).model, calibration),
        settings={
            "prompts": digest_of(world.ids),
            "max_new_tokens": setting.max_new_tokens,
            "references": list(references),
            **held_elsewhere(learner.model, {name: LocalReference(each) for name, each in references.items()}),
            "dtype": str(dtype_of(policy.model)),
        },
    )
    task.measure = _Measure(task, world, tuple(references), setting.hidden, max(2, setting.held_out // len(everyone)))
    return task


@torch.no_grad()
def _check_start(policy: TextPolicy, references: Mapping[str, LanguageModel], prompts: Tensor, completions: Tensor) -> None:
    """A policy that is a reference, with new adapters or none, has log-ratio 0 to it where training starts. ArgumentError for
    a reference that holds the policy's adapter, and would move along."""
    if policy.adapter is not None:
        refuse_the_policy(policy.parameters(), {name: each.model for name, each in references.items()})
    names, known = tuple(references), [identity_of(LocalReference(each)) for each in references.values()]
    alike = {names[k]: known[k] for k in starts_as(policy.model, policy.world.tokenizer, known)}
    frozen = [TextPolicy(policy.world, references[name].model) for name in alike]
    scores = {name: (alike[name], each.logps(prompts, completions)[:, 0]) for name, each in zip(alike, frozen)}
    lengths = (completions[:, 0] >= 0).sum(-1)
    check_first(policy.model, lambda: policy.logps(prompts, completions)[:, 0], scores, lengths, autocast="no")


@dataclass(frozen=True)
class _Measure:
    """Estimates on n fresh rollouts of each prompt, drawn with common random numbers:
    KL(π‖π_k), and where the reward is known its mean, the true objective under reverse KL,
    and how far the learnt reward is off under the policy and under its start."""

    task: Task
    world: TextWorld
    names: tuple[str, ...]
    hidden: Hidden | None
    n: int

    def __call__(self, state: State) -> dict[str, Tensor]:
        everyone = torch.arange(self.task.prompts)
        y = state.policy.sample(everyone, self.n, torch.Generator().manual_seed(1))
        logps, refs = state.policy.logps(everyone, y), self.task.ref_logps(everyone, y)
        found = {f"kl/{name}": (logps - ref).mean() for name, ref in zip(self.names, refs)}
        pooled = not isinstance(self.task.regularizer, FDivergence)
        log_ratio = logps - self.task.regularizer.pool(refs) if pooled else torch.zeros_like(logps)
        if pooled:
            found["penalty"] = log_ratio.mean()
        if self.hidden is None:
            return found
        true = self._true(self.hidden, everyone, y)
        found["hidden reward"] = true.mean()
        if pooled and self.task.regularizer.alpha == 1:
            each = true - self.task.beta * log_ratio
            found["true objective"], found["true objective, standard error"] = each.mean(), error_of_mean(each)
        if state.reward is not None and not getattr(state.reward, "pairwise", False):
            found["reward error here"] = _off(state.reward(everyone, y), true)
            start = state.start.sample(everyone, self.n, torch.Generator().manual_seed(1))
            found["reward error at start"] = _off(state.reward(everyone, start), self._true(self.hidden, everyone, start))
        return found

    def _true(self, hidden: Hidden, prompts: Tensor, y: Tensor) -> Tensor:
        texts = self.world.decode(prompts.repeat_interleave(y.shape[1]), y.flatten(0, 1))
        return torch.tensor(list(hidden(*texts)), dtype=torch.float32).view(y.shape[:2])


def error_of_mean(each: Tensor) -> Tensor:
    """[X, n] → the standard error of their mean over draws of completions, the prompts being as they are."""
    return (each.var(-1) / each.shape[-1]).mean().div(len(each)).sqrt()


def _off(learnt: Tensor, true: Tensor) -> Tensor:
    """Standard deviation of r̂ − r within a prompt: what a policy can be misled by."""
    error = (learnt - true).detach()
    return (error - error.mean(-1, keepdim=True)).square().mean().mul(error.shape[-1] / (error.shape[-1] - 1)).sqrt()
