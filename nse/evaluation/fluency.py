"""Free text: how varied it is, and how like the texts that are written about the new object.

References:
    ROME (arXiv 2202.05262), section 3.3: generation entropy and reference score. The published tables show 100 times these.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, by_length, halved, silent
from nse.errors import TokenError
from nse.evaluation.prefixes import gathered, run
from nse.fingerprint import json_digest
from nse.memories import routed
from nse.request import EditRequest
from nse.tokens import TokenizedPrompt, tokenize

WEIGHTS = {2: 1 / 3, 3: 2 / 3}
"""What the entropies of word pairs and triples count."""
TOKENS = 100
"""Tokens of a free text, its prompt included."""
TOP = 5
"""The next token is drawn from so many."""
TOKENS_PER_GROUP = 256
"""Padded tokens of the prompts that are continued together."""


def ngram_entropy(text: str) -> float:
    """Weighted entropy of the text's pairs and triples of words, in bits: low where it repeats itself.

    Deviation:
        Words are runs of letters and digits, and single signs; the published code uses NLTK's tokenizer, which takes
        contractions apart and keeps abbreviations whole.
    """
    words = re.findall(r"\w+|[^\w\s]", text)
    return sum(
        weight * _entropy(Counter(zip(*(words[i:] for i in range(n)), strict=False))) for n, weight in WEIGHTS.items()
    )


def _entropy(counts: Counter[tuple[str, ...]]) -> float:
    total = counts.total()
    return -math.fsum(count / total * math.log2(count / total) for count in counts.values())


@dataclass(frozen=True, slots=True)
class TfIdf:
    """How telling each word is, by a collection of texts; other words count nothing."""

    idf: Mapping[str, float]

    @classmethod
    def of(cls, documents: Sequence[str]) -> "TfIdf":
        """Inverse document frequencies, smoothed: ln((1 + n) / (1 + documents with the word)) + 1."""
        counts = Counter(word for document in documents for word in set(_terms(document)))
        return cls({word: math.log((1 + len(documents)) / (1 + count)) + 1 for word, count in counts.items()})

    def similarity(self, a: str, b: str) -> float:
        """Cosine of two texts' vectors of word counts times inverse document frequencies; 0 if one has no known word."""
        first, second = ({w: n * self.idf[w] for w, n in Counter(_terms(t)).items() if w in self.idf} for t in (a, b))
        norms = math.hypot(*first.values()) * math.hypot(*second.values())
        return math.fsum(value * second.get(word, 0.0) for word, value in first.items()) / norms if norms else 0.0


def _terms(text: str) -> list[str]:
    """Words of two letters or more, in lower case."""
    return re.findall(r"\b\w\w+\b", text.lower())


def free_text_metrics(
    editable: EditableModel,
    requests: Iterable[EditRequest],
    *,
    references: Mapping[str, Sequence[str]] | None = None,
    tokens: int = TOKENS,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, float]:
    """Lets the weights in force write on from the generation prompts of each request, and judges what they write.

    Args:
        editable: The model.
        requests: Those without generation prompts are left out.
        references: Texts about the new object by `case_id`; word frequencies are taken from all of them.
        tokens: Tokens of a text, its prompt included.
        seed: Of the draws.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        `fluency`, the mean entropy in bits of a case's texts, over the cases; `consistency`, the similarity of a case's
        texts, taken as one, to its references, over the cases that have some. What has no case is left out.

    Raises:
        TokenError: If a prompt has no token or does not fit the model.
    """
    asked = [r for r in requests if r.generation_prompts]
    prompts = [prompt for r in asked for prompt in r.generation_prompts]
    texts = iter(continued(editable, prompts, tokens=tokens, seed=seed, progress=progress))
    written = {r.case_id: [next(texts) for _ in r.generation_prompts] for r in asked}
    found: dict[str, float] = {}
    if written:
        found["fluency"] = _mean([_mean([ngram_entropy(t) for t in own]) for own in written.values()])
    known = {case: own for case, own in (references or {}).items() if case in written and own}
    if known:
        vectors = TfIdf.of(list(dict.fromkeys(text for own in (references or {}).values() for text in own)))
        found["consistency"] = _mean(
            [vectors.similarity(" ".join(written[c]), " ".join(own)) for c, own in known.items()]
        )
    return found


@torch.no_grad()
def continued(
    editable: EditableModel, prompts: Sequence[str], *, tokens: int = TOKENS, seed: int = 0, progress: Progress = silent
) -> list[str]:
    """Writes on from each prompt, drawing each token from the `TOP` most probable ones; an EOS does not end a text.

    A text ends early where the model's logits are no numbers, as those of a ruined model may be.

    Args:
        editable: The model with the weights in force.
        prompts: Where the texts begin; equal ones are continued alike.
        tokens: Tokens of a text, its prompt included; a longer prompt is left as it is.
        seed: With the prompt's own tokens it decides the draws, whatever is asked beside it.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        The texts with their prompts.

    Raises:
        TokenError: If a prompt has no token or does not fit the model.
    """
    unique = list(dict.fromkeys(prompts))
    texts: dict[str, str] = {}
    for route in routed(editable, unique):
        own = [unique[i] for i in route.places]
        rows = [_row(editable, prompt, before, tokens) for prompt, before in zip(own, route.before, strict=True)]
        with route.voice():
            for group in by_length([TokenizedPrompt(row.ids, len(row.ids)) for row in rows], tokens=TOKENS_PER_GROUP):
                written = halved(partial(_drawn, editable, seed), [rows[i] for i in group], what="texts")
                texts |= {own[i]: editable.decode(ids) for i, ids in zip(group, written, strict=True)}
                progress("free text", len(texts), len(unique))
    return [texts[prompt] for prompt in prompts]


@dataclass(frozen=True, slots=True)
class _Row:
    """What is run as the beginning of a text, how much of it is the text's own, and how long it shall be as a whole."""

    ids: tuple[int, ...]
    own: int
    limit: int


def _row(editable: EditableModel, prompt: str, before: str, tokens: int) -> _Row:
    own = tokenize(editable.tokenizer, prompt).ids
    if not own:
        raise TokenError(f"prompt {prompt!r} has no token: nothing can be written after it")
    if not before:
        return _Row(own, 0, min(tokens, editable.positions))
    whole = tokenize(editable.tokenizer, before, target=prompt)
    said = whole.prompt_length
    return _Row(whole.ids, said, min(tokens + said, editable.positions))


def _drawn(editable: EditableModel, seed: int, rows: Sequence[_Row]) -> list[list[int]]:
    """The tokens of texts that go on from `rows`, a token at a time."""
    generators = [torch.Generator().manual_seed(int(json_digest([seed, row.ids])[:15], 16)) for row in rows]
    texts = [list(row.ids) for row in rows]
    open_ = [i for i, row in enumerate(rows) if len(row.ids) < row.limit]
    hidden, prefix = run(editable, texts, keep=bool(open_))
    if open_:
        prefix = gathered([(prefix, i, len(texts[i])) for i in open_])
    last = hidden[open_, [len(texts[i]) - 1 for i in open_]]
    while open_:
        top = editable.head(last).double().cpu().topk(min(TOP, editable.vocabulary))
        chances = top.values.softmax(-1)
        sound = chances.isfinite().all(-1).tolist()  # a model whose logits are no numbers says nothing more
        for row, i in enumerate(open_):
            if sound[row]:
                texts[i].append(int(top.indices[row, torch.multinomial(chances[row], 1, generator=generators[i])]))
        stay = [row for row, i in enumerate(open_) if sound[row] and len(texts[i]) < rows[i].limit]
        open_, prefix = [open_[row] for row in stay], prefix.select(stay)
        if open_:
            hidden, prefix = run(editable, [texts[i][-1:] for i in open_], after=prefix)
            last = hidden[:, -1]
    return [text[row.own :] for text, row in zip(texts, rows, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
