"""`multiref serve`: answer any OpenAI client: the references' pool token by token, or draws of the optimum."""

import importlib.util
from typing import Annotated, Any

import typer

from multiref._progress import rest
from multiref.cli.decode import drawing, pooled
from multiref.cli.options import belong
from multiref.cli.voice import Made
from multiref.errors import ArgumentError


def command(
    pool: Annotated[Any, Made(pooled)],
    drawn: Annotated[Any, Made(drawing)],
    method: Annotated[str, "token: the per-token pool. smc, importance, rejection: draws of the optimum."] = "token",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    name: Annotated[str, "What the model is called in requests."] = "multiref",
    host: Annotated[str, "Address to listen at; 0.0.0.0 lets other machines ask."] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None, "Where the bearer token is that clients must send: env:NAME or file:PATH. Never the token."
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests answered at a time; others get 429.")] = 4,
) -> None:
    """Serve the references' pool to any OpenAI client: /v1/completions, /v1/chat/completions, /v1/models, /health. Listens on
    this machine alone unless asked; SIGINT and SIGTERM end it.

    Example: multiref serve -r a=./a -r b=./b --weight a=0.3 --weight b=0.7 --port 8000
    """
    from multiref.references.bounded_http import read_key
    from multiref.references.identity import say_of_templates

    if missing := [package for package in ("starlette", "uvicorn") if importlib.util.find_spec(package) is None]:
        raise ArgumentError(f"serve needs {' and '.join(missing)}, not installed. Install: pip install 'multiref[serve]'.")
    from multiref.serving import Optimum, Served, TokenPool, serve

    key, (refs, rule), (rewarding, beta, options) = read_key(api_key), pool, drawn
    own = {"proposal": options.get("proposal"), "particles": options.get("n"), "islands": options.get("islands")}
    belong("a --method of the optimum", method != "token", reward=rewarding, **own)
    served: Served = TokenPool(refs, rule, most=max_new_tokens)
    if method != "token":
        served = Optimum(refs, rule, rewarding and rewarding({}), beta, most=max_new_tokens, method=method, **options)
    if differing := say_of_templates({name: getattr(refs.open(name), "tokenizer", None) for name in refs.names}, [()]):
        typer.echo(f"Note: {differing} Here the first reference's template writes the prompt.", err=True)

    def listening(line: str) -> None:
        rest()
        print(line, flush=True)

    serve(served, host=host, port=port, name=name, key=key, concurrency=concurrency, say=listening)
