"""One model of the zoo: its scores in each layout and after saving and loading, and what a sampler says of its draws, against
plain passes of one sequence."""

import copy
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiref.errors import MultirefWarning
from multiref.models import Encoded, Generation, draw, load, score_tokens, word_tokenizer
from multiref.models.audit import audit_layout
from multiref.models.batching import LAYOUTS
from multiref.models.draws import ROUNDING
from multiref.models.sampling import _lost
from tests.zoo.build import VOCABULARY, build

TOLERANCE = 2e-3  # a token, of float32 scores against float64 ones


@dataclass(frozen=True)
class Finding:
    """What became of one model type.

    built: no error, or the error's text. causal, independent: whether plain passes show that a later token leaves earlier
        ones alone, and that what is beside a row leaves it alone. noisy: whether two seeds give two answers.
    layout: what the audit chose, or the refusal's text. errors: layout → largest error of a token, of the one that was chosen
        and those below it; "loaded" after saving and loading, "drawn" of groups that a sampler drew. loaded: the error's text
        where that failed. drawn: "cache", "whole rows" where the model's cache is given up, or the error's text.
    """

    kind: str
    name: str
    built: str = ""
    causal: bool = False
    independent: bool = False
    noisy: bool = False
    layout: str = ""
    errors: dict[str, float] | None = None
    loaded: str = ""
    drawn: str = ""

    @property
    def wrong(self) -> list[str]:
        limits = {"drawn": ROUNDING[0]}  # what a sampler refuses
        return [layout for layout, error in (self.errors or {}).items() if not error < limits.get(layout, TOLERANCE)]


def rows() -> list[Encoded]:
    """Prompts with two and three completions, longer than the windows of the zoo, of lengths from 2 to 44."""
    draw = torch.Generator().manual_seed(7)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=draw).tolist())

    shapes = ((21, (6, 11)), (4, (2, 3, 5)), (30, (14, 1)), (12, (9,)))
    return [Encoded(ids(prompt), tuple(map(ids, lengths)), (False,) * len(lengths)) for prompt, lengths in shapes]


def measure(kind: str, name: str) -> Finding:
    try:
        model = build(kind)
        exact = plainly(model, rows())
    except Exception as error:  # a type that needs a package, a picture, another model, …: the table says which
        return Finding(kind, name, built=f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")
    causal, independent, noisy = is_causal(model), is_independent(model), is_noisy(model)
    errors: dict[str, float] = {}
    layout, loaded = "", ""
    try:
        layout = audit_layout(model, rows()).layout
        errors["chosen"] = apart(score_tokens(model, rows()), exact)
        for slower in LAYOUTS[LAYOUTS.index(layout) :]:
            errors[slower] = apart(score_tokens(model, rows(), layout=slower), exact)
    except Exception as error:  # a refusal, or what the model's own code says
        layout = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error", MultirefWarning)
        try:
            errors["loaded"] = apart(score_tokens(saved_and_loaded(model, Path(folder)), rows(), layout="alone"), exact)
        except Exception as error:
            loaded = f"{type(error).__name__}: {' '.join(str(error).split())[:300].replace(folder, 'the folder')}"
    try:
        errors["drawn"] = apart(*draws(model))
        drawn = "whole rows" if model in _lost else "cache"
    except Exception as error:
        drawn = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return Finding(kind, name, "", causal, independent, noisy, layout, errors, loaded, drawn)


def draws(model: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities of the tokens of three draws a prompt, as the sampler says, and by plain passes."""
    prompts = [item.prompt_ids for item in rows()]
    found = draw(model, prompts, Generation(14), group=3, ends=(), generator=torch.Generator().manual_seed(3))
    read = [Encoded(prompts[place // 3], (ids,), (False,)) for place, (ids, _) in enumerate(found)]
    return [torch.tensor(said) for _, said in found], plainly(model, read)


def saved_and_loaded(model: Any, folder: Path) -> Any:
    model.save_pretrained(folder)
    word_tokenizer([f"w{k}" for k in range(VOCABULARY - 1)], context=128).save_pretrained(folder)
    loaded = load(folder, device="cpu").model
    if hasattr(loaded, "set_experts_implementation"):
        loaded.set_experts_implementation("eager")
    return loaded


def plainly(model: Any, encoded: Sequence[Encoded]) -> list[Tensor]:
    """log π(y_t | x, y_<t) of each completion, one sequence a pass, in float64 (float32 where its code knows no other)."""
    wide = doubled(model)
    found = []
    for item in encoded:
        for index, completion in enumerate(item.completions):
            context = item.context(index)
            logits = run(wide, torch.tensor([[*context, *completion]]))[0]
            logps = logits[len(context) - 1 : -1].double().log_softmax(-1)
            found.append(logps[range(len(completion)), list(completion)])
    return found


def doubled(model: Any) -> Any:
    wide = copy.deepcopy(model).double()
    try:
        run(wide, torch.tensor([[3, 4, 5]]))
    except RuntimeError:
        return model
    return wide


@torch.no_grad()
def run(model: Any, ids: Tensor, **more: Any) -> Tensor:
    return model(input_ids=ids, use_cache=False, **more).logits


def is_causal(model: Any) -> bool:
    """Whether the logits of the first 20 tokens are the same whatever comes later."""
    wide, first = doubled(model), torch.randint(3, VOCABULARY, (1, 36), generator=torch.Generator().manual_seed(1))
    other = first.clone()
    other[:, 20:] = 3 + (other[:, 20:] + 11) % (VOCABULARY - 3)
    return bool((run(wide, first)[:, :20] - run(wide, other)[:, :20]).abs().max() < 1e-4)


def is_noisy(model: Any) -> bool:
    """Whether the same row has two answers in evaluation mode."""
    answers = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        answers.append(run(model, torch.tensor([rows()[0].prompt_ids])))
    return not torch.equal(*answers)


def is_independent(model: Any) -> bool:
    """Whether plain passes, padded on the right with a mask, give each row what it has alone."""
    wide, draw = doubled(model), torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (3, 40), generator=draw)
    mask = torch.ones_like(ids)
    for row, length in enumerate((40, 23, 9)):
        mask[row, length:], ids[row, length:] = 0, 0
    try:
        together = run(wide, ids, attention_mask=mask)
        alone = [run(wide, ids[row : row + 1, :length]) for row, length in enumerate((40, 23, 9))]
    except Exception:  # no mask, no padding, …
        return False
    return all(bool((together[row, : each.shape[1]] - each[0]).abs().max() < 1e-4) for row, each in enumerate(alone))


def apart(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    return max(float((a.double() - b).abs().max()) for a, b in zip(found, exact, strict=True))
