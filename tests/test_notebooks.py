"""The notebooks print what they show: every code cell is run, in order, and compared with the output that is stored.

`NOTEBOOKS=write` stores what they print now."""

import contextlib
import io
import json
import os
from pathlib import Path

import pytest

import multiref as mr

FOLDER = Path(__file__).parent.parent / "notebooks"
LIGHT = {"exact.ipynb"}  # no model is loaded


def printed(code: str, names: dict[str, object]) -> str:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        exec(compile(code, "cell", "exec"), names)
    return stream.getvalue()


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=[] if p.name in LIGHT else pytest.mark.slow) for p in sorted(FOLDER.glob("*.ipynb"))],
)
@pytest.mark.filterwarnings("ignore")
def test_every_cell_prints_what_is_stored(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(page.read_text(encoding="utf-8"))
    names = {"mr": mr}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            found = printed("".join(cell["source"]), names)
            if os.environ.get("NOTEBOOKS") == "write":
                lines = found.splitlines(keepends=True)
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
            assert found == "".join(line for output in cell["outputs"] for line in output["text"])
    if os.environ.get("NOTEBOOKS") == "write":
        page.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
