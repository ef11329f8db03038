"""Files of second moments, judged by edits: the same z's, keys and rounds with each file and each lambda, then everything asked.

The z's are made once and kept (`--values`). All answers are by greedy free generation. Needs only `nse`:

    python -m benchmarks.second_moments --model MODEL --requests smollm2_dev.json --hparams benchmarks/smollm2.yaml \
        --second-moment first=first.safetensors --second-moment sample=sample.safetensors --lambdas 300 1000 3000
"""

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import device_of, machine, show, write
from nse.architecture import EditableModel, load_model
from nse.bench.score import perplexity_of, score
from nse.bench.streams import Questions, in_rounds, questions_about, read_dataset
from nse.contexts import BARE, ContextTemplates, read_contexts
from nse.corpus import open_corpus
from nse.delta import Delta
from nse.editors import EditContext, get_editor
from nse.factors import cholesky, empty_symmetric
from nse.hyperparameters import Hyperparameters, read_hyperparameters
from nse.keys import measure
from nse.patch import compose, patched
from nse.request import EditRequest
from nse.spectrum import effective_rank
from nse.statistics import SecondMoments, read_second_moments
from nse.values import ValueStore

SENTENCES, LONGEST = 30, 400
"""Texts for perplexity, and their most characters."""
COLUMNS = ("efficacy", "generalization", "specificity", "harmonic_mean")


@dataclass(frozen=True, slots=True)
class Trials:
    """What all trials share."""

    editable: EditableModel
    settings: Hyperparameters
    contexts: ContextTemplates
    rounds: list[list[EditRequest]]
    questions: Questions
    texts: tuple[str, ...]
    values: ValueStore

    def run(self, moments: SecondMoments, weight: float) -> dict[str, float]:
        """Edits round after round with C0 and a lambda, and asks everything after the last one."""
        begun = time.process_time()
        context = EditContext(
            replace(self.settings, mom2_update_weight=weight), moments, self.contexts, values=self.values
        )
        deltas: list[Delta] = []
        standing: list[EditRequest] = []
        for batch in self.rounds:
            now = replace(context, previous=tuple(deltas), earlier=tuple(standing))
            deltas.append(get_editor("nse").edit(self.editable, batch, now).delta)
            standing += batch
        edited = time.process_time()
        with patched(self.editable, compose(self.editable, deltas)):
            found = score(self.editable, [r.case_id for r in standing], self.questions, texts=self.texts).metrics
        seconds = {"edit_seconds": edited - begun, "ask_seconds": time.process_time() - edited}
        return (
            {name: found[f"{name}_generation"] for name in COLUMNS}
            | {"perplexity": found.get("perplexity", 0.0)}
            | seconds
        )

    def key_weight(self, moments: SecondMoments) -> float:
        """Median k^T C0^-1 k of the facts' keys over all layers: what lambda is large or small against; it is d_mlp for text."""
        requests = [request for batch in self.rounds for request in batch]
        keys = measure(
            self.editable, requests, self.contexts, key_layers=self.settings.layers, hidden_layer=self.settings.z_layer
        ).keys
        found = []
        for layer, own in keys.items():
            moment = moments.of(self.editable.projection_name(layer))
            lower = cholesky(empty_symmetric(len(moment), moment.device).copy_(moment))
            found.append(torch.linalg.solve_triangular(lower, own, upper=False).pow(2).sum(dim=0))
        return float(torch.cat(found).median())


def read_texts(path: Path | None) -> tuple[str, ...]:
    """Texts for perplexity, drawn from all over a file."""
    if path is None:
        return ()
    drawn = open_corpus(path).sample(characters=SENTENCES * LONGEST, seed=0)
    return tuple(text[:LONGEST] for text in drawn[:SENTENCES])


def main() -> None:
    """Runs every file with every lambda and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "requests", "hparams"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--second-moment", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--lambdas", type=float, nargs="+", required=True)
    parser.add_argument("--contexts", type=Path, help="default: the bare prompt")
    parser.add_argument("--texts", type=Path, help="for perplexity; no text of C0 should be among them")
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--asked", type=int, default=0, help="questions of each kind about a fact at most; 0: all")
    parser.add_argument("--values", type=Path, default=Path("build/second_moments_values"), help="folder for z's")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    editable = load_model(options.model)
    dataset = replace(read_dataset(options.requests, editable.tokenizer, edits=options.facts, seed=0), others=())
    trials = Trials(
        editable,
        read_hyperparameters(options.hparams).settings,
        read_contexts(options.contexts) if options.contexts else BARE,
        in_rounds(dataset.requests, options.batch),
        questions_about(dataset, None, most=options.asked),
        read_texts(options.texts),
        ValueStore(options.values),
    )
    where = machine(device_of("cpu"))
    record: dict[str, Any] = {
        "settings": trials.settings.to_dict(),
        "machine": where,
        "perplexity_of_base": perplexity_of(editable, trials.texts) if trials.texts else None,
        "rows": [],
    }
    modules = [editable.projection_name(layer) for layer in trials.settings.layers]
    for given in options.second_moment:
        name, path = given.split("=", 1)
        moments = read_second_moments(Path(path), only=modules)
        about = {
            "name": name,
            "tokens": moments.metadata.get("tokens"),
            "effective_rank": [effective_rank(moments.of(module)) for module in modules],
            "key_weight": trials.key_weight(moments),
        }
        for weight in options.lambdas:
            record["rows"].append(about | {"lambda": weight} | trials.run(moments, weight))
            write(options.json, record)
    rows = [
        (
            row["name"],
            str(row["tokens"]),
            "/".join(f"{rank:.0f}" for rank in row["effective_rank"]),
            f"{row['lambda']:g}",
            f"{row['lambda'] / row['key_weight']:.2f}",
            *(f"{100 * row[name]:.1f}" for name in COLUMNS),
            f"{row['perplexity']:.2f}",
            f"{row['edit_seconds']:.0f}",
        )
        for row in record["rows"]
    ]
    names = ("C0", "tokens", "effective rank", "lambda", "lambda / k^T C0^-1 k", *COLUMNS, "perplexity", "seconds")
    show(f"{options.facts} facts in rounds of {options.batch}, by free generation (%)", names, rows, where)


if __name__ == "__main__":
    main()
