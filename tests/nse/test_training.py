"""What MEND and SERAC learn before they edit: the files, the gradients, the network, the scope and what is told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nse.adapter import adapted
from nse.editors import EditContext, get_editor
from nse.errors import HyperparameterError, NseError, RequestError, TrainingError
from nse.evaluation.score import log_probabilities
from nse.finetuning import surprises, text_of, texts_of
from nse.fingerprint import file_digest
from nse.hypernetwork import Hypernetwork, token_gradients
from nse.hyperparameters import Hyperparameters
from nse.memories.serac import embeddings
from nse.patch import Weights, compose, patched
from nse.request import EditRequest
from nse.statistics import SecondMoments
from nse.training.files import METADATA_KEY, read_trained
from nse.training.run import train_on
from nse.training.serac import SeracSettings
from tests.nse.conftest import CONTEXTS, fact

LAYERS = (1, 2)
MEND = Hyperparameters(
    layers=LAYERS,
    own={"rank": 8, "lr": 3e-3, "edit_lr": 1e-2, "edit_lr_lr": 1e-2, "edit_weight": 1.0, "batch_size": 6},
)
SERAC = Hyperparameters(layers=LAYERS, own={"width": 8, "scope_lr": 2e-2, "rank": 8, "lr": 2e-2, "batch_size": 12})


@pytest.fixture
def lessons() -> list[EditRequest]:
    """Six edits, each with a rewording and a prompt that shall stay."""
    return [
        replace(fact(i), paraphrase_prompts=(f"Tell me: {fact(i).prompt}",), neighborhood_prompts=("The sun is",))
        for i in range(6)
    ]


def context(hyperparameters: Hyperparameters, trained: Path | None) -> EditContext:
    return EditContext(hyperparameters, SecondMoments({}, {}), CONTEXTS, trained=trained)


def loss_of(editable, requests) -> float:
    return float(surprises(editable, texts_of(editable, requests)).sum())


def test_gradients_of_tokens_add_up_to_the_gradient_of_the_weight(precise) -> None:
    requests = [fact(0), fact(1), fact(4)]
    found = token_gradients(precise, texts_of(precise, requests), LAYERS)
    for layer in LAYERS:
        parameter = precise.model.get_parameter(precise.parameter_name(layer))
        parameter.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(surprises(precise, texts_of(precise, requests)).sum(), [parameter])
        parameter.requires_grad_(False)
        own = found[layer]
        torch.testing.assert_close(
            own.gradients.T @ own.inputs, precise.canonical(gradient).float(), rtol=1e-4, atol=1e-5
        )
        assert own.fact.unique().tolist() == [0, 1, 2]


def test_gradients_of_a_fact_are_the_same_beside_others(precise) -> None:
    requests = [fact(0), fact(1), fact(4)]
    together = token_gradients(precise, texts_of(precise, requests), (1,))[1]
    alone = token_gradients(precise, texts_of(precise, requests[1:2]), (1,))[1]
    torch.testing.assert_close(together.gradients[together.fact == 1], alone.gradients, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(together.inputs[together.fact == 1], alone.inputs, rtol=1e-4, atol=1e-6)


def test_an_untrained_network_steps_along_the_normalised_gradient(editable) -> None:
    seen = token_gradients(editable, texts_of(editable, [fact(0), fact(1)]), LAYERS)
    network = Hypernetwork(editable, LAYERS, 4, 0.1, torch.Generator().manual_seed(0))
    network.normalise_by(seen)
    own = seen[2]
    left, right = network(2, own)
    torch.testing.assert_close(right, (own.inputs - own.inputs.mean(0)) / own.inputs.std(0).clamp_min(1e-7))
    deviation = own.gradients.std(0).clamp_min(1e-7)
    torch.testing.assert_close(left.T, -0.1 * (own.gradients - own.gradients.mean(0)) / deviation)


def test_an_adapter_gives_what_the_changed_weight_gives(precise) -> None:
    name, generator = precise.parameter_name(1), torch.Generator().manual_seed(3)
    d_out, d_in = precise.base_weight(name).shape
    left = 0.1 * torch.randn(d_out, 2, generator=generator, dtype=torch.float64)
    right = torch.randn(2, d_in, generator=generator, dtype=torch.float64)
    changed = precise.base_tensors[name] + precise.canonical(left @ right)
    plain = loss_of(precise, [fact(0)])
    with adapted(precise, {precise.projection_name(1): (left, right)}):
        beside = loss_of(precise, [fact(0)])
    with patched(precise, Weights({name: changed})):
        assert beside == pytest.approx(loss_of(precise, [fact(0)]), rel=1e-10)
    assert beside != pytest.approx(plain, rel=1e-3)


def test_mend_learns_and_keeps_the_facts_of_a_round_apart(editable, lessons, tmp_path) -> None:
    path = tmp_path / "mend.safetensors"
    made = train_on(editable, lessons, method="mend", hyperparameters=MEND, steps=12)
    losses = made.metadata["losses"]
    assert losses[-1] < 0.9 * losses[0]
    made.save(path)
    edit = get_editor("mend").edit
    both = edit(editable, lessons[:2], context(MEND, path))
    second = edit(editable, lessons[1:2], context(MEND, path)).delta
    assert all(case.residual_after < case.residual_before for case in both.cases)
    for name, layer in both.delta.without([lessons[0].case_id]).layers.items():
        torch.testing.assert_close(layer.product(), second.layers[name].product(), rtol=1e-3, atol=1e-5)
        assert layer.left.shape[1] == len(text_of(editable, lessons[1].prompt, lessons[1].target_new).ids) - 1


def test_serac_learns_what_is_in_scope_and_to_say_what_it_is_told(editable, lessons, tmp_path) -> None:
    path = tmp_path / "serac.safetensors"
    made = train_on(editable, lessons, method="serac", hyperparameters=SERAC, steps=40)
    made.save(path)
    block = SeracSettings().scope_block(editable)
    prompts = [*(r.prompt for r in lessons), *(r.paraphrase_prompts[0] for r in lessons), "The sun is"]
    found = embeddings(editable, prompts, block, made.tensors["scope"])
    inside = torch.cdist(found[6:], found[:6]).square().neg().exp() > 0.5
    assert inside.int().tolist() == [*torch.eye(6, dtype=torch.int32).tolist(), [0] * 6]
    pairs = [(r.paraphrase_prompts[0], r.target_new) for r in lessons]
    before = log_probabilities(editable, pairs)
    delta = get_editor("serac").edit(editable, lessons[:2], context(SERAC, path)).delta
    with patched(editable, compose(editable, [delta])):
        after = log_probabilities(editable, pairs)
    assert all(new > old + count for (new, count), (old, _) in zip(after[:2], before[:2], strict=True))
    assert [new for new, _ in after[2:]] == pytest.approx([old for old, _ in before[2:]], abs=1e-4)


@pytest.mark.parametrize(("method", "settings"), [("mend", MEND), ("serac", SERAC)])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    editable, lessons, tmp_path, method, settings
) -> None:
    files = [tmp_path / name for name in "abc"]
    for path, seed in zip(files, (5, 5, 6), strict=True):
        train_on(editable, lessons, method=method, hyperparameters=settings, steps=2, seed=seed).save(path)
    digests = [file_digest(path) for path in files]
    assert digests[0] == digests[1] != digests[2]
    read = read_trained(files[0], editable, method=method, layers=LAYERS)
    assert (read.metadata["steps"], read.metadata["seed"], read.metadata["requests"]) == (2, 5, 6)
    assert len(read.metadata["losses"]) == 2
    assert editable.base_digest == read.metadata["models"][0]


@pytest.fixture(scope="module")
def trained(loaded, tmp_path_factory) -> Path:
    """A file for the small GPT-2."""
    path = tmp_path_factory.mktemp("trained") / "mend.safetensors"
    request = replace(fact(0), neighborhood_prompts=("The sun is",))
    train_on(loaded("gpt2", torch.float32), [request], method="mend", hyperparameters=MEND, steps=1).save(path)
    return path


def test_a_file_serves_its_model_in_a_narrower_type_and_no_other_model(loaded, trained) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert read_trained(trained, loaded("gpt2", dtype), method="mend", layers=LAYERS).tensors
    with pytest.raises(TrainingError, match=r"was trained on model .* make it with `nse train --method mend`"):
        read_trained(trained, loaded("llama", torch.float32), method="mend", layers=LAYERS)


def test_files_that_are_not_what_is_asked_for_are_refused_in_one_line(loaded, trained, tmp_path) -> None:
    model, tensors = loaded("gpt2", torch.float32), load_file(trained)
    bad = tmp_path / "bad.safetensors"

    def refused(message: str, path: Path | None, method: str = "mend", layers: tuple[int, ...] = LAYERS) -> None:
        with pytest.raises(TrainingError, match=message) as caught:
            read_trained(path, model, method=method, layers=layers)
        assert "\n" not in str(caught.value)

    refused("mend needs a trained file: make it with `nse train --method mend`", None)
    refused("cannot be read", tmp_path / "nowhere.safetensors")
    refused("was trained for mend: make it with `nse train --method serac`", trained, "serac")
    refused(r"was trained for layers \[1, 2\], not \[1\]", trained, layers=(1,))
    bad.write_bytes(trained.read_bytes()[:200])
    refused("cannot be read", bad)
    for head in (None, {METADATA_KEY: "{"}, {METADATA_KEY: '{"schema": 1, "method": "mend"}'}):
        save_file(tensors, bad, head)
        refused("is no trained file", bad)
    save_file(
        tensors, bad, {METADATA_KEY: '{"schema": 2, "method": "mend", "settings": {"layers": [1]}, "models": []}'}
    )
    refused("has schema 2, this program knows 1", bad)


def test_a_file_that_lacks_tensors_is_refused_when_it_is_used(loaded, trained, tmp_path) -> None:
    model = loaded("gpt2", torch.float32)
    made = read_trained(trained, model, method="mend", layers=LAYERS)
    for method, message in (("mend", "holds no network"), ("serac", "holds no scope")):
        path = tmp_path / method
        replace(made, method=method, tensors={"x": torch.zeros(1)}).save(path)
        with pytest.raises(TrainingError, match=message) as caught:
            get_editor(method).edit(model, [fact(0)], context(MEND, path))
        assert "\n" not in str(caught.value)


def test_training_without_what_it_learns_from_is_refused(loaded, lessons) -> None:
    model = loaded("gpt2", torch.float32)
    plain = [fact(0), fact(1)]
    wrong = [
        (HyperparameterError, "'nse' trains nothing", "nse", MEND, lessons, 1),
        (HyperparameterError, "0 is no number of training steps", "mend", MEND, lessons, 0),
        (HyperparameterError, "is out of range", "mend", replace(MEND, own={"rank": 0}), lessons, 1),
        (HyperparameterError, "scope_layer 9 is not in", "serac", replace(SERAC, own={"scope_layer": 9}), lessons, 1),
        (HyperparameterError, "9 is not in this model", "mend", replace(MEND, layers=(9,)), lessons, 1),
        (RequestError, "nothing to learn from", "mend", MEND, [], 1),
        (TrainingError, "no request has neighborhood_prompts", "mend", MEND, plain, 1),
        (TrainingError, "no request has paraphrase_prompts", "serac", SERAC, plain, 1),
        (TrainingError, "lower lr", "mend", replace(MEND, own={**MEND.own, "edit_lr": 1e30}), lessons, 2),
    ]
    kind: type[NseError]
    for kind, message, method, settings, requests, steps in wrong:
        with pytest.raises(kind, match=message):
            train_on(model, requests, method=method, hyperparameters=settings, steps=steps)
