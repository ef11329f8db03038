"""Steps: the tokens of a correction's target, each written where the model has to say it.

A vector at its prompt's last token (`fact_token: last`) makes a model say one token. The further tokens of a target are written
where those before them stand, each with a key and a z of its own; what is written for them belongs to their correction.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from transformers import PreTrainedTokenizerBase

from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.subjects import HeldFact, companions
from nse.tokens import TokenizedPrompt, tokenize_template


@dataclass(frozen=True, slots=True)
class Step(EditRequest):
    """One further token of a correction's target, to be said after the prompt and the first `step` tokens of the target."""

    step: int = 0


def further_steps(tokenizer: PreTrainedTokenizerBase, requests: Iterable[EditRequest]) -> list[Step]:
    """All tokens of the requests' targets but the first of each.

    Raises:
        TokenError: If a prompt or target cannot be tokenised.
    """
    found = []
    for request in requests:
        own = {field.name: getattr(request, field.name) for field in fields(EditRequest)}
        prompt = tokenize_template(tokenizer, request.prompt_template, request.subject, target=request.target_new)
        found += [Step(**own, step=step) for step in range(1, len(prompt.target_ids))]
    return found


def facts_of_round(
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    earlier: Iterable[EditRequest],
    hyperparameters: Hyperparameters,
) -> list[EditRequest]:
    """What a round writes: its requests, then what belongs to them, further steps or companions, as the settings say."""
    if hyperparameters.fact_token == "last":
        return [*requests, *further_steps(tokenizer, requests)]
    return [*requests, *(companions(requests, earlier) if hyperparameters.one_z_per_subject else ())]


def step_of(fact: EditRequest | HeldFact) -> int:
    """How many tokens of its target stand before the one that a fact is about."""
    return fact.step if isinstance(fact, Step) else 0


def written_in(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    fact: EditRequest | HeldFact,
    *,
    fact_token: str,
    target: str = "",
) -> TokenizedPrompt:
    """A fact's text, with the token where it is written.

    Args:
        tokenizer: A fast tokenizer.
        template: The fact's prompt template, perhaps inside a context.
        fact: The fact, or a step of it.
        fact_token: As in `Hyperparameters`.
        target: Text of the target, empty for none; a further step has its own in any case.

    Raises:
        TokenError: If the text cannot be tokenised.
    """
    if not (step := step_of(fact)):
        return tokenize_template(tokenizer, template, fact.subject, target=target, fact_token=fact_token)
    assert isinstance(fact, Step)
    prompt = tokenize_template(tokenizer, template, fact.subject, target=fact.target_new, fact_token=fact_token)
    return replace(prompt, fact_token=prompt.prompt_length - 1 + step)
