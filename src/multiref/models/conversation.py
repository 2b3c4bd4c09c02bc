"""Conversations as text: what a chat template writes for a prompt, and what it adds for an answer."""

from collections.abc import Sequence
from typing import Any

from multiref.errors import ModelError
from multiref.models.spec import Tokenisation

Messages = tuple[dict[str, str], ...]


def write_conversation(
    tokenizer: Any, prompt: Messages, completions: Sequence[Any], tokenisation: Tokenisation
) -> tuple[str, tuple[str, ...]]:
    """What the template writes for the prompt, up to where the model is to answer; and what it adds for each completion.

    An answer begins after the template's generation prompt (a last message of the assistant is resumed instead), and ends with
    the template's own end of turn; without `tokenisation.end`, with the last message's content.

    Errors: ModelError without a template; where it refuses; where it rewrites the prompt once there is an answer, so that
        nothing can be
    split off.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "The data are conversations, and this tokenizer has no chat template. Set tokenizer.chat_template (a file "
            "chat_template.jinja in the model folder), or give prompt and completions as strings."
        )
    resumed = bool(prompt) and prompt[-1]["role"] == "assistant"
    options = dict(tokenisation.chat_template_kwargs)
    opened = {"add_generation_prompt": not resumed, "continue_final_message": resumed}
    before = _write(tokenizer, prompt, **options, **opened) if prompt else ""
    joints = (_write(tokenizer, _merged(prompt, completion), **options) for completion in completions)
    answers = (_answer(before, joint, completion, tokenisation.end) for joint, completion in zip(joints, completions))
    return before, tuple(answers)


def _answer(before: str, joint: str, completion: Messages, end: bool) -> str:
    if not joint.startswith(before):
        raise ModelError(
            "This chat template writes the prompt differently once an answer follows, so that the answer cannot be split off: "
            "alone "
            f"it ends in {before[-40:]!r}. Use a template that keeps what it has written, or give strings."
        )
    rest = joint[len(before) :]
    content = completion[-1]["content"].strip()
    if end or content not in rest:
        return rest
    return rest[: rest.rindex(content) + len(content)]


def _merged(prompt: Messages, completion: Messages) -> Messages:
    """Prompt and completion as one conversation; an answer that the prompt has begun is one message with its rest."""
    if prompt and completion and prompt[-1]["role"] == completion[0]["role"] == "assistant":
        whole = {"role": "assistant", "content": prompt[-1]["content"] + completion[0]["content"]}
        return (*prompt[:-1], whole, *completion[1:])
    return prompt + completion


def _write(tokenizer: Any, messages: Messages, **options: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except Exception as error:  # a template is somebody else's program: jinja's errors, TypeError, …
        raise ModelError(f"The chat template refuses this conversation: {error}") from error
