"""A finished run's model and card on a hub."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator

from multiref.errors import ArgumentError, ConfigError, OutputError
from multiref.references.bounded_http import hide, read_key
from multiref.runs.strict import KeyPlace, Strict


def _check_name(repo: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo, re.ASCII):
        raise ValueError(f"expected owner/name, found {repo!r}.")
    return repo


class HubSetting(Strict):
    """Where model and card go once the run is finished.

    repo: owner/name; made where it is not there. private: of one that is made.
    token: where it is, env:NAME or file:PATH; else HF_TOKEN, or the file that `hf auth login` wrote. It is never stored.
    endpoint: of another hub than the one that HF_ENDPOINT names.
    """

    SHORT: ClassVar = "repo"

    repo: Annotated[str, AfterValidator(_check_name)]
    private: bool = True
    token: KeyPlace | None = None
    endpoint: str | None = None

    def key(self) -> str | None:
        """The token. ConfigError where it is not in the place that is named."""
        try:
            return read_key(self.token)
        except ArgumentError as error:
            raise ConfigError(f"push_to_hub.token: {str(error).removeprefix('api_key: ')}") from None

    def push(self, model: Path, title: str) -> dict[str, Any]:
        """Upload a model's folder; returns what to remember of it. OutputError where it does not come through."""
        from huggingface_hub import HfApi, get_token

        token = self.key() or get_token()
        hub = HfApi(endpoint=self.endpoint, token=token)
        try:
            hub.create_repo(self.repo, private=self.private, exist_ok=True)
            done = hub.upload_folder(repo_id=self.repo, folder_path=model, commit_message=title)
        except Exception as error:  # of the hub's library, its transport or the disk
            said = str(error).strip().splitlines() or [type(error).__name__]
            why = said[0] if token is None else hide(said[0], token)
            raise OutputError(
                f"push_to_hub: {self.repo} was not written: {why}. The model is whole in {model}; run again to push it."
            ) from None
        return {"repo": self.repo, "endpoint": self.endpoint, "commit": str(done.oid), "url": str(done.commit_url)}
