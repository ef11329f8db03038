"""Hooks and shortcuts that leave no trace."""

import pytest
import torch

from nse.batch import pad
from nse.tokens import tokenize
from nse.trace import capture_inputs, capture_outputs, hidden_of, resumed_above, stopped_after


@pytest.fixture
def batch(editable):
    return pad(editable, [tokenize(editable.tokenizer, t).ids for t in ("Anna Berg lives in", "Boris is")])


def run(editable, batch):
    return editable.model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state


@torch.no_grad()
def test_captured_outputs_are_the_hidden_states_of_the_model(editable, batch) -> None:
    with capture_outputs({str(i): editable.block(i) for i in range(3)}) as seen:
        out = editable.model.base_model(
            input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, output_hidden_states=True
        )
    for i in range(3):
        assert torch.equal(seen[str(i)], out.hidden_states[i + 1])


@torch.no_grad()
def test_captured_inputs_are_what_the_projection_multiplies(editable, batch) -> None:
    projection = editable.projection(1)
    with capture_inputs({"in": projection}) as inputs, capture_outputs({"out": projection}) as outputs:
        run(editable, batch)
    bias = getattr(projection, "bias", None)
    expected = inputs["in"] @ editable.base_weight(editable.parameter_name(1)).T + (0 if bias is None else bias)
    torch.testing.assert_close(outputs["out"], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_resuming_above_a_layer_gives_what_the_whole_model_gives(editable, batch) -> None:
    with capture_outputs({"h": editable.block(1)}) as seen:
        whole = run(editable, batch)
    with resumed_above(editable, 1, lambda: seen["h"]):
        assert torch.equal(run(editable, batch), whole)
    with resumed_above(editable, 1, lambda: seen["h"] * 2):
        assert not torch.allclose(run(editable, batch), whole)
    assert torch.equal(run(editable, batch), whole)


@torch.no_grad()
def test_nothing_is_left_behind_after_an_exception(editable, batch) -> None:
    blocks = [editable.block(i) for i in range(editable.layers)]
    whole = run(editable, batch)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in editable.model.modules())

    before = hooks()  # transformers may have some of its own

    def fail() -> torch.Tensor:
        raise RuntimeError("state is gone")

    with (
        pytest.raises(RuntimeError, match="state is gone"),
        capture_inputs({"k": editable.projection(2)}),
        capture_outputs({"h": blocks[2]}),
        resumed_above(editable, 1, fail),
    ):
        run(editable, batch)
    assert all("forward" not in vars(b) for b in blocks)
    assert hooks() == before
    assert torch.equal(run(editable, batch), whole)


@torch.no_grad()
def test_a_block_keeps_the_forward_that_someone_else_gave_it(editable, batch) -> None:
    """accelerate shadows `forward` on each module that it lays on a device."""
    whole, block = run(editable, batch), editable.block(0)
    method = block.forward
    block.forward = given = lambda *args, **kwargs: method(*args, **kwargs) * 2
    try:
        changed = run(editable, batch)
        with resumed_above(editable, 1, lambda: torch.zeros(*batch.ids.shape, whole.shape[-1])):
            run(editable, batch)
        assert vars(block)["forward"] is given
        assert torch.equal(run(editable, batch), changed)
    finally:
        del block.forward
    assert not torch.allclose(changed, whole)


@torch.no_grad()
def test_stopping_after_a_layer_runs_none_above_it(editable, batch) -> None:
    with capture_inputs({str(i): editable.projection(i) for i in range(4)}) as seen, stopped_after(editable, 1):
        run(editable, batch)
    assert set(seen) == {"0", "1"}


def test_the_hidden_state_is_found_in_a_tensor_and_in_a_tuple() -> None:
    hidden = torch.ones(1, 2, 3)
    assert hidden_of(hidden) is hidden
    assert hidden_of((hidden, None)) is hidden
