"""Outcomes: what a version of the model answered to one probe, and where such answers are kept."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

SCHEMA = 3
"""Part of the name of kept answers: raise it when the rule by which a text is an answer changes, or what is kept or measured."""


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The answer to one probe.

    Attributes:
        kind: What it measures.
        case_id: The request, fact or canary that it belongs to.
        prompt: The question.
        expected: The right answer; "contains ..." or "lacks ..." where another rule judges the answer.
        probability: p of the probe's text after its prompt, all its tokens.
        preferred: Whether that text is more probable per token than the foil (over one half, if there is no foil).
        generated: The answer by greedy free generation.
        passed: Whether that answer is right by the probe's rule.
        nats: Mean of -log p per token of the text.
        foil_nats: The same of the foil, if there is one.
        argmax: Whether each token of the text is the most probable one, those before it given.

    Where the answer must lack the text, `preferred` and `argmax` are the other way round: true is always good.
    """

    kind: str
    case_id: str
    prompt: str
    expected: str
    probability: float
    preferred: bool
    generated: str
    passed: bool
    nats: float
    foil_nats: float | None
    argmax: bool


@dataclass(frozen=True, slots=True)
class OutcomeStore:
    """Answers that a version has given before, one JSON file per version: tonight's head was judged as last night's candidate."""

    folder: Path

    def read(self, version: str) -> dict[str, CaseOutcome]:
        """Known outcomes of a version by the digest of their probe."""
        path = self._path(version)
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {key: CaseOutcome(**value) for key, value in known.items()}

    def write(self, version: str, outcomes: Mapping[str, CaseOutcome]) -> None:
        """Keeps outcomes; a reader never sees half a file."""
        self._keep(self._path(version), {key: asdict(o) for key, o in sorted(outcomes.items())})

    def measured(self, version: str, name: str, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Figures of a version by the name of what was measured; they are measured once."""
        path = self.folder / f"{version}.{name}.{SCHEMA}.json"
        if not path.is_file():
            self._keep(path, measure())
        found: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _keep(self, path: Path, value: Mapping[str, object]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(value), encoding="utf-8")
        temporary.replace(path)

    def _path(self, version: str) -> Path:
        return self.folder / f"{version}.{SCHEMA}.json"
