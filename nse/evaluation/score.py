"""Teacher-forced scores: how probable a given text is under the weights in force."""

from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.batch import Progress, by_length, pad, silent
from nse.tokens import TokenizedPrompt, tokenize


@torch.no_grad()
def log_probabilities(
    editable: EditableModel, pairs: Sequence[tuple[str, str]], *, progress: Progress = silent
) -> list[tuple[float, int]]:
    """Scores each (prompt, target): the sum of the target's log-probabilities in nats, and its number of tokens."""
    prompts = [tokenize(editable.tokenizer, prompt, target=target) for prompt, target in pairs]
    scores: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
    done = 0
    for group in by_length(prompts):
        for i, score in zip(group, _score(editable, [prompts[i] for i in group]), strict=True):
            scores[i] = (score, len(prompts[i].target_ids))
        done += len(group)
        progress("probabilities", done, len(pairs))
    return scores


def _score(editable: EditableModel, prompts: Sequence[TokenizedPrompt]) -> list[float]:
    batch = pad(editable, [p.ids for p in prompts])
    hidden = editable.model.base_model(
        input_ids=batch.ids, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    rows: list[int] = []
    columns: list[int] = []
    tokens: list[int] = []
    for row, prompt in enumerate(prompts):
        rows += [row] * len(prompt.target_ids)
        columns += range(prompt.prompt_length - 1, len(prompt.ids) - 1)
        tokens += prompt.target_ids
    logs = editable.head(hidden[rows, columns]).log_softmax(-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None]).squeeze(1).double().cpu()
    sums: list[float] = torch.zeros(len(prompts), dtype=torch.float64).index_add(0, torch.tensor(rows), chosen).tolist()
    return sums


@torch.no_grad()
def perplexity(editable: EditableModel, texts: Sequence[str]) -> float:
    """exp of the mean negative log-likelihood per token over whole texts, the first token of each not counted."""
    sequences = [TokenizedPrompt(tokenize(editable.tokenizer, t).ids, 1) for t in texts]
    total, count = 0.0, 0
    for group in by_length(sequences):
        total += sum(_score(editable, [sequences[i] for i in group]))
        count += sum(len(sequences[i].ids) - 1 for i in group)
    return float(torch.exp(torch.tensor(-total / max(count, 1), dtype=torch.float64)))
