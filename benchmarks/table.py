"""LOG.md's table of ratios, made of `results.jsonl`: the newest line of every case.
`python benchmarks/table.py --write` puts it into LOG.md."""

import argparse
import json
from pathlib import Path

from record import RESULTS

LOG = Path(__file__).parents[1] / "LOG.md"
BEGIN, END = "<!-- benchmarks: made by benchmarks/table.py -->", "<!-- end of benchmarks -->"


def make_table(results: Path = RESULTS) -> str:
    """Markdown: one row a case, in the order in which cases were first measured."""
    newest = {}
    for text in results.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        newest[line["benchmark"], line["case"], line["against"]] = line
    rows = ["| benchmark | case | ratio | to | mark | date |", "|---|---|---|---|---|---|"]
    for (benchmark, case, against), line in newest.items():
        mark = f"{line['mark']}: {'met' if line['met'] else 'missed'}" if line["mark"] else "–"
        mark = mark.replace("at least", "≥").replace("at most", "≤")
        case = case.replace(", cpu", "").replace(", processor time", ", proc.").removeprefix("a step of ")
        rows.append(f"| `{benchmark}` | {case} | {line['ratio']:.2f} | {against} | {mark} | {line['date']} |")
    machines = dict.fromkeys(
        f"{line['machine']['processor']}, {line['machine']['cores']} cores"
        + (f", {line['machine']['gpu']}" if line["machine"]["gpu"] else "")
        + f"; torch {line['versions']['torch']}, transformers {line['versions'].get('transformers', '–')}"
        for line in newest.values()
    )
    return "\n".join([*rows, "", "proc.: by processor time.", *(f"Measured on: {name}." for name in machines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into LOG.md, between its two marks")
    if not parser.parse_args().write:
        print(make_table())
        return
    before, rest = LOG.read_text(encoding="utf-8").split(BEGIN)
    LOG.write_text(f"{before}{BEGIN}\n{make_table()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
