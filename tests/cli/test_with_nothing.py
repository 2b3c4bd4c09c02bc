"""Clean behaviour where there is little: no home, a locale without letters, no colour, nobody who reads; Windows' line ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from multiref.data import read_pairs
from multiref.data.gsm8k import read_gsm8k
from multiref.runs import read_run
from multiref.runs.prompts import Prompts
from multiref.training.iterative.oracles import read_labels
from multiref.training.online.rewards import lexicon_reward

PROBLEM = '{"reward": [0, 1], "references": {"[red]Grün\\u0007": [0.7, 0.3], "math": [0.2, 0.8]}, "beta": 1.0}'
BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C", "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1", "FORCE_COLOR": "1"}  # fmt: skip


def ask(*arguments: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "multiref.cli", *arguments]
    return subprocess.run(command, env=BARE, timeout=120, stderr=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload]


def test_no_home_no_letters_no_colour() -> None:
    """A verb that prints β, π and a user's name; and its help."""
    done = ask("solve", "-", input=PROBLEM.encode(), stdout=subprocess.PIPE)
    assert done.returncode == 0 and not re.sub(rb"solve: .* so far\n", b"", done.stderr)  # of a machine that is busy
    for shown in (done.stdout, ask("solve", "--help", stdout=subprocess.PIPE).stdout):
        assert (shown.isascii() and b"\x1b[3" not in shown and b"\x07" not in shown and b"\\u03b2" in shown) or b"beta" in shown
    assert b"[red]Gr\\xfcn" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = ask("--help", stdout=full)
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_who_stops_reading_ends_it_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = ask("--help", stdout=write)
    os.close(write)
    assert done.returncode == 1 and done.stderr == b""


def test_windows_line_ends_change_nothing(tmp_path: Path) -> None:
    """Every text file that a person may write, as Unix and as Windows save it (with a byte order mark, too)."""
    pair = json.dumps({"prompt": "a\r\nb", "chosen": "c", "rejected": "d"})
    run = "model: m\nreferences: [{name: a, model: b}]\nbeta: 0.1\ndata: p\ntitle: |\n  one\n  two\noutput: o\n"
    readers = {
        ("p.jsonl", f"{pair}\n\n{pair}\n"): read_pairs,
        ("p.json", f"[{pair},\n{pair}]\n"): read_pairs,
        ("p.csv", 'prompt,chosen,rejected\n"a, ""b""",c,d\ne,f,g\n'): read_pairs,
        ("t.txt", "one two\nthree\n\nfour five\n"): lambda path: Prompts(path=str(path), words=1).rows(),
        ("t.jsonl", '{"text": "a b"}\n\n{"text": "c"}\n'): lambda path: Prompts(path=str(path)).rows(),
        ("g.jsonl", '{"question": "q", "answer": "a #### 1"}\n'): read_gsm8k,
        ("l.txt", "good\t1\nbad\t-1\n"): lambda path: lexicon_reward(path)(["", ""], ["good bad good", "bad"]),
        ("l.jsonl", '{"id": "a", "preferred": "first"}\n'): lambda path: read_labels(path, ["a"]),
        ("r.yaml", run): read_run,
    }
    for (name, text), read in readers.items():
        found = []
        for content in (text, text.replace("\n", "\r\n"), "\ufeff" + text.replace("\n", "\r\n")):
            (tmp_path / name).write_bytes(content.encode())
            found.append(read(tmp_path / name))
        assert found[0] == found[1] == found[2] and found[0], name
