"""What can be wrong with a row of corrections: a list of functions, each from a draft to its problem. Files nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date

from transformers import PreTrainedTokenizerBase

from nse.errors import TokenError
from nse.tokens import tokenize_template

Problem = tuple[str, str]
"""(field, what is wrong: what to do)."""


@dataclass(frozen=True, slots=True)
class Draft:
    """The cells of a row on their way to become a correction."""

    subject: str
    relation: str
    prompt_template: str
    target_new: str
    target_true: str = ""
    source: str = ""
    submitter: str = ""
    reason: str = ""
    effective_date: str = ""
    supersedes: str = ""

    def templated(self) -> "Draft":
        """The same with a complete prompt turned into a template, if it has no `{}` and the subject is in it."""
        if "{}" in self.prompt_template or not self.subject or self.subject not in self.prompt_template:
            return self
        return replace(self, prompt_template=self.prompt_template.replace(self.subject, "{}", 1))


Check = Callable[[Draft], Problem | None]


def encoding(draft: Draft) -> Problem | None:
    """Bytes that are not UTF-8, half surrogate pairs, NUL."""
    for field in Draft.__dataclass_fields__:
        text = str(getattr(draft, field))
        broken = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
        if broken is not None and "\udc80" <= broken <= "\udcff":
            return field, f"holds the byte 0x{ord(broken) - 0xDC00:02x}, which is not UTF-8: save the file as UTF-8"
        if broken is not None:
            return field, "holds half of a surrogate pair: correct the character"
        if "\0" in text:
            return field, "holds a NUL character: remove it"
    return None


def subject(draft: Draft) -> Problem | None:
    """A subject that is not there."""
    return None if draft.subject else ("subject", "is empty: name the entity that the fact is about")


def target(draft: Draft) -> Problem | None:
    """A target that is not there, or is what the old one was."""
    if not draft.target_new:
        return "target_new", "is empty: give the object that the model shall answer"
    if draft.target_new == draft.target_true:
        return "target_new", f"equals the old object {draft.target_true!r}: there is nothing to change"
    return None


def template(draft: Draft) -> Problem | None:
    """A template that does not have exactly one place for the subject."""
    holes = draft.prompt_template.count("{}")
    if not draft.prompt_template:
        return "prompt_template", "is empty: write the statement up to its object, with {} where the subject stands"
    if holes == 0 and draft.subject:
        wrong = f"has no {{}} and does not contain the subject {draft.subject!r}"
        return "prompt_template", f"{wrong}: put {{}} where the subject stands"
    return None if holes == 1 else ("prompt_template", f"has {holes} {{}} instead of one: put it once, for the subject")


def effective_date(draft: Draft) -> Problem | None:
    """A date that is none."""
    try:
        if draft.effective_date:
            date.fromisoformat(draft.effective_date)
    except ValueError:
        return "effective_date", f"{draft.effective_date!r} is no date: write it as 2026-11-21"
    return None


def submitter(draft: Draft) -> Problem | None:
    """Nobody who answers for the row."""
    return None if draft.submitter else ("submitter", "is empty: fill the column or give --submitter")


def producible(tokenizer: PreTrainedTokenizerBase) -> Check:
    """The check that the model can read the prompt and say the target."""

    def check(draft: Draft) -> Problem | None:
        try:
            tokenize_template(tokenizer, draft.prompt_template, draft.subject, target=draft.target_new)
        except TokenError as error:
            return "target_new", str(error)
        return None

    return check


ALWAYS: tuple[Check, ...] = (encoding, subject, target, template, effective_date, submitter)


def problems(draft: Draft, tokenizer: PreTrainedTokenizerBase) -> list[Problem]:
    """Every problem of a draft; the tokenizer is asked only about one that is sound otherwise."""
    found = [problem for check in ALWAYS if (problem := check(draft)) is not None]
    unsayable = None if found else producible(tokenizer)(draft)
    return [unsayable] if unsayable is not None else found
