"""The keys of one round, measured before it and after each of its solves: ours against each text by itself, from its beginning.

On the demo model, at the tokens and layers of its own settings and of those at subjects. Both are alternated in one process. One
command; needs only `nse` and this checkout:

    python -m benchmarks.keys --facts 50 --json build/keys.json

Or a model of your own, with requests and hyper-parameters, in the bare prompt and five contexts:

    python -m benchmarks.keys --model DIR --requests FILE --hparams FILE --threads 1
"""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import HERE, device_of, flops, load, machine, matmul_rate, show, write
from benchmarks.values import CONTEXTS, corrections
from nse.architecture import EditableModel
from nse.batch import by_length, pad
from nse.contexts import ContextTemplates, read_contexts, within
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.keys import KeyTexts
from nse.request import EditRequest, read_requests
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


@dataclass(frozen=True, slots=True)
class Round:
    """A round whose keys are measured: its facts and their contexts, and the settings."""

    facts: list[EditRequest]
    contexts: ContextTemplates
    settings: Hyperparameters

    @property
    def written(self) -> list[int]:
        """The layers in the order in which they are written, in all passes."""
        return [*self.settings.written_layers] * self.settings.max_passes

    def ours(self, editable: EditableModel) -> dict[int, torch.Tensor]:
        """Keys (n, d_mlp) by layer, measured before the round and after each write, as a round does it."""
        hp = self.settings
        first = hp.written_layers[0]
        texts = KeyTexts(editable, self.facts, self.contexts, fact_token=hp.fact_token, first_written=first)
        seen = texts.measure(key_layers=hp.layers, hidden_layer=hp.z_layer)
        for layer in self.written:
            seen = texts.measure(key_layers=hp.layers, hidden_layer=hp.z_layer, changed=layer)
        return {layer: keys.T for layer, keys in seen.keys.items()}

    def each(self, editable: EditableModel) -> dict[int, torch.Tensor]:
        """The same, every text read from its beginning every time."""
        found: dict[int, torch.Tensor] = {}
        for _ in [None, *self.written]:
            found = each_by_itself(editable, self.facts, self.contexts, self.settings)
        return found


def measured(editable: EditableModel, round_: Round, *, repeat: int) -> dict[str, Any]:
    """Seconds of a round's measurements, both ways, and how far their keys lie apart."""
    ways = {"ours": round_.ours, "each": round_.each}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    keys: dict[str, dict[int, torch.Tensor]] = {}
    rate = matmul_rate(editable)
    for _ in range(repeat):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            keys[name] = way(editable)
            wall[name].append(time.perf_counter() - begun[0])
            cpu[name].append(time.process_time() - begun[1])
    rate = max(rate, matmul_rate(editable))
    spent = cpu if editable.device.type == "cpu" else wall
    amount = {name: flops(lambda way=way: way(editable)) for name, way in ways.items()}
    ours, each = keys["ours"], keys["each"]
    apart = [((ours[n] - each[n]).norm(dim=1) / each[n].norm(dim=1)).max() for n in round_.settings.layers]
    return {
        "facts": len(round_.facts),
        "measurements": 1 + len(round_.written),
        **{name: min(own) for name, own in wall.items()},
        **{f"processor_{name}": min(own) for name, own in cpu.items()},
        "ratio": min(wall["each"]) / min(wall["ours"]),
        "ratio_of_processor_time": min(cpu["each"]) / min(cpu["ours"]),
        "difference_max": float(max(apart)),
        "gflop": {name: own / 1e9 for name, own in amount.items()},
        "matmul_gflop_per_second": rate / 1e9,
        "share_of_matmul_rate": {name: amount[name] / min(spent[name]) / rate for name in ways},
    }


def rounds_of(editable: EditableModel, options: argparse.Namespace) -> dict[str, Round]:
    """The rounds to measure: those of the demo's settings, or the one that is given."""
    drawn = corrections(options.facts)
    if options.model:
        if options.requests:
            drawn = read_requests(options.requests)[: options.facts]
        settings = read_hyperparameters(options.hparams).settings
        return {options.model.name: Round(facts_of_round(editable, drawn, (), settings), CONTEXTS, settings)}
    contexts, found = read_contexts(HERE / "demo/contexts.json"), {}
    for name, path in SETTINGS.items():
        settings = read_hyperparameters(HERE / path).settings
        found[name] = Round(facts_of_round(editable, drawn, (), settings), contexts, settings)
    return found


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model of your own in place of the demo; needs --hparams")
    parser.add_argument("--requests", type=Path, help="its corrections, in a layout that `nse edit` reads")
    parser.add_argument("--hparams", type=Path, help="its hyper-parameters")
    parser.add_argument("--facts", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.model and not options.hparams:
        parser.error("--model needs --hparams")
    torch.set_num_threads(options.threads)
    device = device_of(options.device)
    editable, where = load(options.model or HERE / "demo/model", device), machine(device)
    results = {
        name: measured(editable, own, repeat=options.repeat) for name, own in rounds_of(editable, options).items()
    }
    rows = [
        (
            *(name, str(r["facts"]), str(r["measurements"]), f"{r['each']:.1f}", f"{r['ours']:.1f}"),
            *(f"{r['processor_ours']:.1f}", f"{r['ratio']:.1f}", f"{r['ratio_of_processor_time']:.1f}"),
            *(f"{r['difference_max']:.0e}", f"{r['gflop']['each']:.0f}", f"{r['gflop']['ours']:.0f}"),
            f"{r['share_of_matmul_rate']['ours']:.0%}",
        )
        for name, r in results.items()
    ]
    columns = (
        *("keys of a round", "facts and steps", "times", "each by itself, s", "ours, s", "ours, CPU s", "ratio"),
        *("by CPU time", "difference, max", "GFLOP, each", "ours", "of the matmul rate"),
    )
    show(f"{options.facts} corrections", columns, rows, where)
    write(options.json, {"machine": where, "results": results})


if __name__ == "__main__":
    main()
