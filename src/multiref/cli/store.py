"""`multiref store`: look after a store of scores: ls, verify, prune, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from multiref.errors import ArgumentError

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after a store of scores: ls, verify, prune, export.")

Folder = Annotated[Path, typer.Argument(help="The folder given to `multiref score --store`.", show_default=False)]


@app.command()
def ls(folder: Folder) -> dict[str, Any]:
    """What is stored: references, the names they were used under, completions, shards, bytes.

    Example: multiref store ls scores/
    """
    from multiref.references.identity import SCORING_VERSION
    from multiref.references.store import Store
    from multiref.report import Table, print_table

    store = Store(folder, create=False)
    held = store.manifest()
    found, outdated = list[dict[str, Any]](), dict[str, int]()
    for address, note in store.references().items():
        mine = [entry for name, entry in held.items() if name.startswith(f"{address}/")]
        rows, size = sum(entry["rows"] for entry in mine), sum(entry["bytes"] for entry in mine)
        if note["identity"].get("scoring_version", SCORING_VERSION) != SCORING_VERSION:
            outdated[address[:8]] = rows
        names, places = (", ".join(dict.fromkeys(seen[what] for seen in note["seen"])) or "?" for what in ("name", "location"))
        values = (names, address[:8], rows, len(mine), round(size / 1e6, 1), places)
        found.append(dict(zip(("name", "address", "completions", "shards", "MB", "from"), values)))
    lines = [[f"{value:,}" if isinstance(value, int | float) else value for value in each.values()] for each in found]
    print_table(Table(["reference", "address", "completions", "shards", "MB", "scored from"], lines, str(folder)))
    if outdated:
        typer.echo(
            f"{sum(outdated.values()):,} of these completions ({', '.join(outdated)}) were scored by another version of the "
            "scoring and are not used; `multiref store prune` with --reference ADDRESS removes them."
        )
    return {"references": found, "outdated": outdated}


@app.command()
def verify(folder: Folder) -> dict[str, Any]:
    """Read every shard and compare its checksum; name what is damaged or gone. Exit code 1 if anything is.

    Example: multiref store verify scores/
    """
    from multiref.references.store import Store

    store = Store(folder, create=False)
    damage = store.verify()
    for damaged in damage:
        typer.echo(damaged.what)
    bad = {
        f"{each.path.parent.name}/{each.path.name}" for each in damage if each.path.suffix == ".parquet" and each.path.exists()
    }
    shards = store.manifest().keys() | bad
    sound = len(shards) - len(bad)
    typer.echo(f"{sound:,} of {len(shards):,} shards are sound." if damage else f"All {sound:,} shards are sound.")
    return {"sound": sound, "shards": len(shards), "damaged": [each.what for each in damage], "exit": int(bool(damage))}


@app.command()
def prune(
    folder: Folder,
    reference: Annotated[
        list[str] | None, "Also all scores of this reference: its name, or how its address begins. Repeatable."
    ] = None,
    yes: Annotated[bool, "--yes", "Remove. Without it, only say what would go."] = False,
) -> dict[str, Any]:
    """Remove leftovers of killed runs, damaged shards, and references that are no longer wanted.

    Example: multiref store prune scores/ --reference old-base --yes
    """
    from multiref.references.store import Store
    from multiref.references.store.prune import prunable, remove

    store = Store(folder, create=False)
    files = prunable(store, references=reference or [])
    size = sum(path.lstat().st_size for path in files)
    for path, why in files.items():
        typer.echo(f"{path} ({why})")
    if not files:
        typer.echo("Nothing to remove.")
    elif yes:
        remove(store, list(files))
        typer.echo(f"Removed {len(files):,} files, {size / 1e6:.1f} MB.")
    else:
        typer.echo(f"{len(files):,} files, {size / 1e6:.1f} MB, would be removed. Add --yes to remove them.")
    return {"files": {str(path): why for path, why in files.items()}, "bytes": size, "removed": yes and bool(files)}


@app.command()
def export(
    folder: Folder,
    output: Annotated[
        str, typer.Argument(help="The Parquet file to write; with --partitions a folder, or its URL.", show_default=False)
    ],
    data: Annotated[str | None, "Pairs, as for score: write one row per pair, with its text and its scores."] = None,
    reference: Annotated[list[str] | None, "Only this reference (name, or beginning of its address). Repeatable."] = None,
    partitions: Annotated[int | None, "Write a folder: NUMBER files for each reference, by the beginning of the key."] = None,
) -> dict[str, Any]:
    """Write scores to one Parquet file with plain columns: one row per completion and reference, or
    (with --data) one row per pair.

    Example: multiref store export scores/ scores.parquet --data pairs.jsonl
    """
    from multiref.references.store import Store
    from multiref.references.store.export import export as export_scores
    from multiref.references.store.export import export_pairs, export_partitions

    store = Store(folder, create=False)
    if partitions is not None:
        if data is not None:
            raise ArgumentError("--partitions writes scores by completion, and --data by pair; give one of them.")
        count = export_partitions(store, output, partitions=partitions, references=reference or [])
    elif data is None:
        count = export_scores(store, output, references=reference or [])
    else:
        from multiref.data import read_pairs

        count = export_pairs(store, output, read_pairs(data), references=reference or [])
    typer.echo(f"Wrote {count:,} rows to {output}.")
    return {"rows": count, "output": str(output)}
