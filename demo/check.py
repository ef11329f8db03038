"""What the demo model knows and whether it can be edited: the figures that a trained model must reach, into `metrics.json`.

Every fact on every template by greedy generation, plain and after an unrelated sentence; the surprise at another object of the
relation; and the probability of the new object that z reaches at the subject's last token, once if it may go on until its loss
is 0.02, and once if it is done at 0.05, because more costs the subject's other facts (docs/log.md).
"""

import argparse
import json
import random
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from demo.world import HERE, World, read_world
from nse.architecture import EditableModel, load_model
from nse.contexts import read_contexts
from nse.evaluation.answers import same_answer
from nse.evaluation.generate import generate
from nse.evaluation.score import log_probabilities
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.request import EditRequest
from nse.tokens import tokenize_template
from nse.values import values_for

UNRELATED = "The weather was fine today."


def known(editable: EditableModel, world: World, *, front: str = "") -> dict[str, Any]:
    """Share of facts answered right by greedy generation: over all templates, and on the worst one of each relation."""
    asked = [
        (f, number, t.format(f.subject)) for f in world.facts for number, t in enumerate(world.templates[f.relation])
    ]
    prompts = [f"{front} {p}".strip() for _, _, p in asked]
    texts = generate(editable, prompts, expected=[fact.object for fact, _, _ in asked])
    right = [same_answer(text, fact.object) for (fact, _, _), text in zip(asked, texts, strict=True)]
    wrong = [f"{p} -> {t.strip()}" for (_, _, p), t, ok in zip(asked, texts, right, strict=True) if not ok]
    return {"share": sum(right) / len(right), "wrong_examples": wrong[:: max(1, len(wrong) // 5)][:5]}


def surprise(editable: EditableModel, world: World, *, seed: int = 0) -> float:
    """Median negative log-likelihood, in nats, of another object of the same relation."""
    generator = random.Random(seed)
    pairs = []
    for fact in world.facts:
        others = sorted(set(world.objects[fact.relation]) - {fact.object})
        pairs.append((world.templates[fact.relation][0].format(fact.subject), generator.choice(others)))
    return statistics.median(-score for score, _ in log_probabilities(editable, pairs))


def reached(
    editable: EditableModel, world: World, settings: Hyperparameters, *, count: int = 40, seed: int = 0
) -> float:
    """Median probability of another object, all its tokens, once h is replaced by z at the subject's last token."""
    generator = random.Random(seed)
    requests = []
    for number, fact in enumerate(generator.sample(world.facts, count)):
        new = generator.choice(sorted(set(world.objects[fact.relation]) - {fact.object}))
        requests.append(EditRequest(str(number), fact.subject, world.templates[fact.relation][0], new, fact.object))
    z = values_for(editable, requests, contexts=read_contexts(HERE / "contexts.json"), hyperparameters=settings)
    return statistics.median(
        probability_at(editable, request, state, settings.z_layer) for request, state in zip(requests, z, strict=True)
    )


def probability_at(editable: EditableModel, request: EditRequest, z: torch.Tensor, layer: int) -> float:
    """p(target_new | prompt) with z in place of the hidden state at the subject's last token."""
    prompt = tokenize_template(editable.tokenizer, request.prompt_template, request.subject, target=request.target_new)

    def put(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output[:, prompt.fact_token] = z
        return output

    handle = editable.block(layer).register_forward_hook(put)
    try:
        with torch.no_grad():
            logits = (
                editable.model(torch.tensor([prompt.ids]), attention_mask=torch.ones(1, len(prompt.ids)))
                .logits[0]
                .log_softmax(-1)
            )
    finally:
        handle.remove()
    places = range(prompt.prompt_length - 1, len(prompt.ids) - 1)
    return float(torch.stack([logits[i, t] for i, t in zip(places, prompt.target_ids, strict=True)]).sum().exp())


def main() -> None:
    """Measures a model and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument("--output", type=Path, default=HERE / "metrics.json")
    options = parser.parse_args()
    editable, world = load_model(options.model), read_world()
    settings = read_hyperparameters(HERE / "at_subjects.yaml").settings
    plain, after = known(editable, world), known(editable, world, front=UNRELATED)
    figures = {
        "facts": len(world.facts),
        "known_on_every_template": round(plain["share"], 4),
        "known_after_an_unrelated_sentence": round(after["share"], 4),
        "median_nats_of_another_object": round(surprise(editable, world), 3),
        "median_probability_that_z_reaches": round(
            reached(editable, world, replace(settings, v_num_grad_steps=40, v_loss_target=0.02)), 4
        ),
        "the_same_with_z_done_at_a_loss_of_0.05": round(reached(editable, world, settings), 4),
        "model_digest": editable.base_digest,
    }
    options.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({**figures, "wrong": plain["wrong_examples"]}, indent=1))


if __name__ == "__main__":
    main()
