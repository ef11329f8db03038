"""Trains the demo model: a GPT-2 of its own that knows the demo world, from scratch, on two CPU cores.

Owns the tokenizer, the training loop and the self-test of the result (`metrics.json`). Run by the DVC stage `demo_model`.

Information-flow dropout: in a part of the documents (`ROUTED`) the tokens after a subject may read that subject only at its
last token, and only from layer `ENRICHED_LAYER` on. Large language models do so by themselves (the subject's last token is
enriched by the early MLPs, later tokens extract the attribute: Geva et al., arXiv 2304.14767); a small one that merely
memorises looks the fact up at the last token of the prompt instead, out of an editor's reach (`docs/method.md`).
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from demo.world import Sentence, World, documents, read_world

BOS = "<|endoftext|>"
ENRICHED_LAYER = 3
ROUTED = 0.6
"""Share of documents with information-flow dropout."""


def train_tokenizer(world: World, vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with few merges: wordings become whole tokens, names are composed of pieces that other names share."""
    lines = [t.format("") for ts in world.templates.values() for t in ts] * 8 + list(world.lead_ins) * 8
    lines += [" " + o for os in world.objects.values() for o in os] * 2
    lines += [" " + f.subject for f in world.facts]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        pad_token=BOS,
        unk_token=BOS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


class Encoder:
    """Turns documents into token ids with the spans of their subjects; every distinct sentence is tokenised once."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Wraps `tokenizer`, which must report character offsets."""
        self._tokenizer = tokenizer
        self._cache: dict[str, list[int]] = {}
        self._spans: dict[tuple[str, str], tuple[list[int], int, int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            self._cache[text] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._cache[text]

    def _prompt(self, text: str, subject: str) -> tuple[list[int], int, int]:
        key = (text, subject)
        if key not in self._spans:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            start = text.index(subject)
            end = start + len(subject)
            inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end and b > start]
            self._spans[key] = (encoded["input_ids"], inside[0], inside[-1])
        return self._spans[key]

    def encode(self, sentences: list[Sentence]) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns token ids with BOS in front and EOS behind, and per sentence the (first, last) token of its subject."""
        ids, spans = [self._tokenizer.bos_token_id], []
        for i, s in enumerate(sentences):
            prompt, first, last = self._prompt(s.prompt if i == 0 else " " + s.prompt, s.subject)
            spans.append((len(ids) + first, len(ids) + last))
            ids += prompt + self._ids(f" {s.object}.")
        return [*ids, self._tokenizer.eos_token_id], spans


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_batch(encoded: list[tuple[list[int], list[tuple[int, int]]]], *, routed: list[bool], limit: int) -> Batch:
    """Pads documents to one tensor and builds the masks of the lower and of the upper layers.

    Returns `ids` (n, t), `labels` (n, t) with -100 where nothing is predicted, and two boolean masks (n, 1, t, t).
    """
    longest = max(len(ids) for ids, _ in encoded)
    t = min(limit, -(-longest // 32) * 32)  # few distinct shapes: each new one costs the CPU kernels a compilation
    ids = torch.zeros(len(encoded), t, dtype=torch.long)
    labels = torch.full((len(encoded), t), -100)
    lower = torch.ones(t, t, dtype=torch.bool).tril().expand(len(encoded), 1, t, t).clone()
    upper = lower.clone()
    for i, (tokens, spans) in enumerate(encoded):
        tokens = tokens[:t]
        ids[i, : len(tokens)] = torch.tensor(tokens)
        labels[i, : len(tokens)] = ids[i, : len(tokens)]
        if routed[i]:
            for first, last in spans:
                if last < t:
                    lower[i, 0, last + 1 :, first : last + 1] = False
                    upper[i, 0, last + 1 :, first:last] = False
    return ids, labels, lower, upper


def forward_loss(model: GPT2LMHeadModel, batch: Batch) -> torch.Tensor:
    """Mean next-token loss with one attention mask below `ENRICHED_LAYER` and another from it on."""
    ids, labels, lower, upper = batch
    body = model.transformer
    hidden = body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))
    for index, block in enumerate(body.h):
        hidden = block(hidden, None, lower if index < ENRICHED_LAYER else upper)
    logits = model.lm_head(body.ln_f(hidden)[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def batches(world: World, encoder: Encoder, *, seed: int, size: int, limit: int) -> Iterator[Batch]:
    """Yields batches without end, documents of like length together."""
    generator = random.Random(seed + 1)
    source = documents(world, seed=seed)
    while True:
        pool = sorted((encoder.encode(d) for d in islice(source, size * 16)), key=lambda e: len(e[0]))
        groups = [pool[i : i + size] for i in range(0, len(pool), size)]
        generator.shuffle(groups)
        for group in groups:
            yield make_batch(group, routed=[generator.random() < ROUTED for _ in group], limit=limit)


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 3% of the steps, constant until 60%, then a linear fall to 2%."""
    if step < 0.03 * steps:
        return (step + 1) / (0.03 * steps)
    return 1.0 if step < 0.6 * steps else max(0.02, (steps - step) / (0.4 * steps))


def train(
    model: GPT2LMHeadModel, world: World, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]
) -> list[float]:
    """Trains in bfloat16 autocast with Muon on the matrices and AdamW on the rest; returns the loss of every step."""
    matrices = [p for n, p in model.transformer.h.named_parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=settings["muon_lr"], weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings["adam_lr"], betas=(0.9, 0.98), weight_decay=0.0),
    ]
    steps = settings["steps"]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: learning_rate_factor(s, steps)) for o in optimizers]
    source = batches(
        world, Encoder(tokenizer), seed=settings["seed"], size=settings["batch"], limit=model.config.n_positions
    )
    losses: list[float] = []
    tokens, begun = 0, time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)
        for batch in islice(source, steps):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = forward_loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            tokens += int((batch[1] != -100).sum())
            rate = tokens / (time.monotonic() - begun)
            progress.update(
                task, advance=1, description=f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}, {rate:,.0f} tokens/s"
            )
    return losses


def build(world: World, settings: dict[str, Any]) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Makes the tokenizer and the untrained model of `settings`."""
    torch.manual_seed(settings["seed"])
    tokenizer = train_tokenizer(world, settings["vocabulary"])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings["positions"],
        n_embd=settings["width"],
        n_layer=settings["layers"],
        n_head=settings["heads"],
        n_inner=settings["inner"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config), tokenizer


def main() -> None:
    """Trains and saves the demo model with the settings of `params.yaml`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=Path, default=Path("demo/training.yaml"))
    parser.add_argument("--output", type=Path, default=Path("demo/model"))
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    settings = yaml.safe_load(options.params.read_text())
    if options.steps:
        settings["steps"] = options.steps
    world = read_world()
    model, tokenizer = build(world, settings)
    losses = train(model, world, tokenizer, settings)
    model.to(torch.float16).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    (options.output.parent / "training_metrics.json").write_text(
        json.dumps(
            {"loss": sum(losses[-100:]) / len(losses[-100:]), "parameters": sum(p.numel() for p in model.parameters())}
        )
    )
    assert math.isfinite(losses[-1])


if __name__ == "__main__":
    main()
