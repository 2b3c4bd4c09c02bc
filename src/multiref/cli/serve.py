"""`multiref serve`: the references' pool, or draws of the optimum, behind OpenAI's completion protocol."""

import importlib.util
from typing import Annotated

import typer

from multiref.cli.decode import make_reward, make_rule
from multiref.cli.options import Device, Dtype, NamedReferences, name_and_path


def command(
    reference: NamedReferences,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", "-w", help="name=NUMBER, of each reference; default equal ones.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="token: the per-token pool. smc, importance, rejection: draws of the optimum.")
    ] = "token",
    reward: Annotated[
        list[str] | None, typer.Option(help="Of the optimum: lexicon=FILE, length=WORDS or model=FOLDER. Repeatable.")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Strength of the regularizer; needed with a reward.")] = None,
    reward_max: Annotated[float | None, typer.Option(help="The largest reward that there is; rejection needs it.")] = None,
    n: Annotated[int, typer.Option("--particles", "-n", min=1, help="Of the optimum: particles of an island.")] = 64,
    islands: Annotated[int, typer.Option(min=1, help="Of the optimum: independent islands.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens that an answer may have.")] = 256,
    name: Annotated[str, typer.Option(help="What the model is called in requests.")] = "multiref",
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(help="The bearer token to ask for: env:NAME or file:PATH of where it is, never itself.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests answered at a time; others get 429.")] = 4,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve the references' pool to any OpenAI client: /v1/completions, /v1/chat/completions, /v1/models, /health. Listens on
    this machine alone unless asked; SIGINT and SIGTERM end it.

    Example: multiref serve -r a=./a -r b=./b --weight a=0.3 --weight b=0.7 --port 8000
    """
    from multiref.errors import ArgumentError
    from multiref.references import References
    from multiref.references.bounded_http import read_key
    from multiref.training.arguments import quiet

    if missing := [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]:
        raise ArgumentError(f"serve needs {' and '.join(missing)}, not installed. Install: pip install 'multiref[serve]'.")
    from multiref.serving import Optimum, Served, TokenPool, serve
    from multiref.serving.served import notices

    quiet()
    key = read_key(api_key)
    named = dict(map(name_and_path, reference))
    rule, refs = make_rule(weight, list(named)), References(named, device=device, dtype=dtype or "auto")
    served: Served = TokenPool(refs, rule, most=max_new_tokens)
    if method != "token":
        function = make_reward(reward)
        options = {"method": method, "n": n, "islands": islands, "reward_max": reward_max}
        served = Optimum(refs, rule, function, beta, most=max_new_tokens, **options)
    elif reward:
        raise ArgumentError("--reward is of the optimum; choose --method smc, importance or rejection.")
    for notice in notices(refs):
        typer.echo(f"Note: {notice}", err=True)
    serve(served, host=host, port=port, name=name, key=key, concurrency=concurrency, say=lambda line: print(line, flush=True))
