"""Ingest: from files of corrections to the ledger. Good rows are filed, bad ones kept with their reason."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from flows.checkpoints import keep_checkpoint
from flows.checks import Draft, problems
from flows.rows import Row, Source, readable
from flows.workspace import Workspace
from ledger.errors import LedgerError
from ledger.records import Correction, Quarantined, subject_key
from ledger.status import correction_statuses, read_state
from ledger.unit_of_work import UnitOfWork
from nse.tokens import unheard

SAME_FACT = "yes"
"""In the column `supersedes`: whatever is filed already for this subject and relation."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of the rows.

    Attributes:
        filed: Corrections that are new in the ledger.
        already_known: Rows that the ledger held before.
        duplicates: New ones that ask for what another correction asks for already.
        conflicts: New ones that contradict another correction: both wait for a person.
        quarantined: Rows that could not be filed, those known from an earlier run included.
        ignored_columns: Columns that nobody reads, by file.
        unheard: New ones whose subject is the very first token of the prompt, where a model hears no subject.
    """

    filed: tuple[Correction, ...]
    already_known: int
    duplicates: tuple[Correction, ...]
    conflicts: tuple[Correction, ...]
    quarantined: tuple[Quarantined, ...]
    ignored_columns: tuple[str, ...] = ()
    unheard: tuple[Correction, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "filed": [c.to_dict() for c in self.filed],
            "already_known": self.already_known,
            "duplicates": [c.id for c in self.duplicates],
            "conflicts": [c.id for c in self.conflicts],
            "quarantined": [q.to_dict() for q in self.quarantined],
            "ignored_columns": list(self.ignored_columns),
            "unheard": [c.id for c in self.unheard],
        }


def ingest(
    workspace: Workspace, sources: Sequence[Source], *, tokenizer: PreTrainedTokenizerBase, submitter: str | None
) -> IngestReport:
    """Files the rows of `sources` for the workspace's model; the same file twice changes nothing.

    Args:
        workspace: Where to.
        sources: What `flows.rows` read.
        tokenizer: The model's, to know what it can say.
        submitter: Who answers for rows that name nobody.
    """
    filing = _Filing(workspace, submitter or "")
    checked = [(source, row, filing.draft(row)) for source in sources for row in source.rows]
    found = [_problems(row, draft, tokenizer) for _, row, draft in checked]
    with workspace.ledger().begin() as work:
        filing.begin(work, {draft.subject for _, _, draft in checked})
        for (source, row, draft), wrong in zip(checked, found, strict=True):
            filing.file(source, row, draft, wrong)
        state = read_state(work, workspace.model, subjects=[c.subject for c in filing.filed])
    status = correction_statuses(state)
    keep_checkpoint(workspace)
    new = filing.filed
    return IngestReport(
        filed=tuple(new),
        already_known=filing.already_known,
        duplicates=tuple(c for c in new if status[c.id] == "duplicate"),
        conflicts=tuple(c for c in new if status[c.id] == "conflict"),
        quarantined=tuple(filing.quarantined),
        ignored_columns=tuple(f"{s.name}: {column}" for s in sources for column in s.ignored_columns),
        unheard=tuple(c for c in new if unheard(tokenizer, c.prompt_template, c.subject)),
    )


def _problems(row: Row, draft: Draft, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, str]]:
    return [row.problem] if row.problem is not None else problems(draft, tokenizer)


class _Filing:
    """One transaction of filing, row by row."""

    def __init__(self, workspace: Workspace, submitter: str) -> None:
        self.model, self.now, self.submitter = workspace.model, workspace.now(), submitter
        self.filed: list[Correction] = []
        self.quarantined: list[Quarantined] = []
        self.already_known = 0

    def begin(self, work: UnitOfWork, subjects: set[str]) -> None:
        self.work = work
        self.known = work.corrections(self.model, subjects=subjects)

    def draft(self, row: Row) -> Draft:
        cells = {f.name: row.cells.get(f.name, "") for f in fields(Draft)}
        return replace(Draft(**cells), submitter=cells["submitter"] or self.submitter).templated()

    def file(self, source: Source, row: Row, draft: Draft, wrong: list[tuple[str, str]]) -> None:
        supersedes: str | None = None
        if not wrong and draft.supersedes:
            supersedes = self._superseded(draft)
            if supersedes is None:
                wrong = [("supersedes", f"{draft.supersedes!r} names no correction filed before: see `nse log`")]
        if wrong:
            self._quarantine(source, row, wrong)
            return
        correction = self._correction(source, row, draft, supersedes)
        filed = self.work.add_correction(correction)
        if filed.new and isinstance(filed.record, Correction):
            self.filed.append(filed.record)
            self.known.append(filed.record)
        else:
            self.already_known += 1

    def _quarantine(self, source: Source, row: Row, wrong: list[tuple[str, str]]) -> None:
        (field, reason), *others = wrong
        also = "".join(f"; also {other} {text}" for other, text in others)
        record = Quarantined(
            file_name=source.name,
            file_digest=source.digest,
            line=row.line,
            field=field,
            reason=readable(reason + also),
            row_text=readable(row.text),
            quarantined_at=self.now,
        )
        kept = self.work.add_quarantined(record).record
        if isinstance(kept, Quarantined):
            self.quarantined.append(kept)

    def _correction(self, source: Source, row: Row, draft: Draft, supersedes: str | None) -> Correction:
        day = draft.effective_date
        return Correction(
            model=self.model,
            subject=draft.subject,
            relation=draft.relation or None,
            prompt_template=draft.prompt_template,
            target_new=draft.target_new,
            target_true=draft.target_true or None,
            source=draft.source,
            submitter=draft.submitter,
            reason=draft.reason,
            effective_date=date.fromisoformat(day).isoformat() if day else None,
            supersedes=supersedes,
            filed_at=self.now,
            file_name=source.name,
            line=row.line,
        )

    def _named(self, prefix: str) -> str | None:
        try:
            named = self.work.correction(prefix)
        except LedgerError:
            return None  # nothing begins so, or several do
        return named.id if named.model == self.model else None

    def _superseded(self, draft: Draft) -> str | None:
        """The id of the correction that a draft supersedes: one it names, or the latest other one about its fact."""
        prefix = draft.supersedes.lower()
        if prefix != SAME_FACT:
            return self._named(prefix)
        about = (subject_key(draft.subject), draft.relation or draft.prompt_template)
        others: list[str] = []
        for known in (c for c in self.known if c.fact == about):
            if others and known.supersedes in others and known.target_new == draft.target_new:
                return known.supersedes  # this very row, filed by an earlier run
            others.append(known.id)
        return others[-1] if others else None
