"""Questions to any version of the model: what it answers, because of what, and how it does in the suite."""

from dataclasses import dataclass
from typing import Any

from flows.errors import FlowError
from flows.progress import Progress, silent
from flows.session import Session, request_of
from ledger.records import Correction, HeadMove
from ledger.status import read_state
from ledger.views import resolve_version
from nse.evaluation.generate import answer, generate, next_tokens
from nse.evaluation.run import Evaluation, evaluate
from nse.evaluation.suites import read_suite

TOP = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a version of the model says.

    Attributes:
        prompt: The question.
        answer: The first clause of what it generates greedily.
        generated: All of that.
        tokens: The most probable next tokens with their probabilities.
        head: The version that was asked.
        because: Corrections in force there whose subject is in the prompt.
    """

    prompt: str
    answer: str
    generated: str
    tokens: tuple[tuple[str, float], ...]
    head: HeadMove
    because: tuple[Correction, ...]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "generated": self.generated,
            "tokens": [{"token": token, "probability": probability} for token, probability in self.tokens],
            "version": self.head.to_dict(),
            "because": [correction.to_dict() for correction in self.because],
        }


def ask(session: Session, prompt: str, *, at: str = "head") -> Answer:
    """Asks the version that `at` names (head, base, v3, #5, a date, a digest).

    Raises:
        FlowError: If the prompt is empty.
        LedgerError: If `at` names no version.
    """
    if not prompt.strip():
        raise FlowError("the prompt is empty", 'write the beginning of a statement, e.g. "The capital of Kenya is"')
    workspace = session.workspace
    with workspace.ledger().read() as work:
        head = resolve_version(work, workspace.model, at)
        state = read_state(work, workspace.model)
    active = state.active(head)
    with session.at(active) as editable:
        text = generate(editable, [prompt])[0]
        tokens = tuple(next_tokens(editable, prompt, k=min(TOP, len(editable.tokenizer))))
    asked, in_force = prompt.casefold(), state.in_force(active)
    because = tuple(
        correction
        for identity, correction in state.corrections.items()
        if identity in in_force and correction.subject.casefold() in asked
    )
    return Answer(prompt, answer(text), text, tokens, head, because)


def evaluate_at(session: Session, at: str, *, progress: Progress = silent) -> tuple[HeadMove, Evaluation]:
    """Runs the workspace's suite on a version, with all corrections in force there as what it must hold."""
    workspace = session.workspace
    suite = read_suite(workspace.path(workspace.params.suite))
    with workspace.ledger().read() as work:
        head = resolve_version(work, workspace.model, at)
        state = read_state(work, workspace.model)
    active = state.active(head)
    held = state.in_force(active)
    retained = [request_of(correction) for identity, correction in state.corrections.items() if identity in held]
    with session.at(active) as editable:
        found = evaluate(
            editable, suite, retained=retained, store=session.outcomes, version=head.version, progress=progress
        )
    return head, found
