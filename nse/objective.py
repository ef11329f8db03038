"""The objective of z and its minimisation: one delta per subject, or per fact, where it is written, under the weights in force.

The only place where z is computed. It caches nothing and changes no weight; `nse.values` puts the base weights in force.
"""

from collections.abc import Sequence

import torch

from nse.architecture import EditableModel
from nse.contexts import ContextTemplates, within
from nse.errors import TokenError
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.rows import Rows, Text, read_together, rows_of
from nse.steps import step_of, written_in
from nse.subjects import HeldFact, SubjectFacts, by_subject
from nse.tokens import TokenizedPrompt, tokenize_template

KL_TEMPLATE = "{} is a"

TOKENS_OF_A_BATCH = 24
"""What a batch costs beside its tokens, in tokens: every weight is read from memory, and every module is called."""


def contexts_of_values(contexts: ContextTemplates, hyperparameters: Hyperparameters) -> ContextTemplates:
    """The contexts in which z is optimised."""
    return contexts[:1] if hyperparameters.value_contexts == "first" else contexts


def texts_of(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    group: SubjectFacts,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
) -> list[Text]:
    """All texts of one subject: its corrections in every context of z's, "{subject} is a", and the facts to hold.

    Where a fact is written token by token (`nse.steps`), it is asked for the one token alone, and the last two are left out: its
    delta is no part of them.

    Raises:
        TokenError: If a text cannot be tokenised, or a target has a token that the model cannot produce.
    """
    templates = [c for g in contexts_of_values(contexts, hyperparameters) for c in g]
    members = [requests[i] for i in group.members]
    texts = []
    for member, request in enumerate(members):
        for template in templates:
            text = within(template, request.prompt_template)
            prompt = written_in(
                editable.tokenizer,
                text,
                request,
                fact_token=hyperparameters.fact_token,
                target=_with_ending(request.target_new, hyperparameters),
            )
            if max(prompt.target_ids) >= editable.vocabulary:
                raise TokenError(
                    f"target {request.target_new!r} has a token beyond the model's {editable.vocabulary}: "
                    "the model cannot produce it"
                )
            scored = _before_target(prompt)
            if at_last := hyperparameters.fact_token == "last":
                scored = scored[step_of(request) :][:1]
            share = 1 / (len(members) * len(templates) * len(scored))
            texts.append(Text(prompt, scored, share, kept=False, member=member))
    if at_last:
        return texts
    essence = tokenize_template(editable.tokenizer, KL_TEMPLATE, members[0].subject)
    at = essence.fact_token
    texts.append(Text(essence, range(at, at + 1), hyperparameters.kl_factor, kept=True))
    for fact in group.held:
        prompt = tokenize_template(editable.tokenizer, fact.prompt_template, fact.subject, target=fact.object)
        share = hyperparameters.hold_factor / (len(group.held) * len(prompt.target_ids))
        texts.append(Text(prompt, _before_target(prompt), share, kept=True))
    return texts


def _with_ending(target: str, hyperparameters: Hyperparameters) -> str:
    """A target with what shall end it, where its facts are written at their subjects and it has no end of its own."""
    bare = hyperparameters.fact_token == "last" or not target.rstrip()[-1:].isalnum()
    return target if bare else target.rstrip() + hyperparameters.target_ending


def _before_target(prompt: TokenizedPrompt) -> range:
    return range(prompt.prompt_length - 1, len(prompt.ids) - 1)


def compute_z(
    editable: EditableModel,
    requests: Sequence[EditRequest],
    *,
    contexts: ContextTemplates,
    hyperparameters: Hyperparameters,
    held: Sequence[HeldFact] = (),
) -> torch.Tensor:
    """z (n, d_model) float32 on the CPU of all `requests` in one batch, under the weights that the model holds."""
    groups = by_subject(requests, held, joint=hyperparameters.one_z_per_subject)
    texts = [texts_of(editable, requests, group, contexts, hyperparameters) for group in groups]
    z = torch.zeros(len(requests), int(editable.model.config.hidden_size))
    for group, found in zip(groups, minimise(editable, texts, hyperparameters), strict=True):
        z[list(group.members)] = found
    return z


def minimise(
    editable: EditableModel,
    subjects: Sequence[Sequence[Text]],
    hyperparameters: Hyperparameters,
    *,
    memory: int | None = None,
) -> list[torch.Tensor]:
    """Optimises z = h + delta for several subjects at once, each with one delta, its own Adam state and its own end.

    delta minimises the mean over a subject's corrections and contexts of -log p(target_new) per token, + kl_factor *
    KL(edited || base) at "{subject} is a", + hold_factor * the mean of the same at its held facts, + v_weight_decay *
    |delta| / |h|^2, projected to |delta| <= clamp_norm_factor * |h| after each step; |h| is the mean over the corrections.
    A delta is done when its loss is below `v_loss_target`, or when its targets have been the most probable tokens for more
    than `v_patience` steps on end, if that is set. Only the layers above z's are run, and only the tokens from where it is
    written on: the others do not depend on delta. A text that another one of the subject begins with is read there.
    Gradients are summed over batches of texts of like length, so the memory that a step needs does not depend on how many
    subjects there are.

    Args:
        editable: The model with the weights under which z is wanted.
        subjects: The texts of each subject (`texts_of`).
        hyperparameters: Settings.
        memory: Most bytes of activations in one batch of texts, by estimate; by the device if not given.

    Returns:
        Per subject, z (members, d_model) float32 on the CPU.

    References:
        arXiv 2410.04045, step 1; the objective is ROME's equation 4 (arXiv 2202.05262), as in MEMIT (arXiv 2210.07229,
        appendix A).

    Deviation: corrections of one subject share delta, and known facts can be held; with one correction and none held, this is
        the published objective.
    """
    hp = hyperparameters
    batches, h, owner = _prepared(editable, subjects, hp.z_layer, memory or default_memory(editable))
    norm = torch.zeros(len(subjects), device=h.device).index_add(0, owner, h.norm(dim=1))
    norm = norm / torch.bincount(owner, minlength=len(subjects))
    limit = (hp.clamp_norm_factor * norm)[:, None]
    delta = torch.zeros(len(subjects), h.shape[1], device=h.device, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hp.v_lr)
    active = torch.ones(len(subjects), dtype=torch.bool, device=h.device)
    right = torch.zeros(len(subjects), device=h.device)  # steps on end for which all targets were the most probable
    for _ in range(hp.value_updates):
        optimizer.zero_grad()
        penalty = hp.v_weight_decay * delta.norm(dim=1) / norm**2
        torch.autograd.backward(penalty.sum())
        loss, missed = penalty.detach().clone(), torch.zeros_like(right)
        for rows in batches:
            logits = rows.logits(editable, delta, hp.z_layer)
            share = _shares(rows, logits)
            torch.autograd.backward(share.sum())
            loss.index_add_(0, rows.subject[rows.row], share.detach())
            if hp.v_patience:
                wrong = (logits.detach().argmax(dim=-1) != rows.token) & ~rows.kept
                missed.index_add_(0, rows.subject[rows.row], wrong.to(missed.dtype))
        right = (right + 1) * (missed == 0)
        open_ = active & (loss >= hp.v_loss_target)
        if hp.v_patience:
            open_ &= right <= hp.v_patience
        if not bool(open_.any()):
            break
        frozen = delta.detach().clone()
        optimizer.step()
        with torch.no_grad():
            projected = delta * (limit / delta.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
            delta.copy_(torch.where(open_[:, None], projected, frozen))
        if not torch.equal(open_, active):
            active = open_
            batches = [rows for batch in batches if len((rows := batch.of(active)).ids)]
    z = (h + delta.detach()[owner]).float().cpu()
    return [z[(owner == subject).cpu()] for subject in range(len(subjects))]


def default_memory(editable: EditableModel) -> int:
    """Bytes of activations in one batch of texts."""
    return 1 << 28 if editable.device.type == "cpu" else 1 << 31


def _prepared(
    editable: EditableModel, subjects: Sequence[Sequence[Text]], z_layer: int, memory: int
) -> tuple[list[Rows], torch.Tensor, torch.Tensor]:
    """Texts of like length in batches; h (n, d_model) float32 of each correction in its first context, and its subject (n,)."""
    lines = [(subject, places) for subject, own in enumerate(subjects) for places in read_together(own)]
    together = [[subjects[subject][place] for place in places] for subject, places in lines]
    order = sorted(range(len(lines)), key=lambda i: (together[i][0].after, together[i][0].prompt.fact_token))
    hidden: dict[tuple[int, int], torch.Tensor] = {}
    batches = []
    for part in _parts(editable, [together[i] for i in order], z_layer, memory):
        chosen = [order[i] for i in part]
        rows = rows_of(editable, [together[i] for i in chosen], [lines[i][0] for i in chosen], z_layer)
        for i, state in zip(chosen, rows.states[:, 0].float(), strict=True):
            subject, places = lines[i]
            hidden |= {(subject, place): state for place in places}
        batches.append(rows)
    first: dict[tuple[int, int], torch.Tensor] = {}
    for subject, own in enumerate(subjects):
        for place, text in enumerate(own):
            if text.member >= 0:
                first.setdefault((subject, text.member), hidden[subject, place])
    owner = torch.tensor([subject for subject, _ in first], device=editable.device)
    return batches, torch.stack(list(first.values())), owner


def _parts(editable: EditableModel, lines: Sequence[Sequence[Text]], z_layer: int, memory: int) -> list[range]:
    """Places of `lines`, which stand by length, in batches of about `memory` bytes of activations, at least one each.

    Of all ways to cut them the cheapest: a pad costs what a token costs, and a batch as much as `TOKENS_OF_A_BATCH`.
    """
    width = int(editable.model.config.hidden_size)
    inner = editable.base_weight(editable.parameter_name(z_layer)).shape[1]
    per_token = 4 * (editable.layers - z_layer) * (16 * width + 4 * inner)  # what each layer keeps for its gradient
    scored = [sum(len(text.scored) for text in texts) for texts in lines]
    cheapest: list[tuple[float, int]] = [(0, 0)]  # of the first so many: the cost, and where the last batch begins
    for end in range(1, len(lines) + 1):
        longest, positions = lines[end - 1][0].after, 0
        best = (float("inf"), end)
        for start in range(end - 1, -1, -1):
            positions += scored[start]
            tokens = longest * (end - start)
            if start < end - 1 and tokens * per_token + 4 * 3 * editable.vocabulary * positions > memory:
                break
            best = min(best, (cheapest[start][0] + TOKENS_OF_A_BATCH + tokens, start))
        cheapest.append(best)
    parts: list[range] = []
    end = len(lines)
    while end:
        parts.append(range(cheapest[end][1], end))
        end = cheapest[end][1]
    return parts[::-1]


def _shares(rows: Rows, logits: torch.Tensor) -> torch.Tensor:
    """What each scored position (m,) adds to its subject's loss, from logits (m, vocabulary)."""
    shares = torch.zeros(len(rows.kept), device=logits.device)
    wanted, kept = (~rows.kept).nonzero().squeeze(1), rows.kept.nonzero().squeeze(1)
    if len(wanted):
        surprise = torch.nn.functional.cross_entropy(logits[wanted], rows.token[wanted], reduction="none")
        shares = shares.index_add(0, wanted, surprise)
    if len(kept):
        logs = logits[kept].log_softmax(dim=-1)
        shares = shares.index_add(0, kept, (logs.exp() * (logs - rows.reference)).sum(dim=1))
    return rows.weight * shares
