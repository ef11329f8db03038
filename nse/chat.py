"""The chat format: a tokenizer's chat template as a context, and the token that ends an answer in it.

Rendered with `{}` in place of what a person says, up to where the answer begins, a chat template is a context template like any
other (`nse.contexts`). Nobody else renders one.
"""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from nse.errors import TokenError

DAY = "1 January 2024"
"""The date that templates print which print one: a prompt must be the same on every night."""
_CLOCK = f"{{%- macro strftime_now(_format) -%}}{DAY}{{%- endmacro %}}"
"""Stands before a template that asks for the time, and answers in place of the clock."""
_SAID = 'Who\'s "A & B" <c>?'
"""Stands for what is said: a template that quotes, cuts or escapes it shows so."""


def chat_context(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The chat template as a context: one `{}` where a person speaks, and nothing after the header of the answer.

    A BOS at its beginning is left out if the tokenizer sets one itself. Reasoning is switched off where a template can do that:
    the answer shall stand right after the header.

    Returns:
        The context; None if the tokenizer has no chat template, or one that makes no context (`needed_chat_context` says why).
    """
    try:
        return needed_chat_context(tokenizer)
    except TokenError:
        return None


def needed_chat_context(tokenizer: PreTrainedTokenizerBase) -> str:
    """As `chat_context`, where there must be one.

    Raises:
        TokenError: If the tokenizer has no chat template, it fails, changes what a person says, or has a `{}` of its own.
    """
    if not tokenizer.chat_template:
        raise TokenError("the tokenizer has no chat template: use an instruct model, or ask in prose alone")
    text = _rendered(tokenizer, [("user", _SAID)], add_generation_prompt=True)
    before, *after = text.split(_SAID)
    if len(after) != 1 or "{}" in before or "{}" in after[0]:
        raise TokenError(
            "the tokenizer's chat template makes no context: it must repeat what the user says once, as it is, and have no '{}'"
        )
    bos = tokenizer.bos_token
    if bos and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]:
        before = before.removeprefix(str(bos))
    return f"{before}{{}}{after[0]}"


def in_chat(context: str, text: str) -> str:
    """What the model reads when a person says `text`; `context` is a `chat_context`."""
    return context.replace("{}", text.strip())


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template puts after an answer, as `<|im_end|>`; None if there is none."""
    if not tokenizer.chat_template:
        return None
    try:
        text = _rendered(tokenizer, [("user", "a"), ("assistant", _SAID)], add_generation_prompt=False)
    except TokenError:
        return None
    _, answer, after = text.rpartition(_SAID)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if answer else []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return int(ids[0]) if ids and ids[0] in special else None


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]], **options: Any) -> str:
    """The text of a conversation of (role, text) turns."""
    try:
        template = tokenizer.get_chat_template()
        return str(
            tokenizer.apply_chat_template(
                [{"role": role, "content": text} for role, text in turns],
                chat_template=_CLOCK + template if "strftime_now" in template else template,
                tokenize=False,
                enable_thinking=False,
                date_string=DAY,
                **options,
            )
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise TokenError(f"the tokenizer's chat template fails ({error}): mend it, or ask in prose alone") from error
