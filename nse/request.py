"""An edit request: one fact to be written, as data. Reads the formats that the field uses; edits nothing."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse.errors import RequestError


@dataclass(frozen=True, slots=True)
class EditRequest:
    """Write "`prompt_template` with `subject`" -> `target_new` into a model.

    Attributes:
        case_id: Name of the request, unique in its stream.
        subject: The entity, as it stands in the prompt.
        prompt_template: Text with exactly one `{}` where the subject goes; the target follows its end.
        target_new: The object to be learned, without a leading space.
        target_true: The object believed so far, if known.
        relation: Name of the relation, if known.
        paraphrase_prompts: Other wordings (complete texts), for evaluation only.
        neighborhood_prompts: Prompts about other subjects whose answer must stay, for evaluation only.
        generation_prompts: Prompts for free generation, for evaluation only.
        neighborhood_answers: The right answer of each neighbourhood prompt, where it is not `target_true`.
    """

    case_id: str
    subject: str
    prompt_template: str
    target_new: str
    target_true: str | None = None
    relation: str | None = None
    paraphrase_prompts: tuple[str, ...] = ()
    neighborhood_prompts: tuple[str, ...] = ()
    generation_prompts: tuple[str, ...] = ()
    neighborhood_answers: tuple[str, ...] = ()

    @property
    def neighbours(self) -> tuple[tuple[str, str], ...]:
        """The neighbourhood prompts with their answers; none where the answer is not known."""
        if self.neighborhood_answers:
            return tuple(zip(self.neighborhood_prompts, self.neighborhood_answers, strict=True))
        return tuple((p, self.target_true) for p in self.neighborhood_prompts) if self.target_true is not None else ()

    @property
    def prompt(self) -> str:
        """The prompt with its subject in place."""
        return self.prompt_template.replace("{}", self.subject)

    def problems(self) -> list[tuple[str, str]]:
        """Lists (field, what is wrong and what to do); empty when the request is well formed."""
        found = []
        if not self.subject.strip():
            found.append(("subject", "is empty: name the entity that the fact is about"))
        if not self.target_new.strip():
            found.append(("target_new", "is empty: give the object that the model shall answer"))
        holes = self.prompt_template.count("{}")
        if holes != 1:
            found.append(
                ("prompt_template", f"has {holes} '{{}}' instead of one: put '{{}}' exactly where the subject stands")
            )
        if self.target_true is not None and self.target_true.strip() == self.target_new.strip():
            found.append(("target_new", f"equals the old object {self.target_true!r}: there is nothing to change"))
        if len(self.neighborhood_answers) not in (0, len(self.neighborhood_prompts)):
            found.append(
                ("neighborhood_answers", "are not as many as the prompts: give one answer per prompt, or none")
            )
        return found

    def checked(self) -> "EditRequest":
        """Returns itself.

        Raises:
            RequestError: If `problems()` finds any; the message names the case and the first field.
        """
        if problems := self.problems():
            field, reason = problems[0]
            raise RequestError(f"request {self.case_id}: {field} {reason}")
        return self


def read_requests(path: Path) -> list[EditRequest]:
    """Reads CounterFact or zsRE (MEND layout) JSON, our own JSONL, or CSV, by content.

    Raises:
        RequestError: If the file is missing, is not UTF-8, is in no known layout, or a record is malformed.
    """
    rows = read_records(path)
    requests = [request_of(row, case_id=str(i), where=f"{path} record {i}").checked() for i, row in enumerate(rows)]
    names = [r.case_id for r in requests]
    if doubled := next((n for n in names if names.count(n) > 1), None) if len(set(names)) < len(names) else None:
        raise RequestError(f"{path} has case_id {doubled!r} more than once: give each record its own")
    return requests


def read_records(path: Path) -> list[Any]:
    """The records of a file, as they stand there: `request_of` makes a request of one.

    Raises:
        RequestError: If the file is missing, is not UTF-8, or is no table and no list.
    """
    text = read_text(path)
    if path.suffix == ".csv":
        return _table(text, path)
    if path.suffix == ".jsonl":
        # not splitlines(): JSON strings may hold U+2028 and other characters that it takes for line ends
        return [_parsed(line, f"{path} line {i}") for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise RequestError(f"{path} holds a JSON {type(rows).__name__}: a list of records is needed")
    return rows


def read_text(path: Path) -> str:
    """Reads a UTF-8 file.

    Raises:
        RequestError: If it cannot be opened or is not UTF-8 (the message names the first bad byte).
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RequestError(f"{path} is not UTF-8 (line {line}, byte {error.start}): save it as UTF-8") from error


def request_of(row: Any, *, case_id: str, where: str) -> EditRequest:
    """Builds a request from one record in any known layout; `case_id` is used if the record has none.

    Raises:
        RequestError: If the record is in no known layout or misses a field; `where` names it.
    """
    if not isinstance(row, Mapping):
        raise RequestError(f"{where} is not an object: each record needs named fields")
    try:
        if "requested_rewrite" in row:
            return _counterfact(row, case_id)
        if "src" in row and "answers" in row:
            return _zsre(row, case_id)
        return _plain(row, case_id)
    except KeyError as error:
        raise RequestError(f"{where} has no field {error.args[0]!r}: add it") from error
    except _WrongTypeError as error:
        raise RequestError(f"{where}: {error}") from error


def _counterfact(row: Mapping[str, Any], case_id: str) -> EditRequest:
    rewrite = row["requested_rewrite"]
    if not isinstance(rewrite, Mapping):
        raise _WrongTypeError(f"requested_rewrite is {rewrite!r}, not an object: give it named fields")
    return EditRequest(
        case_id=str(row.get("case_id", case_id)),
        subject=_text(rewrite["subject"], "subject"),
        prompt_template=_text(rewrite["prompt"], "prompt"),
        target_new=_text(rewrite["target_new"], "target_new"),
        target_true=_text(rewrite.get("target_true"), "target_true") or None,
        relation=_text(rewrite.get("relation_id"), "relation_id") or None,
        paraphrase_prompts=_texts(row, "paraphrase_prompts"),
        neighborhood_prompts=_texts(row, "neighborhood_prompts"),
        generation_prompts=_texts(row, "generation_prompts"),
    )


def _zsre(row: Mapping[str, Any], case_id: str) -> EditRequest:
    subject = _text(row["subject"], "subject")
    answers, alternative = _texts(row, "answers"), _text(row.get("alt"), "alt")
    answer = answers[0] if answers else ""
    return EditRequest(
        case_id=str(row.get("case_id", case_id)),
        subject=subject,
        prompt_template=_text(row["src"], "src").replace(subject, "{}", 1),
        target_new=alternative or answer,
        target_true=answer or None if alternative else None,
        paraphrase_prompts=_texts(row, "rephrase"),
        neighborhood_prompts=tuple(p.removeprefix("nq question: ").rstrip("?") + "?" for p in _texts(row, "loc")),
        neighborhood_answers=_texts(row, "loc_ans") if row.get("loc") else (),
    )


def _plain(row: Mapping[str, Any], case_id: str) -> EditRequest:
    template = row.get("prompt_template") or row.get("prompt")
    if template is None:
        raise KeyError("prompt_template")
    name = next((row[key] for key in ("case_id", "id") if row.get(key) not in (None, "")), case_id)
    return EditRequest(
        case_id=str(name),
        subject=_text(row["subject"], "subject"),
        prompt_template=_text(template, "prompt_template"),
        target_new=_text(row["target_new"], "target_new"),
        target_true=_text(row.get("target_true"), "target_true") or None,
        relation=_text(row.get("relation") or row.get("relation_id"), "relation") or None,
        paraphrase_prompts=_texts(row, "paraphrase_prompts"),
        neighborhood_prompts=_texts(row, "neighborhood_prompts"),
        generation_prompts=_texts(row, "generation_prompts"),
        neighborhood_answers=_texts(row, "neighborhood_answers"),
    )


class _WrongTypeError(Exception):
    """A field is not of the type that it needs to be; the message names it."""


def _text(value: Any, field: str) -> str:
    """A text, perhaps wrapped as CounterFact does it; nothing is the empty text."""
    inner = value["str"] if isinstance(value, Mapping) else value
    if inner is not None and not isinstance(inner, str):
        raise _WrongTypeError(f"{field} is {inner!r}, not a text: put it in quotes")
    return inner or ""


def _texts(row: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A field with a list of texts, a single one, or none."""
    value = row.get(field) or ()
    return tuple(_text(v, field) for v in ((value,) if isinstance(value, str | Mapping) else value))


def _table(text: str, path: Path) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise RequestError(f"{path} is not CSV ({error}): save it as comma-separated UTF-8") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not JSON (line {error.lineno}: {error.msg}): mend it there") from error
