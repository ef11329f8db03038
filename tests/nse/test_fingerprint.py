"""Digests."""

import hashlib

import pytest
import torch

from nse.fingerprint import file_digest, json_digest, tensor_digest, text_digest, weights_digest


def test_a_text_and_a_file_with_the_same_bytes_have_the_plain_sha256(tmp_path) -> None:
    (tmp_path / "f").write_bytes("ж\n".encode())
    expected = hashlib.sha256("ж\n".encode()).hexdigest()
    assert text_digest("ж\n") == file_digest(tmp_path / "f") == expected


def test_json_does_not_depend_on_the_order_of_keys() -> None:
    assert json_digest({"a": 1, "b": [2, "ж"]}) == json_digest({"b": (2, "ж"), "a": 1})
    assert json_digest({"a": 1}) != json_digest({"a": "1"})


def test_a_tensor_is_named_by_its_values_and_not_by_its_layout() -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    assert tensor_digest(tensor) == tensor_digest(tensor.T.contiguous().T)
    assert tensor_digest(torch.zeros(0, 3)) != tensor_digest(torch.zeros(3, 0))


@pytest.mark.parametrize(
    "other",
    [
        torch.arange(6.0).reshape(3, 2),
        torch.arange(6.0).reshape(2, 3).double(),
        torch.arange(6.0).reshape(2, 3).bfloat16(),
        torch.arange(6).reshape(2, 3),
        torch.tensor([[-0.0, 1, 2], [3, 4, 5]]),
    ],
)
def test_a_tensors_shape_type_and_every_bit_count(other) -> None:
    assert tensor_digest(torch.arange(6.0).reshape(2, 3)) != tensor_digest(other)


def test_a_models_digest_depends_on_names_and_digests_and_not_on_their_order() -> None:
    assert weights_digest({"a": "1", "b": "2"}) == weights_digest({"b": "2", "a": "1"})
    assert len({weights_digest(d) for d in ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, {"a": "1"}, {})}) == 4
