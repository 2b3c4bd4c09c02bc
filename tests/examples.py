"""Runs the examples of the API pages, and fills in what they print: `python -m tests.examples ROOM …`."""

import ast
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "docs" / "examples"
SHOWS = "  # = "


def lines_that_show(source):
    """Statements that are an expression with `# = value` behind: their line, code, and value."""
    rows = source.splitlines()
    for node in ast.parse(source).body:
        line = rows[node.end_lineno - 1]
        if isinstance(node, ast.Expr) and SHOWS in line:
            yield node, line.split(SHOWS)[1]


def shown(value):
    """A value in one line; numbers with six digits, so that another processor's last digit is no difference."""
    return re.sub(r"\d+\.\d{7,}(e-\d+)?", lambda match: f"{float(match[0]):.6g}", " ".join(repr(value).split()))


def run(room, *, fill=False):
    """Every cell in order; a value that is shown is compared with what comes out."""
    path = FOLDER / f"{room}.py"
    source = path.read_text(encoding="utf-8")
    shows = {node.lineno: value for node, value in lines_that_show(source)}
    names, rows = {}, source.splitlines()
    for node in ast.parse(source).body:
        if node.lineno not in shows:
            exec(compile(ast.Module([node], []), path.name, "exec"), names)
            continue
        found = shown(eval(compile(ast.Expression(node.value), path.name, "eval"), names))
        if fill:
            rows[node.end_lineno - 1] = rows[node.end_lineno - 1].split(SHOWS)[0] + SHOWS + found
        else:
            value = " ".join(shows[node.lineno].split())
            assert found == value, f"{path.name}:{node.lineno}: shows {value}, found {found}"
    if fill:
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for room in sys.argv[1:]:
        run(room, fill=True)
