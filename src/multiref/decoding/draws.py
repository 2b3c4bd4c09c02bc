"""`Draws`: weighted completions of an optimum, what they say of its normaliser, and what can be done with them."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from multiref._files import MIB, read_lines, write_whole
from multiref._json import parse_json
from multiref._sealed import is_sealed, seal
from multiref.data import Pair
from multiref.decoding.request import METHODS, check_whole
from multiref.errors import DataError
from multiref.weighting.particles import effective_size

Ids = tuple[int, ...]
CHOOSING = 15_485_863  # added to a seed
TOO_LARGE = 0.1  # a single share of the sum above which its error cannot be known
_LONGEST = 1024 * MIB  # bytes of a prompt's draws


@dataclass(frozen=True)
class PromptDraws:
    """The draws of one prompt, N of them.

    completions: text, or messages of the assistant; ids with the end token where `ended`.
    log_weights [N]: their logsumexp is log Ẑ; rewards [N] (0 without a reward).
    log_partition: log Ẑ; NaN where Ẑ is not what the method estimates. error: its standard error; NaN where one draw has more
        than a tenth of the sum (`largest_share`), or there is one island.
    log_islands [I]: the independent estimates of log Z whose mean log Ẑ is of; none of rejection.
    ancestors: different first particles that the draws with mass descend from. not_canonical: share of the proposals whose
        token ids are not what their text encodes to; they weigh nothing.
    """

    prompt: Any
    completions: tuple[Any, ...]
    ids: tuple[Ids, ...]
    ended: tuple[bool, ...]
    log_weights: Tensor
    rewards: Tensor
    log_partition: float
    error: float
    largest_share: float
    ancestors: int
    not_canonical: float = 0.0
    log_islands: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def weights(self) -> Tensor:
        """[N], on the simplex."""
        return self.log_weights.double().softmax(-1)

    @property
    def effective_size(self) -> float:
        """(Σ w)²/Σ w²: what resampling cannot raise, unlike that of equal weights after it; see `ancestors`."""
        return float(effective_size(self.log_weights))

    @property
    def cut(self) -> float:
        """Weighted share of completions that had not ended after max_new_tokens."""
        return float(self.weights @ (~torch.tensor(self.ended)).double())

    @property
    def lengths(self) -> Tensor:
        """[N]: tokens of each completion, the end included."""
        return torch.tensor([len(each) for each in self.ids])

    @property
    def median_length(self) -> int:
        """Of the weighted draws: half of the mass has at most so many tokens."""
        order = self.lengths.argsort()
        place = int((self.weights[order].cumsum(-1) < 0.5 - 1e-12).sum())
        return int(self.lengths[order][min(place, len(order) - 1)])


@dataclass(frozen=True)
class Draws(Sequence[PromptDraws]):
    """Draws of every prompt, in order: `draws[0].completions`, `draws[0].weights`.

    approximate: "" where the weighted draws converge to the optimum, else what they are instead.
    tokens: read by all models together. reward_calls: completions that the reward was asked about.
    foretold: what they were to be at most, before the start (rejection takes more, as its trial says), and "seconds" where they
        were estimated.
    """

    prompts: tuple[PromptDraws, ...]
    method: str
    proposal: str
    approximate: str = ""
    tokens: int = 0
    reward_calls: int = 0
    foretold: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, index: Any) -> Any:
        return self.prompts[index]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def log_partition(self) -> Tensor:
        """[B]: log Ẑ, Z = Σ_y P_0(y) e^{r(y)/β}."""
        return torch.tensor([each.log_partition for each in self.prompts], dtype=torch.float64)

    @property
    def error(self) -> Tensor:
        """[B]: its standard error, NaN where it is withheld."""
        return torch.tensor([each.error for each in self.prompts], dtype=torch.float64)

    def pick(self, seed: int = 0) -> list[Any]:
        """One completion of each prompt, drawn by weight."""
        return [each.completions[i] for each, (i,) in zip(self.prompts, self._places(1, seed))]

    def to_sft(self, per_prompt: int = 1, seed: int = 0) -> list[dict[str, Any]]:
        """Rows {"prompt", "completion"} for supervised training, `per_prompt` of each prompt, drawn by weight."""
        places = self._places(per_prompt, seed)
        return [
            {"prompt": each.prompt, "completion": each.completions[i]} for each, row in zip(self.prompts, places) for i in row
        ]

    def to_pairs(self, per_prompt: int = 1, seed: int = 0) -> list[Pair]:
        """Pairs of two draws by weight, the one of higher reward chosen; none where all that was drawn has one reward."""
        pairs = []
        for each, row in zip(self.prompts, self._places(2 * per_prompt, seed)):
            for one, other in zip(row[::2], row[1::2]):
                if each.rewards[one] != each.rewards[other]:
                    best, worst = (one, other) if each.rewards[one] > each.rewards[other] else (other, one)
                    pairs.append(Pair(each.prompt, each.completions[best], each.completions[worst]))
        return pairs

    def save(self, path: str | os.PathLike[str]) -> None:
        """One file of JSON lines: a line about the call, then a line a prompt, each with its sum."""
        rows = [{each.name: _plain(getattr(one, each.name)) for each in fields(one)} for one in self.prompts]
        head = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "prompts"}
        lines = [{"multiref_draws": 2, "count": len(rows), **head}, *rows]
        write_whole(path, "".join(json.dumps(seal(line), ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Draws":
        """What `save` wrote. DataError for anything else, and for a file that was changed or cut since."""
        try:
            said = read_lines(path, "a file that Draws.save wrote", longest=_LONGEST)
            lines = [parse_json(line, f"{path}:{number}", constants=True) for number, line in said]
            if not lines or not all(map(is_sealed, lines)) or lines[0]["count"] != len(lines) - 1:
                raise ValueError("it was changed or cut since, or is of another version")
            head, *rows = ({name: value for name, value in line.items() if name != "sum"} for line in lines)
            if head.pop("multiref_draws") != 2 or head.pop("count") < 0:
                raise ValueError("another version")
            return cls(tuple(map(_prompt_draws, rows)), **head)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: expected a file that Draws.save wrote ({type(error).__name__}: {error}).") from None

    def __str__(self) -> str:
        unbounded = "" if self.proposal in METHODS["importance"] else " (one reference: its weights have no bound)"
        approximate = f", approximate: {self.approximate}" if self.approximate else ""
        lines = [f"Draws by {self.method} from {self.proposal}{unbounded}{approximate}"]
        for each in self.prompts:
            error = "error withheld" if math.isnan(each.error) else f"± {each.error:.3f}"
            lines.append(
                f"  {str(each.prompt)[:40]!r}: log Z {each.log_partition:.3f} {error} (largest share "
                f"{each.largest_share:.1%}), {len(each.ids)} draws, ESS {each.effective_size:.1f}, {each.ancestors} ancestors, "
                f"median length {each.median_length}, {each.cut:.0%} cut"
                + (f", {each.not_canonical:.0%} not canonical" if each.not_canonical else "")
            )
        return "\n".join([*lines, f"  {self.tokens:,} tokens read, {self.reward_calls:,} rewards"])

    def _places(self, count: int, seed: int) -> list[list[int]]:
        count, generator = check_whole("per_prompt", count, 1), chooser(check_whole("seed", seed, 0))
        return [torch.multinomial(each.weights, count, replacement=True, generator=generator).tolist() for each in self.prompts]


def chooser(seed: int) -> torch.Generator:
    """Of whoever chooses among draws, perhaps of the same seed: with their own random numbers a choice would depend on more
    than their weights."""
    return torch.Generator().manual_seed(seed + CHOOSING)


def _plain(value: Any) -> Any:
    """Numbers that JSON has: null for −∞ in a list, and for NaN alone."""
    if isinstance(value, Tensor):
        return [None if x == -math.inf else x for x in value.tolist()]
    return None if isinstance(value, float) and math.isnan(value) else value


def _prompt_draws(line: dict[str, Any]) -> PromptDraws:
    said = [tuple(each) if isinstance(each, list) else each for each in line.pop("completions")]
    prompt = line.pop("prompt")
    weights, rewards, islands = (
        torch.tensor([-math.inf if x is None else x for x in line.pop(name)], dtype=torch.float64)
        for name in ("log_weights", "rewards", "log_islands")
    )
    ids, ended = tuple(tuple(row) for row in line.pop("ids")), tuple(map(bool, line.pop("ended")))
    asked = tuple(prompt) if isinstance(prompt, list) else prompt
    if {len(said), len(ended), len(weights), len(rewards)} != {len(ids)} or not ids:
        raise ValueError("its draws are not equally many of everything")
    line |= {name: math.nan for name in ("log_partition", "error") if line[name] is None}
    return PromptDraws(asked, tuple(said), ids, ended, weights, rewards, log_islands=islands, **line)
