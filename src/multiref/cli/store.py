"""`multiref store`: look after a store of scores."""

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look after a store of scores.")


@app.command()
def ls(folder: str) -> None:
    """List."""
    from multiref.errors import StoreError

    raise StoreError("not yet")


@app.command()
def verify(folder: str) -> None:
    """Verify."""
