"""Questions to any version of the model: what it answers, because of what, and how it does in the suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from flows.errors import FlowError
from flows.evidence import by_round, measured
from flows.progress import Progress, silent, under
from flows.session import Session, request_of
from ledger.records import Correction, HeadMove
from ledger.status import ModelState, read_state
from ledger.views import resolve_version
from nse.chat import in_chat, needed_chat_context
from nse.evaluation.answers import answer
from nse.evaluation.generate import ANSWER_TOKENS, CHAT_TOKENS, generate, next_tokens
from nse.evaluation.probes import Rule
from nse.evaluation.run import Evaluation
from nse.evaluation.suites import Gate, GateResult, Suite, read_suite

TOP = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a version of the model says.

    Attributes:
        prompt: The question.
        answer: The first clause of what it generates greedily, in the chat format the first sentence.
        generated: All of that.
        tokens: The most probable next tokens with their probabilities.
        head: The version that was asked.
        because: Corrections in force there whose subject is in the prompt.
        chat: Whether it was asked in the chat format.
    """

    prompt: str
    answer: str
    generated: str
    tokens: tuple[tuple[str, float], ...]
    head: HeadMove
    because: tuple[Correction, ...]
    chat: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "prompt": self.prompt,
            "answer": self.answer,
            "generated": self.generated,
            "tokens": [{"token": token, "probability": probability} for token, probability in self.tokens],
            "version": self.head.to_dict(),
            "because": [correction.to_dict() for correction in self.because],
            **({"chat": True} if self.chat else {}),
        }


def ask(session: Session, prompt: str, *, at: str = "head", chat: bool = False) -> Answer:
    """Asks the version that `at` names (head, base, v3, #5, a date, a digest); with `chat` as a person asks an instruct model.

    Raises:
        FlowError: If the prompt is empty.
        TokenError: If the tokenizer has no chat template that can be used, and `chat` is wanted.
        LedgerError: If `at` names no version.
    """
    if not prompt.strip():
        raise FlowError("the prompt is empty", 'write the beginning of a statement, e.g. "The capital of Kenya is"')
    workspace = session.workspace
    with workspace.ledger().read() as work:
        head = resolve_version(work, workspace.model, at)
        state = read_state(work, workspace.model)
    active = state.active(head)
    asked, in_force = prompt.casefold(), state.in_force(active)
    because = tuple(
        correction
        for identity, correction in state.corrections.items()
        if identity in in_force and correction.subject.casefold() in asked
    )
    # an object such as "St. Petersburg" is given whole where its own question is asked
    own = next((c.target_new for c in because if request_of(c).prompt == prompt.strip()), "")
    rule: Rule = "states" if chat else "equals"
    with session.at(active) as editable:
        read = in_chat(needed_chat_context(editable.tokenizer), prompt) if chat else prompt
        most = CHAT_TOKENS if chat else ANSWER_TOKENS
        text = generate(editable, [read], expected=[own], rule=rule, max_new_tokens=most)[0]
        tokens = tuple(next_tokens(editable, read, k=min(TOP, len(editable.tokenizer))))
    said = answer(text, own, rule=rule, question=read)
    return Answer(prompt, said, text, tokens, head, because, chat)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a suite says of a version.

    Attributes:
        suite: Its file.
        metrics: By name.
        gates: Compared with the metrics; those against the head with the version in force.
        not_measured: Gates that do not apply: there was nothing to ask that they are about.
    """

    suite: Path
    metrics: dict[str, float]
    gates: tuple[GateResult, ...]
    not_measured: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate that blocks passed."""
        return all(gate.passed for gate in self.gates if gate.severity == "block")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        gates = [{name: getattr(gate, name) for name in gate.__slots__} for gate in self.gates]
        unmeasured = [str(gate) for gate in self.not_measured]
        found = {"suite": self.suite.name, "metrics": self.metrics, "gates": gates, "passed": self.passed}
        return {**found, "not_measured": unmeasured}


def evaluate_at(
    session: Session, at: str, suites: Sequence[Path] = (), *, progress: Progress = silent
) -> tuple[HeadMove, list[Judgement]]:
    """Runs suites, the workspace's if none is named, on a version; the corrections in force there are what it must hold.

    A suite that judges corrections judges these, or the sample of them that it asks.

    Raises:
        SuiteError: If a suite is malformed, or a gate is on a task or layer that there is not.
        LedgerError: If `at` names no version.
    """
    workspace = session.workspace
    files = suites or [workspace.path(workspace.params.suite)]
    read = [(file, read_suite(file)) for file in files]
    with workspace.ledger().read() as work:
        move = resolve_version(work, workspace.model, at)
        state = read_state(work, workspace.model)
    found = []
    for file, suite in read:
        version = _evaluation(session, suite, state, move, progress=progress)
        same = not suite.relative or move.version == state.head.version
        head = version if same else _evaluation(session, suite, state, state.head, progress=under("head", progress))
        unmeasured = suite.not_measured(version, head)
        found.append(Judgement(file, version.metrics, suite.gate(version, head), unmeasured))
    return move, found


def _evaluation(session: Session, suite: Suite, state: ModelState, move: HeadMove, *, progress: Progress) -> Evaluation:
    active = state.active(move)
    held = state.in_force(active)
    rounds = by_round(state, active, {identity for identity in held if not state.corrections[identity].erased})
    judged = suite.asked_again(rounds) if suite.retention else tuple(chain(*rounds))
    requests = judged if suite.judges_corrections else ()
    deltas = session.deltas(active)
    with session.with_deltas(deltas) as editable:
        return measured(session, editable, suite, deltas=deltas, requests=requests, retained=rounds, progress=progress)
