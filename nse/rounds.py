"""A round of locate-then-edit: z's, then layer by layer the keys, a solve and the new weight, in one pass or in several.

What the methods of this family differ in is a `Policy`; which settings a paper does without is its editor's matter.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from nse.architecture import EditableModel
from nse.contexts import BARE
from nse.delta import Delta
from nse.editors.base import CaseReport, EditContext, EditResult, Status
from nse.factors import PastKeys
from nse.hyperparameters import Hyperparameters
from nse.keys import KeyTexts, Measurement
from nse.postnorm import change_before_norm
from nse.prompt_keys import around, prompt_keys
from nse.request import EditRequest
from nse.spectrum import Dominant, dominant
from nse.steps import Step, facts_of_round
from nse.subjects import HeldFact, fact_key, of_other_subjects, subject_key
from nse.writing import Columns, check_round, in_force, timed, values_of


@dataclass(frozen=True, slots=True)
class System:
    """What one layer is asked to write.

    Attributes:
        keys: K (d_mlp, n) of the facts to write.
        residual: R (d_out, n) that the update shall add.
        second_moment: C0 (d_mlp, d_mlp) of the base model.
        converged: Keys (d_mlp, m) of the facts of the round that have reached their z's in an earlier pass.
        kept: Keys (d_mlp, s) where nothing shall change, times the root of their weight, if the settings ask for any.
        past: K_p of the active deltas.
    """

    keys: torch.Tensor
    residual: torch.Tensor
    second_moment: torch.Tensor
    converged: torch.Tensor
    kept: torch.Tensor | None
    past: PastKeys


Solve = Callable[[System, Hyperparameters], tuple[torch.Tensor, torch.Tensor]]
"""Gives the update as left (d_out, n) and right (n, d_mlp), column j and row j being fact j's."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a method does in its own way.

    Attributes:
        method: Its name.
        solve: Its closed form.
        rewind: Whether z is computed under the base weights; if not, under those that the round starts from.
        earlier_keys: Whether the keys of earlier rounds are in the solve.
    """

    method: str
    solve: Solve
    rewind: bool
    earlier_keys: bool = True


def edit_round(
    editable: EditableModel, requests: Sequence[EditRequest], context: EditContext, policy: Policy
) -> EditResult:
    """Writes a round by a method's policy; see `nse.editors.base.Editor.edit`."""
    hp, seconds = context.hyperparameters, defaultdict[str, float](float)
    check_round(editable, requests, context)
    facts = facts_of_round(editable, requests, context.earlier, hp)
    with in_force(editable, context, hp.written_layers) as columns:
        with timed(seconds, "values"):
            # the weights of a first round are the base weights, so that its z's are in the cache for every method
            rewind = policy.rewind or not context.previous
            values = {hp.z_layer: values_of(editable, facts, context, rewind=rewind)}
            if hp.write_layers == "ends" and hp.layers[0] != hp.z_layer:
                first = replace(context, hyperparameters=replace(hp, layers=hp.layers[:1]))
                values[hp.layers[0]] = values_of(editable, facts, first, rewind=rewind)
        z = {layer: limited(found, hp.z_norm_limit).double().T for layer, found in values.items()}
        delta, cases = _Round(editable, facts, len(requests), z, context, policy, columns, seconds).run()
    return EditResult(delta, values[hp.z_layer][: len(requests)], cases, dict(seconds))


def limited(values: torch.Tensor, limit: float) -> torch.Tensor:
    """Values (n, d_model), those longer than `limit` times their mean length shortened to that; 0 leaves all as they are."""
    if not limit:
        return values
    lengths = values.double().norm(dim=1, keepdim=True)
    shortened: torch.Tensor = values * (limit * lengths.mean() / lengths).clamp_max(1.0).to(values.dtype)
    return shortened


class _Round:
    """The state of one round of edits while its weights are in force in the model.

    Its facts are the requests and, after them, what belongs to them: companions, which are earlier corrections of the same
    subjects, written again to the z that they share with the requests and belonging to the requests of their subject; or further
    steps, which belong to the request whose target they are of.
    """

    def __init__(
        self,
        editable: EditableModel,
        facts: Sequence[EditRequest],
        requested: int,
        z: dict[int, torch.Tensor],
        context: EditContext,
        policy: Policy,
        columns: dict[int, Columns],
        seconds: dict[str, float],
    ) -> None:
        self.editable, self.facts, self.requested, self.z = editable, facts, requested, z
        self.context, self.policy, self.columns, self.seconds = context, policy, columns, seconds
        self.hp = context.hyperparameters
        self.texts = self._texts(facts, first_written=min(columns))
        self.owners: dict[str, list[int]] = {}  # the written requests, by what belongs to them
        self.protected = {layer: self._protected(layer) for layer in columns if self.hp.protected_directions}

    def run(self) -> tuple[Delta, tuple[CaseReport, ...]]:
        layers = tuple(self.columns)
        state = self._measure(self.hp.z_layer)
        before = self._distances(state)
        written = self._written(self._of_requests(before) < self.hp.upper_bound)
        for place in written[written < self.requested].tolist():
            self.owners.setdefault(self._owner(self.facts[place]), []).append(place)
        now = self._corrected_again(written)
        past = {layer: self._past(layer, now) for layer in layers}
        kept = self._kept()
        open_, after = written, before
        for number in range(self.hp.max_passes):
            if open_.numel() == 0:
                break
            converged = written[~torch.isin(written, open_)]
            for done, layer in enumerate(layers):
                system = System(
                    keys=state.keys[layer][:, open_],
                    residual=self._residual(layer, open_, state, len(layers) - done),
                    second_moment=self.context.second_moments.of(self.editable.projection_name(layer)),
                    converged=state.keys[layer][:, converged],
                    kept=kept.get(layer),
                    past=past[layer],
                )
                self._write(layer, system, open_)
                state = self._measure(self.hp.z_layer, changed=layer)
                self.context.progress(f"pass {number + 1}", done + 1, len(layers))
            after = self._distances(state)
            open_ = written[after[written] > self.hp.alpha]
        return self._delta(written, state), self._cases(written, self._of_requests(before), self._of_requests(after))

    def _protected(self, layer: int) -> Dominant:
        """The protected directions of a base weight, kept beside the factors of C0."""
        name, amount = self.columns[layer].name, self.hp.protected_directions
        found = self.context.factors.remembered(
            f"dominant {amount!r} {self.editable.tensor_digests[name]}",
            lambda: asdict(dominant(self.editable.base_weight(name), amount)),
        )
        return Dominant(**found)

    def _measure(self, hidden_layer: int, *, changed: int | None = None) -> Measurement:
        """Keys of every written layer and hidden states of all facts after `hidden_layer`, under the weights in force now.

        `changed` is the layer that alone was written since the last measurement.
        """
        with timed(self.seconds, "keys"):
            return self.texts.measure(key_layers=tuple(self.columns), hidden_layer=hidden_layer, changed=changed)

    def _texts(self, facts: Sequence[EditRequest | HeldFact], *, first_written: int = 0) -> KeyTexts:
        hp = self.hp
        return KeyTexts(
            *(self.editable, facts, self.context.contexts),
            subject_share=hp.subject_share,
            fact_token=hp.fact_token,
            first_written=first_written,
        )

    def _distances(self, state: Measurement) -> torch.Tensor:
        """|z - h| (n,) of every fact."""
        distances: torch.Tensor = torch.linalg.vector_norm(self.z[self.hp.z_layer] - state.hidden, dim=0)
        return distances

    def _owner(self, fact: EditRequest) -> str:
        """What a fact and the requests that it belongs to have in common."""
        return subject_key(fact) if self.hp.one_z_per_subject else fact.case_id

    def _of_requests(self, distances: torch.Tensor) -> torch.Tensor:
        """|z - h| (requests,): of a request with further steps the largest of them all."""
        worst = distances[: self.requested].clone()
        if self.hp.fact_token == "last":
            place = {request.case_id: i for i, request in enumerate(self.facts[: self.requested])}
            own = torch.tensor([place[fact.case_id] for fact in self.facts])
            worst = worst.scatter_reduce(0, own, distances, "amax")
        return worst

    def _written(self, within_bound: torch.Tensor) -> torch.Tensor:
        """Places of the requests below `upper_bound`, and of what belongs to those."""
        chosen = {i for i in range(self.requested) if within_bound[i]}
        owners = {self._owner(self.facts[i]) for i in chosen}
        rest = range(self.requested, len(self.facts))
        return torch.tensor(
            sorted(chosen) + [i for i in rest if self._owner(self.facts[i]) in owners], dtype=torch.int64
        )

    def _residual(self, layer: int, facts: torch.Tensor, state: Measurement, layers_left: int) -> torch.Tensor:
        """What the projection of `layer` shall add: all that its own z lacks, or its share of what the last layer's lacks."""
        z, hidden = self.z.get(layer), state.hidden
        if z is None:
            z = self.z[self.hp.z_layer]
        else:
            layers_left = 1
            hidden = hidden if layer == self.hp.z_layer else self._measure(layer).hidden
        residual = (z[:, facts] - hidden[:, facts]) / layers_left
        norm = self.editable.post_norm(layer)
        return residual if norm is None else change_before_norm(state.outputs[layer][:, facts], residual, norm)

    def _write(self, layer: int, system: System, facts: torch.Tensor) -> None:
        """Solves for one layer's update of `facts` and puts the new weight in force."""
        with timed(self.seconds, "solve"):
            left, right = self.policy.solve(system, self.hp)
            if layer in self.protected:
                left, right = self.protected[layer].spared(left, right)
            self.columns[layer].write(self.editable, *self._owned(left, right, facts))

    def _owned(
        self, left: torch.Tensor, right: torch.Tensor, facts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """The factors with every column given to a request: what belongs to several is shared by them.

        Those may have reached their z's in an earlier pass, and be none of `facts`.
        """
        owners = [[f] if f < self.requested else self.owners[self._owner(self.facts[f])] for f in facts.tolist()]
        column = torch.tensor([i for i, own in enumerate(owners) for _ in own])
        share = torch.tensor([1 / len(own) for own in owners for _ in own], dtype=left.dtype)
        return left[:, column] * share, right[column], [f for own in owners for f in own]

    def _corrected_again(self, written: torch.Tensor) -> set[str]:
        """Earlier corrections whose keys are written to another z, now or by a later correction of the same fact."""
        hp, earlier = self.hp, self.context.earlier
        if not hp.joint_values:
            return set()
        about = subject_key if hp.one_z_per_subject else fact_key
        now = {about(self.facts[i]) for i in written.tolist()}
        standing = {fact_key(r): r.case_id for r in earlier}
        return {r.case_id for r in earlier if about(r) in now or standing[fact_key(r)] != r.case_id}

    def _past(self, layer: int, again: set[str]) -> PastKeys:
        """K_p: keys of every fact in the active deltas, the latest of each, less those of `again`."""
        name = self.columns[layer].name
        previous = self.context.previous if self.policy.earlier_keys else ()
        deltas = [delta for delta in previous if name in delta.layers]
        latest = {case: number for number, delta in enumerate(deltas) for case in delta.case_ids}
        kept = []
        for number, delta in enumerate(deltas):
            further = (delta.case_ids[place] for place in delta.layers[name].further_index.tolist())
            kept += [latest[case] == number and case not in again for case in (*delta.case_ids, *further)]
        second_moment = self.context.second_moments.of(self.editable.projection_name(layer))
        blocks = [delta.layers[name].keys for delta in deltas]
        return self.context.factors.past(second_moment, blocks, torch.tensor(kept, dtype=torch.bool))

    def _kept(self) -> dict[int, torch.Tensor]:
        """Keys where nothing shall change, as they are before the round, times the root of their weight.

        Those of the other tokens of all prompts in play, how the keys of the subjects differ between contexts, and those of known
        facts of other subjects, each in its own prompt.
        """
        hp, layers = self.hp, tuple(self.columns)
        found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
        with timed(self.seconds, "keys"):
            facts = around(self.facts, self.context.earlier, self.context.held)
            if weight := hp.prompt_keys_weight:
                for layer, keys in prompt_keys(self.editable, facts, layers=layers, fact_token=hp.fact_token).items():
                    found[layer].append(keys * weight**0.5)
            if weight := hp.context_spread_weight:
                for layer, keys in self._texts(facts).spread(layers=layers).items():
                    found[layer].append(keys * weight**0.5)
            known = of_other_subjects(self.context.held, (*self.facts, *self.context.earlier))
            if known and (weight := hp.known_keys_weight):
                texts = KeyTexts(self.editable, known, BARE, fact_token=hp.fact_token)
                for layer, keys in texts.measure(key_layers=layers, hidden_layer=max(layers)).keys.items():
                    found[layer].append(keys * weight**0.5)
        return {layer: torch.cat(keys, dim=1) for layer, keys in found.items() if keys}

    def _delta(self, written: torch.Tensor, state: Measurement) -> Delta:
        place = {fact: i for i, fact in enumerate(written[written < self.requested].tolist())}
        # a companion's key is in its own delta
        steps = [i for i in written.tolist() if isinstance(self.facts[i], Step)]
        further = [self.owners[self._owner(self.facts[step])][0] for step in steps]
        layers = {
            columns.name: columns.delta(place, state.keys[layer][:, [*place, *steps]].T, further)
            for layer, columns in self.columns.items()
            if columns.left
        }
        names = tuple(self.facts[i].case_id for i in place)
        return Delta(layers, names, self.editable.base_digest, {"method": self.policy.method})

    def _cases(self, written: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> tuple[CaseReport, ...]:
        chosen = set(written.tolist())
        reports = []
        for i, request in enumerate(self.facts[: self.requested]):
            status: Status = (
                "skipped" if i not in chosen else ("edited" if after[i] <= self.hp.alpha else "unconverged")
            )
            reports.append(CaseReport(request.case_id, status, float(before[i]), float(after[i])))
        return tuple(reports)
