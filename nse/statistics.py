"""The estimate of second moments: C0 = E[k k^T] of the base model's keys over a sample of a corpus, per rewritten layer.

A key longer than twice the median is shortened to that. In the plain mean the few tokens whose keys are ten to six hundred times
as long as the others' (attention sinks: the first token of a text, sometimes the second, in some layers single spaces) can be
all that there is, and lambda protects nothing else. On SmolLM2-135M the limit takes the effective rank from 13, 33 and 1 at
layers 9, 10 and 11 to 213, 140 and 396, and leaves layers 4 to 8 as they are. To leave first tokens out is not enough, as they
are not the only ones (25 at layer 9, 1.1 at 11); to weigh all tokens by |k|^-2 turns it round: at layer 4 the hundredth of the
tokens with the shortest keys then has 40% of the weight.

Streamed, and resumed where it was interrupted. The files that hold the result are `nse.second_moment_files`'s.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nse.architecture import EditableModel
from nse.batch import TOKENS_PER_BATCH, Progress, by_length, halved, pad, silent
from nse.corpus import open_corpus
from nse.errors import StatisticsError
from nse.fingerprint import json_digest
from nse.patch import base_in_force
from nse.second_moment_files import SecondMoments, read_second_moments, write_tensors
from nse.spectrum import effective_rank, fresh_weight
from nse.tokens import TokenizedPrompt
from nse.trace import capture_inputs, stopped_after
from nse.windows import packed

__all__ = ["PartialFile", "Sample", "SecondMoments", "collect_second_moments", "read_second_moments"]

TOKENS_PER_NEURON = 25
"""Default budget, in tokens per neuron of the widest MLP. On SmolLM2-135M fresh text weighs 5.9, 2.2, 1.25 and 1.08 times as much
as text that C0 has seen (`nse.spectrum.fresh_weight`) after 1.7, 3.3, 10 and 20 tokens a neuron, and edits keep more of what they
should not touch with 25 or 50 than with 10 (docs/log.md). 10 are enough by arXiv 2506.04226."""
WINDOW = 512
"""Default length of a window in tokens; no more than the model's positions."""
CHARACTERS_PER_TOKEN = 16
"""More than any text has: as many characters are drawn for each token of the budget."""
TOKENS_PER_GROUP = 16 * TOKENS_PER_BATCH
"""Tokens that are read before they are sorted by length into batches."""
LONGEST_KEY = 2.0
"""The length to which longer keys are shortened, in medians."""
DOUBLINGS = 4
"""The estimate is compared with itself at a sixteenth, an eighth, a quarter and a half of the budget, and at the end."""
ROWS = 512
"""Rows of a sum that are added to at a time: little of what lies below the diagonal is computed, and a device never holds all."""
ESTIMATE = 2
"""Which estimate this is: part of every key. The first read a corpus from its beginning, and shortened no key."""
PARTIAL_KEY = "nse.second_moment.partial"
_PLAIN = ("limits", "windows", "tokens", "compared", "convergence")
"""What of an estimate's state is no tensor."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PartialFile:
    """Where unfinished sums are kept, and how many seconds lie at least between two savings."""

    path: Path
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """How much of a corpus is read, and how.

    Attributes:
        tokens: Budget; `TOKENS_PER_NEURON` x d_mlp if not given. A corpus that has fewer is read whole, once.
        window: Tokens that are read at a time, but no more than the model's positions.
        seed: Decides which passages are read, see `nse.corpus.Corpus.sample`.
    """

    tokens: int | None = None
    window: int = WINDOW
    seed: int = 0


@dataclass
class _Sums:
    """The state of an estimate: all that a resumed run needs.

    Attributes:
        totals: Sum of k k^T (d_mlp, d_mlp) float64 on the CPU by module; what is below the diagonal's blocks is not kept up.
        limits: The length to which longer keys are shortened, by module, taken from the first batch of windows.
        estimates: C0 (d_mlp, d_mlp) float32 by module as of the latest comparison.
        windows: Windows of text consumed.
        tokens: Tokens in them.
        compared: Tokens at the latest comparison.
        convergence: Comparisons so far.
    """

    totals: dict[str, torch.Tensor]
    limits: dict[str, float] = field(default_factory=dict)
    estimates: dict[str, torch.Tensor] = field(default_factory=dict)
    windows: int = 0
    tokens: int = 0
    compared: int = 0
    convergence: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def empty(cls, widths: Mapping[str, int]) -> "_Sums":
        """The sums over no token, for modules of these widths."""
        return cls({name: torch.zeros(width, width, dtype=torch.float64) for name, width in widths.items()})

    def add(self, name: str, keys: torch.Tensor) -> None:
        """Adds the outer products of keys (tokens, d_mlp), none longer than the limit, on the keys' own device.

        They are computed in float64 where the device has that type.
        """
        exact = (keys.cpu() if keys.device.type == "mps" else keys).double()
        lengths = torch.linalg.vector_norm(exact, dim=1, keepdim=True)
        limit = self.limits.setdefault(name, LONGEST_KEY * float(lengths.median()))
        exact = exact * (limit / lengths).clamp_max(1.0)
        total = self.totals[name]
        for start in range(0, total.shape[0], ROWS):
            total[start : start + ROWS, start:] += (exact[:, start : start + ROWS].T @ exact[:, start:]).to(
                total.device
            )

    def compare(self, *, last: bool = False) -> dict[str, float | None]:
        """Renews the estimates, and notes how far each moved: |C0_2n - C0_n| / |C0_2n|, Frobenius norms.

        Returns:
            The last time `fresh_weight` of the text since the comparison before, by module; else nothing.

        Raises:
            StatisticsError: If one is not finite.
        """
        before, self.estimates = self.estimates, {}
        change: dict[str, float] = {}
        fresh: dict[str, float | None] = {}
        for name, total in self.totals.items():
            upper = total.triu()
            whole = upper + upper.triu(1).T
            now = self.estimates[name] = (whole / self.tokens).float()
            if not torch.isfinite(now).all():
                raise StatisticsError(
                    f"C0 of {name} is not finite: the model overflows in its type, use bfloat16 or float32"
                )
            if before:
                seen = before.pop(name)
                change[name] = _norm(now - seen) / _norm(now)
                if last:
                    after = whole - self.compared * seen.double()
                    fresh[name] = fresh_weight(seen, after / (self.tokens - self.compared))
        if change:
            self.convergence.append({"from": self.compared, "tokens": self.tokens, "change": change})
        self.compared = self.tokens
        return fresh

    def save(self, path: Path, key: str) -> None:
        """Writes the state whole or not at all."""
        head = {n: getattr(self, n) for n in _PLAIN}
        tensors = {f"total {name}": total for name, total in self.totals.items()}
        tensors |= {f"estimate {name}": moment for name, moment in self.estimates.items()}
        write_tensors(path, tensors, {PARTIAL_KEY: json.dumps({"key": key, **head})})


@torch.no_grad()
def collect_second_moments(
    editable: EditableModel,
    corpus: Path,
    *,
    layers: Sequence[int],
    sample: Sample | None = None,
    partial: PartialFile | None = None,
    progress: Progress = silent,
) -> SecondMoments:
    """Estimates C0 of the base model over a sample of a corpus, in float64, with the base weights in force.

    Beside the model it takes 12 bytes of memory x d_mlp^2 per layer, and 40 x d_mlp^2 once at the end. The metadata has the
    digests of model, tokenizer and corpus, `key` (the digest of those, of the budget and of how texts are read), `convergence`:
    how far C0 still moved as the number of tokens doubled, and `fresh_weight`: how much the last half of the text exceeds what
    C0 had seen in the first.

    Args:
        editable: The model, in any type of weights.
        corpus: A file, folder or dataset, see `nse.corpus`.
        layers: Rewrite layers; no block above the last of them is run.
        sample: How much of the corpus is read, and how.
        partial: Where sums are kept on the way: a run that was killed goes on from there and ends with the same bytes.
            The caller removes it once the result is safe.
        progress: Called with tokens done.

    Raises:
        StatisticsError: If the corpus is missing, malformed or empty, or the model's keys are not finite.
    """
    editable.check_layers(tuple(layers))
    sample = sample or Sample()
    weights = {
        editable.projection_name(layer): editable.base_weight(editable.parameter_name(layer))
        for layer in sorted(set(layers))
    }
    widths = {name: weight.shape[1] for name, weight in sorted(weights.items())}
    source, budget = open_corpus(corpus), sample.tokens or TOKENS_PER_NEURON * max(widths.values())
    size = min(sample.window, editable.positions)
    inputs = {
        "model_digest": editable.base_digest,
        "tokenizer_digest": editable.tokenizer_digest,
        "corpus_sha256": source.digest(progress=progress),
        "budget": budget,
        "window": size,
        "seed": sample.seed,
        "estimate": ESTIMATE,
    }
    key = json_digest({**inputs, "modules": sorted(widths), "schema": 1})
    sums = _resumed(partial, key) or _Sums.empty(widths)
    saved = time.monotonic()
    texts = source.sample(characters=CHARACTERS_PER_TOKEN * budget, seed=sample.seed)
    windows = packed(editable.tokenizer, texts, size=size)
    with base_in_force(editable):
        for _ in _groups(editable, windows, layers, budget, sums):
            if partial is not None and time.monotonic() - saved >= partial.seconds:
                sums.save(partial.path, key)
                saved = time.monotonic()
            progress("second moments", sums.tokens, budget)
    if sums.tokens == 0:
        raise StatisticsError(f"{corpus} holds no text: give a UTF-8 file with one text a line")
    fresh = sums.compare(last=True) if sums.compared < sums.tokens else {}
    progress("second moments", sums.tokens, sums.tokens)
    metadata = {
        **inputs,
        "key": json_digest(inputs),
        "dtype": str(next(iter(weights.values())).dtype).removeprefix("torch."),
        "tokens": sums.tokens,
        "convergence": sums.convergence,
        "effective_rank": {name: effective_rank(moment) for name, moment in sums.estimates.items()},
        "fresh_weight": fresh,
    }
    return SecondMoments(sums.estimates, metadata)


def _groups(
    editable: EditableModel, windows: Iterator[list[int]], layers: Sequence[int], budget: int, sums: _Sums
) -> Iterator[None]:
    """Goes on reading until the budget or the text is spent; yields after each group of windows that is in the sums."""
    stops = [-(-budget // 2**k) for k in range(DOUBLINGS, -1, -1)]
    windows = islice(windows, sums.windows, None)
    while sums.tokens < budget:
        stop = next(s for s in stops if s > sums.tokens)
        group = _group(windows, min(stop - sums.tokens, TOKENS_PER_GROUP), budget - sums.tokens)
        if not group:
            return
        for batch in by_length([TokenizedPrompt(tuple(window), len(window)) for window in group]):
            for name, keys in _keys(editable, layers, [group[i] for i in batch]).items():
                sums.add(name, keys)
        sums.windows += len(group)
        sums.tokens += sum(len(window) for window in group)
        if stop <= sums.tokens < budget:
            sums.compare()
        yield


def _group(windows: Iterator[list[int]], enough: int, most: int) -> list[list[int]]:
    """Windows until they have `enough` tokens; the last is cut so that they have `most` at most."""
    group: list[list[int]] = []
    count = 0
    for window in windows:
        group.append(window[: most - count])
        count += len(group[-1])
        if count >= enough:
            break
    return group


def _keys(editable: EditableModel, layers: Sequence[int], windows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Keys (tokens, d_mlp) of every real token, by module, in the model's type and on the module's device."""
    modules = {editable.projection_name(layer): editable.projection(layer) for layer in layers}

    def run(part: Sequence[Sequence[int]]) -> list[dict[str, torch.Tensor]]:
        batch = pad(editable, part)
        with capture_inputs(modules) as inputs, stopped_after(editable, max(layers)):
            editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        return [{n: seen[row, : len(window)] for n, seen in inputs.items()} for row, window in enumerate(part)]

    rows = halved(run, windows, what="windows of text")
    return {name: torch.cat([row[name] for row in rows]) for name in modules}


def _resumed(partial: PartialFile | None, key: str) -> _Sums | None:
    """The state that an interrupted run over the very same inputs left, if any."""
    if partial is None or not partial.path.is_file():
        return None
    try:
        with safe_open(partial.path, framework="pt") as file:
            head = json.loads((file.metadata() or {}).get(PARTIAL_KEY, "{}"))
            if head.pop("key", "") != key:
                _log.info("%s belongs to other inputs: it is not used", partial.path)
                return None
            tensors = [(*name.split(" ", 1), file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        _log.warning("%s cannot be read (%s): starting from the beginning", partial.path, error)
        return None
    kinds: dict[str, dict[str, torch.Tensor]] = {"total": {}, "estimate": {}}
    for kind, name, tensor in tensors:
        kinds[kind][name] = tensor
    return _Sums(kinds["total"], estimates=kinds["estimate"], **head)


def _norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
