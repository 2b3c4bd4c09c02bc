"""`multiref verify`, as a user types it."""

from typer.testing import CliRunner

from multiref.cli import app


def run(*arguments: str):
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_verify_writes_a_ledger_and_goes_on_where_it_stopped(tmp_path):
    first = run("verify", "merge-identity", "bilevel-seven-halves", "--out", str(tmp_path))
    assert first.exit_code == 0
    assert "merge-identity: verified" in first.output and "bilevel-seven-halves: convention-dependent" in first.output
    assert (tmp_path / "claims.md").exists() and (tmp_path / "claims.json").exists()
    second = run("verify", "merge-identity", "regret-identity", "--out", str(tmp_path))
    assert "merge-identity: in the ledger" in second.output and "regret-identity: verified" in second.output
    assert "merge-identity: verified, " in run("verify", "merge-identity", "--again", "--out", str(tmp_path)).output
    assert (tmp_path / "claims.md").read_text().count("\n### ") == 3


def test_verify_lists_and_refuses(tmp_path):
    assert "found" in run("verify", "--list").output
    assert "expected without --list" in run("verify", "--list", "--full").stderr
    refused = run("verify", "no-such-claim", "--out", str(tmp_path))
    assert refused.exit_code == 2 and "no-such-claim" in refused.stderr and not list(tmp_path.iterdir())
