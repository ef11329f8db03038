"""How long a round will take: told before it starts, from a few seconds of its own work."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from flows.session import Session
from flows.values import value_store
from nse.contexts import read_contexts
from nse.editors import get_editor, read_settings
from nse.evaluation.probes import Probe
from nse.evaluation.run import ask, unasked
from nse.evaluation.suites import held_facts, read_suite
from nse.hyperparameters import Hyperparameters
from nse.keys import KeyTexts
from nse.objective import minimise, texts_of
from nse.patch import base_in_force
from nse.request import EditRequest
from nse.subjects import by_subject
from nse.values import value_keys

FACTS = 8
"""Facts that are timed."""
QUESTIONS = 16
UPDATES = 3


def expected(
    session: Session, requests: Sequence[EditRequest], phases: Sequence[tuple[str, Sequence[Probe]]]
) -> dict[str, float]:
    """Seconds by step. What is in the caches already is not counted.

    A few of the z's are taken some updates far, the keys of these facts are measured once, and a few questions are asked;
    nothing of it is kept, so that the round's own bytes do not depend on it. Where z's end early the round is faster.

    Args:
        session: The workspace's model, with the base weights in force.
        requests: What the round writes.
        phases: Per version that is asked, its digest and its questions.
    """
    workspace = session.workspace
    method = workspace.params.method
    needs = get_editor(method.name).needs
    settings = read_settings(workspace.path(method.hparams), method.name).settings
    found: dict[str, float] = {}
    if "values" in needs and requests:
        found["values"] = _values(session, requests, settings)
        if "second_moments" in needs:
            found["edit"] = _keys(session, requests, settings)
    found["evaluation"] = sum(_answers(session, version, probes) for version, probes in phases)
    return found


def in_words(seconds: dict[str, float]) -> str:
    """One line."""
    parts = ", ".join(f"{step} {_duration(took)}" for step, took in seconds.items())
    return f"expected: {parts}; {_duration(sum(seconds.values()))} in all"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60, 1)
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min"


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _values(session: Session, requests: Sequence[EditRequest], settings: Hyperparameters) -> float:
    workspace, editable, store = session.workspace, session.editable, value_store(session.workspace)
    contexts = read_contexts(workspace.path(workspace.params.method.contexts))
    held = held_facts(read_suite(workspace.path(workspace.params.suite)))
    groups = [
        group
        for group in by_subject(requests, held, joint=settings.one_z_per_subject)
        if any(store.get(key) is None for key in value_keys(editable, requests, group, contexts, settings))
    ]
    if not groups:
        return 0.0
    texts = [texts_of(editable, requests, group, contexts, settings) for group in groups[:FACTS]]

    def taken(updates: int) -> float:
        short = replace(settings, v_num_grad_steps=updates + settings.steps_as_published)
        return _timed(lambda: minimise(editable, texts, short))

    with base_in_force(editable):
        taken(1)  # the first use of a model is slower
        one, several = taken(1), taken(UPDATES)
    update = max(several - one, 0.0) / (UPDATES - 1)
    return (one + update * (settings.value_updates - 1)) * len(groups) / len(texts)


def _keys(session: Session, requests: Sequence[EditRequest], settings: Hyperparameters) -> float:
    """Keys and solves: every layer that is written has the layers from there up to z's read again, in each pass."""
    path, layers = session.workspace.path(session.workspace.params.method.contexts), settings.written_layers
    texts = KeyTexts(
        *(session.editable, requests[:FACTS], read_contexts(path)),
        subject_share=settings.subject_share,
        fact_token=settings.fact_token,
    )
    once = _timed(lambda: texts.measure(key_layers=layers, hidden_layer=settings.z_layer))
    again = sum(settings.z_layer + 1 - layer for layer in layers) / (settings.z_layer + 1)
    return once * (1 + settings.max_passes * again) * len(requests) / len(requests[:FACTS])


def _answers(session: Session, version: str, probes: Sequence[Probe]) -> float:
    new = unasked(session.editable, probes, store=session.outcomes, version=version)
    prompts = {probe.prompt: probe for probe in new}
    if not prompts:
        return 0.0
    some = list(prompts.values())[:: -(-len(prompts) // QUESTIONS)]
    return _timed(lambda: ask(session.editable, some)) * len(prompts) / len(some)
