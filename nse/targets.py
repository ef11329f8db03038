"""Targets: how far requests are in place under what is in force, for the reports of methods that have no z to measure by."""

from collections.abc import Sequence
from dataclasses import dataclass

from nse.architecture import EditableModel
from nse.evaluation.questions import Question, reply
from nse.request import EditRequest


@dataclass(frozen=True, slots=True)
class TargetState:
    """How a request's target stands.

    Attributes:
        loss: Mean of -log p per token of the target, in nats.
        right: Whether every token of it is the most probable one, those before it given.
    """

    loss: float
    right: bool


def target_states(editable: EditableModel, requests: Sequence[EditRequest]) -> list[TargetState]:
    """How the targets of `requests` stand under the weights and memories in force.

    Raises:
        TokenError: If a text does not fit the model.
    """
    asked: dict[str, dict[str, None]] = {}
    for request in requests:
        asked.setdefault(request.prompt, {})[request.target_new] = None
    questions = [Question(prompt, tuple(targets)) for prompt, targets in asked.items()]
    found = {
        (question.prompt, target): TargetState(-score / count, right)
        for question, answer in zip(questions, reply(editable, questions), strict=True)
        for target, (score, count), right in zip(question.targets, answer.scores, answer.right, strict=True)
    }
    return [found[request.prompt, request.target_new] for request in requests]
