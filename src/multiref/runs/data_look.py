"""What a data set of preferences is: its format and its rows, as people and as a model see them."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from multiref.data import Pair, Selection, read
from multiref.data.sources import Source
from multiref.data.text import words
from multiref.models import Tokenisation, encode_many
from multiref.references import content_key
from multiref.report import Answer, Block, Note, Prose, Section, Settings, Table, public

_SHOWN = 3
_BINS = 12


@dataclass
class DataLook:
    """What `look_at_data` found. lengths: part → values, in tokens where a model was named, else in words. rendered: the first
    rows, as the model's tokenizer has them, or as text. shared: prompts that the other data set has, too."""

    source: str
    format: str
    rows: int
    pairs: int
    bad: dict[str, str]
    unit: str
    lengths: dict[str, list[int]]
    rendered: list[dict[str, str]]
    repeated_pairs: int
    repeated_prompts: int
    contradictions: int
    shared: int | None = None
    other: str = ""
    model: str = ""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; of lengths, what describes them."""
        found = {**vars(self), "bad_rows": len(self.bad), "first_bad": list(self.bad.values())[:_SHOWN]}
        del found["bad"]
        return {**found, "lengths": {name: _described(values) for name, values in self.lengths.items() if values}}

    def tables(self) -> list[Table]:
        """Counts, lengths, and how the longer side's lengths are spread."""
        counts = [["rows", f"{self.rows:,}"], ["pairs", f"{self.pairs:,}"], ["bad rows", f"{len(self.bad):,}"],
                  ["repeated pairs", f"{self.repeated_pairs:,}"],
                  ["pairs whose prompt came before", f"{self.repeated_prompts:,}"],
                  ["pairs that contradict another one", f"{self.contradictions:,}"]]  # fmt: skip
        if self.shared is not None:
            counts.append([f"prompts that {self.other} has, too", f"{self.shared:,}"])
        shown = {name: _described(values) for name, values in self.lengths.items() if values}
        lengths = [[name, *(f"{value:,.0f}" for value in each.values())] for name, each in shown.items()]
        tables = [Table(("what", "number"), counts, f"{self.source}: {self.format}")]
        if lengths:
            tables.append(Table((f"{self.unit} of", "least", "median", "mean", "95 %", "most"), lengths, "Lengths"))
            spread = _histogram(self.lengths["prompt + longer side"])
            tables.append(Table((self.unit, "pairs", ""), spread, "Lengths of prompt + longer side"))
        return tables

    def blocks(self) -> list[Block]:
        """For a page."""
        rows = [Section(f"Row {number}", [Settings(row)]) for number, row in enumerate(self.rendered, 1)]
        bad = [Note(*list(self.bad.values())[:20])] if self.bad else []
        found = f"{self.pairs:,} pairs in {self.rows:,} rows ({self.format}); {len(self.bad):,} rows cannot be used."
        return [Answer(found, [*self.tables(), *bad, *map(Prose, self.notes)]), *rows]


def look_at_data(source: Source, selection: Selection, *, model: Any = None, other: Selection | None = None) -> DataLook:
    """Bad rows are counted, not refused.

    Args:
        model: whose tokenizer and chat template show the rows and count tokens; None: text and words.
        other: another selection of the same source (its other split): are its prompts among these?
    """
    notes: list[str] = []
    found = read(source, selection, say=notes.append)
    pairs = found.pairs
    lengths, rendered, unit = _as_text(pairs) if model is None else _as_tokens(pairs, model)
    lengths["prompt + longer side"] = [p + max(c, r) for p, c, r in zip(*lengths.values())]
    seen = Counter(content_key(pair.prompt, "") for pair in pairs)
    whole = [(content_key(pair.prompt, pair.chosen), content_key(pair.prompt, pair.rejected)) for pair in pairs]
    different = set(whole)
    look = DataLook(
        found.source, found.format, found.rows, len(pairs), found.bad, unit, lengths, rendered,
        len(whole) - len(different), len(pairs) - len(seen), sum((b, a) in different for a, b in different),
        model="" if model is None else str(model), notes=[note for note in notes if "cannot be used" not in note],
    )  # fmt: skip
    if other is not None:
        theirs = {content_key(pair.prompt, "") for pair in read(source, other, say=notes.append).pairs}
        look.shared, look.other = sum(key in theirs for key in seen), other.split or "the other part"
    return look


def _as_text(pairs: Sequence[Pair]) -> tuple[dict[str, list[int]], list[dict[str, str]], str]:
    parts = {name: [len(words(getattr(pair, name)).split()) for pair in pairs] for name in ("prompt", "chosen", "rejected")}
    rows = [{name: _flat(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")} for pair in pairs[:_SHOWN]]
    return parts, rows, "words"


def _as_tokens(pairs: Sequence[Pair], model: Any) -> tuple[dict[str, list[int]], list[dict[str, str]], str]:
    from multiref.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    items = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
    ends = Tokenisation(end=tokenizer.eos_token_id is not None)  # a look refuses nothing that training could leave out
    encoded = encode_many(tokenizer, items, ends, origins=[pair.origin for pair in pairs])
    chosen, rejected = ([len(each.completions[number]) for each in encoded] for number in (0, 1))
    parts = {"prompt": [len(each.prompt_ids) for each in encoded], "chosen": chosen, "rejected": rejected}

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    rows = [
        {"prompt": text(each.prompt_ids) + " ⟶ here the completion begins",
         "chosen": text(each.completions[0]), "rejected": text(each.completions[1])}
        for each in encoded[:_SHOWN]
    ]  # fmt: skip
    return parts, rows, "tokens"


def _described(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {"least": ordered[0], "median": statistics.median(ordered), "mean": statistics.fmean(ordered),
            "p95": ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], "most": ordered[-1]}  # fmt: skip


def _histogram(values: Sequence[int]) -> list[list[str]]:
    """Bins of equal width, from the shortest to the longest."""
    width = max(1, -(-(max(values) + 1 - min(values)) // _BINS))
    counts = Counter(value // width for value in values)
    most = max(counts.values())
    return [[f"{k * width:,} to {(k + 1) * width - 1:,}", f"{counts[k]:,}", "█" * round(30 * counts[k] / most)]
            for k in range(min(counts), max(counts) + 1)]  # fmt: skip


def _flat(text: Any) -> str:
    return text if isinstance(text, str) else "\n".join(f"{message['role']}: {words((message,))}" for message in text)


def shown_lines(look: DataLook, width: int = 600) -> list[str]:
    """The first rows for a terminal."""
    lines = []
    for number, row in enumerate(look.rendered, 1):
        lines.append(f"Row {number}" + (f", as {public(look.model)} sees it" if look.model else ""))
        for name, text in row.items():
            cut = text if len(text) <= width else f"{text[: width // 2]} … {text[-width // 2 :]}"
            lines += [f"  {name:<9}{line}" if not k else f"           {line}" for k, line in enumerate(cut.split("\n"))]
        lines.append("")
    return lines
