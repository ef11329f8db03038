"""The keys of one round, measured before it and after each of its solves: ours against each text by itself, from its beginning.

On the demo model, at the tokens and layers of its own settings and of those at subjects. Both are alternated in one process. One
command; needs only `nse` and this checkout:

    python -m benchmarks.keys --facts 50 --json build/keys.json
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import HERE, device_of, load, machine, show, write
from benchmarks.values import corrections
from nse.architecture import EditableModel
from nse.batch import by_length, pad
from nse.contexts import ContextTemplates, read_contexts, within
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.keys import KeyTexts
from nse.request import EditRequest
from nse.steps import facts_of_round, written_in
from nse.trace import capture_inputs, stopped_after

SETTINGS = {"as shipped": "demo/hparams.yaml", "at subjects": "demo/at_subjects.yaml"}


@torch.no_grad()
def each_by_itself(
    editable: EditableModel, facts: list[EditRequest], contexts: ContextTemplates, settings: Hyperparameters
) -> dict[int, torch.Tensor]:
    """Mean keys (n, d_mlp) float64 by layer: every text of every fact is read from its beginning."""
    templates = [(c, 1 / (len(contexts) * len(group))) for group in contexts for c in group]
    texts, of = [], []
    for i, fact in enumerate(facts):
        for context, share in templates:
            text = within(context, fact.prompt_template)
            texts.append(written_in(editable.tokenizer, text, fact, fact_token=settings.fact_token))
            of.append((i, share))
    ends = [text.ids[: text.fact_token + 1] for text in texts]
    found = {layer: torch.zeros(len(facts), 0, dtype=torch.float64) for layer in settings.layers}
    for group in by_length(texts):
        batch = pad(editable, [ends[i] for i in group])
        with (
            capture_inputs({layer: editable.projection(layer) for layer in settings.layers}) as seen,
            stopped_after(editable, settings.layers[-1]),
        ):
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        for layer, keys in seen.items():
            for row, i in enumerate(group):
                key, (fact, share) = keys[row, len(ends[i]) - 1].double().cpu(), of[i]
                if not found[layer].numel():
                    found[layer] = torch.zeros(len(facts), len(key), dtype=torch.float64)
                found[layer][fact] += share * key
    return found


def measured(editable: EditableModel, settings: Hyperparameters, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a round's measurements, both ways, and how far their keys lie apart."""
    contexts = read_contexts(HERE / "demo/contexts.json")
    facts = facts_of_round(editable, corrections(options.facts), (), settings)
    times = 1 + len(settings.layers) * settings.max_passes
    seconds: dict[str, list[float]] = {"ours": [], "each": []}
    ours, each = {}, {}
    for _ in range(options.repeat):
        begun = time.perf_counter()
        texts = KeyTexts(
            editable, facts, contexts, fact_token=settings.fact_token, first_written=settings.written_layers[0]
        )
        for _ in range(times):
            seen = texts.measure(key_layers=settings.layers, hidden_layer=settings.z_layer)
        ours = {layer: keys.T for layer, keys in seen.keys.items()}
        between = time.perf_counter()
        for _ in range(times):
            each = each_by_itself(editable, facts, contexts, settings)
        seconds["ours"].append(between - begun)
        seconds["each"].append(time.perf_counter() - between)
    best = {name: min(own) for name, own in seconds.items()}
    apart = [((ours[n] - each[n]).norm(dim=1) / each[n].norm(dim=1)).max() for n in settings.layers]
    return {
        "facts": len(facts),
        "measurements": times,
        **best,
        "ratio": best["each"] / best["ours"],
        "difference_max": float(max(apart)),
    }


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = device_of(options.device)
    editable, where = load(HERE / "demo/model", device), machine(device)
    results = {
        name: measured(editable, read_hyperparameters(HERE / path).settings, options) for name, path in SETTINGS.items()
    }
    rows = [
        (
            *(name, str(r["facts"]), str(r["measurements"]), f"{r['each']:.1f}", f"{r['ours']:.1f}"),
            *(f"{r['ratio']:.1f}", f"{r['difference_max']:.0e}"),
        )
        for name, r in results.items()
    ]
    columns = (
        "keys of a round",
        "facts and steps",
        "times",
        "each by itself, s",
        "ours, s",
        "ratio",
        "difference, max",
    )
    show(f"{options.facts} corrections of the demo model", columns, rows, where)
    write(options.json, {"machine": where, "results": results})


if __name__ == "__main__":
    main()
