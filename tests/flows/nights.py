"""A ledger of nights that no model has seen: proposals with evidence of every sort, made in milliseconds."""

from collections.abc import Iterator
from pathlib import Path

from ledger.records import CaseRow, Changeset, Correction, Gate, Metric
from ledger.unit_of_work import open_ledger
from tests.ledger.cast import Cast
from tests.ledger.conftest import MODEL

LAYERS = (2, 3, 4)


def started(path: Path) -> Cast:
    """A ledger with the base model in force."""
    made = Cast(open_ledger(f"sqlite:///{path}", create=True), path)
    with made.ledger.begin() as work:
        work.start(MODEL, "ba5e" * 16, made.now(), "nse init")
    return made


def rows(kind: str, corrections: list[Correction], *, each: int = 1, wrong: int = 0) -> Iterator[CaseRow]:
    """Cases of head and candidate; the head is right about all but the new facts, the candidate wrong about the last ones."""
    count = each * len(corrections)
    for place, c in enumerate(c for c in corrections for _ in range(each)):
        prompt = c.prompt_template.replace("{}", c.subject) + (f" now ({place})" if each > 1 else "")
        knows, fails = kind not in ("efficacy", "generalization"), place >= count - wrong
        for phase, passed in (("head", knows), ("candidate", not fails)):
            said = c.target_new if passed else "kuna"
            yield CaseRow(kind, phase, c.id, prompt, c.target_new, 0.97 if passed else 0.02, said, passed)  # type: ignore[arg-type]


def figures(head: float, candidate: float, ratio: float = 1.01) -> tuple[Metric, ...]:
    """Metrics of every sort."""
    shares = (
        "efficacy",
        "efficacy_generation",
        "retention",
        "retention_generation",
        "untouched",
        "untouched_generation",
    )
    found = [Metric(name, "head", head) for name in shares] + [Metric(name, "candidate", candidate) for name in shares]
    found += [Metric("perplexity", "head", 21.5), Metric("perplexity", "candidate", 21.5 * ratio)]
    norms = [Metric(f"delta_norm.{layer}", "candidate", 0.01 * layer) for layer in LAYERS]
    return (*found, Metric("perplexity_ratio", "candidate", ratio), *norms)


def night(
    cast: Cast,
    new: list[Correction],
    old: list[Correction],
    *,
    wrong: int = 0,
    each: int = 1,
    metrics: tuple[Metric, ...] = (),
) -> Changeset:
    """A proposal: what is `new` is asked for, and `each` times in other words; of what is `old`, the first are forgotten."""
    kept = [*reversed(old)]
    cases = [*rows("efficacy", new), *rows("generalization", new, each=each), *rows("retention", kept, wrong=wrong)]
    held = 1 - wrong / len(old) if old else 1.0
    gates = (
        Gate("efficacy", ">=", 0.9, 1.0, True),
        Gate("retention_generation", ">=", 0.9, held, held >= 0.9),
        Gate("perplexity_ratio", "<=", 1.1, 1.01, True),
    )
    found = metrics or figures(0.4, held)
    return cast.propose(*new, cases=tuple(cases), gates=gates, metrics=found, reason="tonight's corrections")


def file_all(cast: Cast, subjects: list[str]) -> list[Correction]:
    """Corrections about these subjects, filed at once."""
    with cast.ledger.begin() as work:
        filed = [work.add_correction(cast.correction(subject, target_true="kuna")).record for subject in subjects]
    return [correction for correction in filed if isinstance(correction, Correction)]


def history(cast: Cast, nights: int, batch: int) -> list[Correction]:
    """So many applied rounds; returns their corrections, oldest first."""
    filed: list[Correction] = []
    for number in range(nights):
        new = file_all(cast, [f"Country {number}.{place}" for place in range(batch)])
        made = night(cast, new, filed)
        cast.approve(made)
        cast.apply(made)
        filed += new
    return filed
