"""A model's own text, for second moments where no other text is at hand: seeded samples, one a line.

`python -m demo.smollm2.corpus --model DIR --output FILE`

What a model says by itself is what its keys mostly are; nothing has to be fetched, and the same seed gives the same text.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from flows.progress import Progress, shown
from nse.architecture import EditableModel, load_model

OPENINGS = (
    "The history of", "In the north of", "One day, a", "Scientists have found that", "The first time that", "Once upon a time",
    "The city of", "In mathematics,", "Her mother said", "The law requires that", "A good recipe for", "The river flows",
    "When the war ended,", "Many people believe that", "The human body", "Plants need", "Music is", "The company announced",
    "In the year 1900,", "Children learn", "The president of", "To build a house,", "The novel tells", "Animals such as",
    "The theory of", "On the other hand,", "It was raining when", "The main difference between", "Computers can", "Art is",
    "The largest country", "He was born in",
)  # fmt: skip
"""Texts begin with these, each in turn: a model that begins with nothing mostly writes about the same few things."""
TOP = 40
"""Most probable tokens among which each next one is drawn."""


@torch.no_grad()
def own_texts(editable: EditableModel, *, tokens: int, seed: int, rows: int, progress: Progress) -> list[str]:
    """Samples texts from the model, `rows` at a time, until they have about `tokens` tokens together.

    Each batch of texts begins with the same number of tokens, so that none needs a pad.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    tokenizer = editable.tokenizer
    starts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in OPENINGS]
    length = min(map(len, starts))
    each = -(-tokens // rows)
    ids = torch.tensor([starts[row % len(starts)][:length] for row in range(rows)], device=editable.device)
    said, past = ids, None
    while said.shape[1] < each:
        out = editable.model(input_ids=ids, past_key_values=past, use_cache=True)
        top = out.logits[:, -1].float().cpu().topk(TOP)
        drawn = torch.multinomial(top.values.softmax(dim=-1), 1, generator=generator)
        ids, past = top.indices.gather(1, drawn).to(editable.device), out.past_key_values
        said = torch.cat([said, ids], dim=1)  # (rows, tokens so far)
        progress("the model writes", said.numel(), each * rows)
    return [" ".join(editable.decode(row).split()) for row in said.tolist()]


def write_own_text(model: Path, path: Path, *, tokens: int = 16_000, seed: int = 0, rows: int = 64) -> None:
    """Writes a model's own text to a file, one sample a line."""
    with shown(Console(stderr=True)) as progress:
        texts = own_texts(load_model(model), tokens=tokens, seed=seed, rows=rows, progress=progress)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_own_text(options.model, options.output, tokens=options.tokens, seed=options.seed)


if __name__ == "__main__":
    main()
