"""`multiref stability`: replace or leave out one example, train again, and see how far each RLHF variant moves."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    out: Annotated[Path, "--out --output -o", "Folder for the records, the page and the figures."] = Path("stability"),
    world: Annotated[
        list[str] | None,
        "--world -w",
        "linear, features (needs --model, --reference and --prompts) or transformer; default all that can be. Repeatable.",
    ] = None,
    model: Annotated[str | None, "A model folder: the first reference, whose frozen hidden states are the features."] = None,
    reference: Annotated[str | None, "A second model folder: the second reference."] = None,
    prompts: Annotated[Path | None, "Texts for the prompts: .jsonl with `prompt` or `text` a line, or .txt."] = None,
    seeds: Annotated[int | None, "Independent data sets of each cell; by default 20 (transformer: 8)."] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Where the random numbers begin.")] = 0,
    quick: Annotated[bool, "--quick", "Two points an axis and few seeds: a look, in about a minute."] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
) -> dict[str, str]:
    """Measure stability by retraining: how far DPO, and a reward model with its Gibbs optimum, PPO or RLOO,
    move when one pair is exchanged.

    The page shows this along data, features, label noise and nonlinearity, under one and two references, beside what influence
    functions predict. A finished cell is kept: the same command goes on where it was interrupted. The default takes minutes.

    Example: multiref stability --out runs/stability --model models/a --reference models/b --prompts stories.jsonl
    """
    from multiref.errors import ArgumentError
    from multiref_lab import stability
    from multiref_lab.cli.narrator import Narrator
    from multiref_lab.stability.page import entries, table

    named = {"--model": model, "--reference": reference, "--prompts": prompts}
    given = ", ".join(name for name, value in named.items() if value is not None)
    worlds = world or (["linear", "features", "transformer"] if given else ["linear", "transformer"])
    chosen = stability.axes(worlds, quick=quick, seeds=seeds, seed=seed)
    measuring = stability.Measuring()
    narrator = Narrator()
    if given and "features" not in worlds:
        raise ArgumentError(f"{given}: expected with --world features only; add it, or leave {given} out")
    if "features" in worlds:
        if model is None or reference is None or prompts is None:
            missing = ", ".join(name for name, value in named.items() if value is None)
            raise ArgumentError(
                f"world features: found no {missing}; expected two model folders and a file of texts, or --world linear"
            )
        narrator.phase("Completions, hidden states and log-probabilities of the two models.")
        needs = stability.prompts_needed([axis for axis in chosen if axis.world == "features"])
        measuring = stability.Measuring(*stability.kept_given(out, model, reference, prompts, needs, seed=seed))
    records = stability.experiment(out, chosen, measuring).run(narrator, workers=workers)
    narrator.phase("Writing the page and the figures.")
    asked = [*(("--world", each) for each in worlds), *named.items(), ("--seeds", seeds), ("--seed", seed)]
    words = ["multiref stability", *(f"{name} {value}" for name, value in asked if value is not None)]
    page = stability.write(chosen, records, out, command=" ".join([*words, *(["--quick"] if quick else [])]))
    for axis in chosen:
        narrator.table(table(axis, list(entries(axis, records))))
    return narrator.end(out, page)
