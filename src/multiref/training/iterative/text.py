"""Hugging Face models as policies of a task: adapters on one base, frozen references, a reward head on frozen hidden states.

Tokens, samples and log-probabilities are those of `multiref.models`.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiref.errors import ArgumentError, VocabularyMismatch
from multiref.models import Encoded, Generation, LanguageModel, Tokenisation, completion_logps
from multiref.models.sampling import Rollout, decode_behind, draw, encode_prompts, end_ids
from multiref.models.spec import TOKENISATION
from multiref.training.adapters import complete_folder
from multiref.training.arguments import with_lora
from multiref.training.checkpoint import put_back
from multiref.training.iterative.task import Policy
from multiref.training.reward.rows import pad_rows

_REMEMBERED = 100_000


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
        return [p for name, p in self.model.named_parameters() if f".{self.adapter}." in name]

    def matrices(self) -> list[Tensor]:
        """[m, n] each, of those in training: what Muon may orthogonalise, that is neither embeddings nor the head."""
        ends = {
            id(end.weight) for end in (self.model.get_input_embeddings(), self.model.get_output_embeddings()) if end is not None
        }
        return [p for p in self.parameters() if p.ndim == 2 and id(p) not in ends]

    def copy(self) -> "TextPolicy":
        """Without an adapter a whole model; with one, another adapter on the same base."""
        if self.adapter is None:
            return TextPolicy(self.world, copy.deepcopy(self.model))
        name = f"copy{len(self.model.peft_config)}"
        with torch.random.fork_rng(devices=[]):
            self.model.add_adapter(name, self.model.peft_config[self.adapter])
        self.model.eval()  # the new modules as the others: no dropout
        other = TextPolicy(self.world, self.model, adapter=name)
        put_back(zip(other.parameters(), self.parameters(), strict=True))
        for parameter in other.parameters():
            parameter.requires_grad_(True)
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
    if policy.adapter is None:
        policy.model.save_pretrained(folder)
    else:
        # PEFT puts adapters of other names into folders of their own; merged weights would lose the adapter,
        # so rename what is written
        policy.model.set_adapter(policy.adapter)
        policy.model.save_pretrained(folder, selected_adapters=[policy.adapter])
        inner = Path(folder) / policy.adapter
        for file in inner.iterdir() if inner.is_dir() else ():  # PEFT's own "default" has none
            file.replace(Path(folder) / file.name)
        if inner.is_dir():
            inner.rmdir()
    policy.world.tokenizer.save_pretrained(folder)
    complete_folder(Path(folder), policy.model)


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
    for name, reference in references.items():
        if reference.tokenizer.get_vocab() != world.tokenizer.get_vocab():
            raise VocabularyMismatch(
                f"reference {name}: its vocabulary is not the policy's; expected the same mapping for online scoring"
            )
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
        if fresh:
            found = self._read(self.world.encoded(prompts[fresh], completions[fresh].unsqueeze(1)))
            self.seen.update({keys[place]: row for place, row in zip(fresh, found)})
        return torch.stack([self.seen[key] for key in keys])

    @torch.no_grad()
    def _read(self, items: Sequence[Encoded]) -> Tensor:
        ids, mask = pad_rows([(*item.prompt_ids, *item.completions[0]) for item in items], 0)
        device = next(self.model.parameters()).device
        out = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        hidden: Tensor = out.hidden_states[-1].float().cpu()
        starts = torch.tensor([len(item.prompt_ids) for item in items])
        kept: Tensor = (mask * (torch.arange(ids.shape[1])[None] >= starts[:, None]))[..., None].float()
        return (hidden * kept).sum(1) / kept.sum(1).clamp_min(1)
