"""The Merkle tree: published vectors, the recursive definitions of RFC 6962 as an oracle, and every proof up to 64 leaves."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ledger.merkle import (
    EMPTY_ROOT,
    Frontier,
    ProofError,
    Subtree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root,
    subtrees_of,
    verify_consistency,
    verify_inclusion,
)

SIZES = 64
LEAVES = [leaf_hash(f"event {number}".encode()) for number in range(SIZES + 1)]
SUBTREES = subtrees_of(LEAVES)
ROOTS = [root(size, SUBTREES) for size in range(SIZES + 2)]

# The vectors of the certificate-transparency project.
INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
PUBLISHED_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LEAF_0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
LEAF_1 = "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
NODE_01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
NODE_23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODE_67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODE_0123 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
NODE_4567 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"


def published() -> Subtree:
    return subtrees_of([leaf_hash(bytes.fromhex(text)) for text in INPUTS])


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1."""
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY_ROOT
    middle = half(len(leaves))
    return node_hash(naive_root(leaves[:middle]), naive_root(leaves[middle:]))


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    middle = half(len(leaves))
    if index < middle:
        return [*naive_path(index, leaves[:middle]), naive_root(leaves[middle:])]
    return [*naive_path(index - middle, leaves[middle:]), naive_root(leaves[:middle])]


def naive_subproof(old: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if old == len(leaves):
        return [] if whole else [naive_root(leaves)]
    middle = half(len(leaves))
    if old <= middle:
        return [*naive_subproof(old, leaves[:middle], whole), naive_root(leaves[middle:])]
    return [*naive_subproof(old - middle, leaves[middle:], False), naive_root(leaves[:middle])]


def half(size: int) -> int:
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def damaged(proof: list[bytes]) -> Iterator[list[bytes]]:
    """Yield the proof with one byte flipped, one node dropped, one node added, and two nodes swapped, at each place."""
    for at, node in enumerate(proof):
        yield [*proof[:at], flipped(node, at % 32), *proof[at + 1 :]]
        yield [*proof[:at], *proof[at + 1 :]]
        yield [*proof[:at], node, node, *proof[at + 1 :]]
    for first in range(len(proof) - 1):
        yield [*proof[:first], proof[first + 1], proof[first], *proof[first + 2 :]]
    yield [*proof, LEAVES[0]]


def refused(function: Callable[..., object], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except ProofError:
        return True
    return False


@pytest.mark.parametrize("size", range(9))
def test_the_published_roots_come_out(size: int) -> None:
    assert root(size, published()).hex() == PUBLISHED_ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, []),
        (0, 8, [LEAF_1, NODE_23, NODE_4567]),
        (5, 8, [LEAF_4, NODE_67, NODE_0123]),
        (2, 3, [NODE_01]),
        (1, 5, [LEAF_0, NODE_23, LEAF_4]),
    ],
)
def test_the_published_inclusion_proofs_come_out_and_are_accepted(index: int, size: int, path: list[str]) -> None:
    proof = inclusion_proof(index, size, published())
    assert [node.hex() for node in proof] == path
    verify_inclusion(published()(0, index), index, size, proof, bytes.fromhex(PUBLISHED_ROOTS[size]))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (1, 1, []),
        (1, 8, [LEAF_1, NODE_23, NODE_4567]),
        (6, 8, [NODE_45, NODE_67, NODE_0123]),
        (2, 5, [NODE_23, LEAF_4]),
    ],
)
def test_the_published_consistency_proofs_come_out_and_are_accepted(old: int, new: int, path: list[str]) -> None:
    proof = consistency_proof(old, new, published())
    assert [node.hex() for node in proof] == path
    old_root, new_root = (bytes.fromhex(PUBLISHED_ROOTS[size]) for size in (old, new))
    verify_consistency(old, old_root, new, new_root, proof)


@pytest.mark.parametrize("size", range(SIZES + 2))
def test_every_root_is_that_of_the_recursive_definition(size: int) -> None:
    assert ROOTS[size] == naive_root(LEAVES[:size])


@pytest.mark.parametrize("size", range(1, SIZES + 1))
def test_every_inclusion_proof_is_that_of_the_definition_and_no_other_is_accepted(size: int) -> None:
    for index in range(size):
        leaf, proof = LEAVES[index], inclusion_proof(index, size, SUBTREES)
        assert proof == naive_path(index, LEAVES[:size])
        verify_inclusion(leaf, index, size, proof, ROOTS[size])
        for other in damaged(proof):
            assert refused(verify_inclusion, leaf, index, size, other, ROOTS[size])
        assert refused(verify_inclusion, flipped(leaf, index % 32), index, size, proof, ROOTS[size])
        assert refused(verify_inclusion, leaf, index, size, proof, flipped(ROOTS[size], index % 32))
        for wrong in {*range(size + 2)} - {index}:
            assert refused(verify_inclusion, leaf, wrong, size, proof, ROOTS[size])
        for wrong in {*range(SIZES + 2)} - {size}:
            assert refused(verify_inclusion, leaf, index, wrong, proof, ROOTS[wrong])


@pytest.mark.parametrize("new", range(1, SIZES + 1))
def test_every_consistency_proof_is_that_of_the_definition_and_no_other_is_accepted(new: int) -> None:
    for old in range(1, new + 1):
        proof = consistency_proof(old, new, SUBTREES)
        assert proof == naive_subproof(old, LEAVES[:new], True)
        verify_consistency(old, ROOTS[old], new, ROOTS[new], proof)
        for other in damaged(proof):
            assert refused(verify_consistency, old, ROOTS[old], new, ROOTS[new], other)
        assert refused(verify_consistency, old, flipped(ROOTS[old], old % 32), new, ROOTS[new], proof)
        assert refused(verify_consistency, old, ROOTS[old], new, flipped(ROOTS[new], old % 32), proof)
        assert old == new or refused(verify_consistency, new, ROOTS[new], old, ROOTS[old], proof)
        for wrong in {*range(1, SIZES + 2)} - {old, new}:
            assert refused(verify_consistency, wrong, ROOTS[wrong], new, ROOTS[new], proof)
            assert refused(verify_consistency, old, ROOTS[old], wrong, ROOTS[wrong], proof)


def test_the_refusal_of_a_proof_says_why() -> None:
    proof = inclusion_proof(1, 5, SUBTREES)
    for nodes, reason in [
        (proof[:-1], "too short"),
        ([*proof, LEAVES[0]], "too long"),
        ([LEAVES[0], *proof[:0:-1]], "leaf 1 is not in the tree of 5 leaves"),
        ([*proof[:2], b"x" * 31], "is not a hash"),
    ]:
        with pytest.raises(ProofError, match=reason):
            verify_inclusion(LEAVES[1], 1, 5, nodes, ROOTS[5])
    proof = consistency_proof(3, 5, SUBTREES)
    for nodes, reason in [([], "empty"), (proof[:-1], "too short"), ([*proof, LEAVES[0]], "too long")]:
        with pytest.raises(ProofError, match=reason):
            verify_consistency(3, ROOTS[3], 5, ROOTS[5], nodes)


def test_a_rewritten_leaf_makes_the_old_tree_no_beginning_of_the_new_one() -> None:
    rewritten = subtrees_of([*LEAVES[:3], leaf_hash(b"another history"), *LEAVES[4:20]])
    proof = consistency_proof(10, 20, rewritten)
    with pytest.raises(ProofError, match="is not the beginning of"):
        verify_consistency(10, ROOTS[10], 20, root(20, rewritten), proof)


def test_the_empty_tree_is_the_beginning_of_every_tree_and_has_one_root() -> None:
    assert consistency_proof(0, 5, SUBTREES) == []
    verify_consistency(0, EMPTY_ROOT, 5, ROOTS[5], [])
    verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    for old_root, new, new_root, proof in [
        (ROOTS[1], 5, ROOTS[5], []),
        (EMPTY_ROOT, 0, ROOTS[1], []),
        (EMPTY_ROOT, 5, ROOTS[5], [ROOTS[1]]),
    ]:
        assert refused(verify_consistency, 0, old_root, new, new_root, proof)


def test_two_roots_for_one_size_are_told_apart() -> None:
    with pytest.raises(ProofError, match="two roots for 5 leaves"):
        verify_consistency(5, ROOTS[5], 5, ROOTS[6], [])


@pytest.mark.parametrize("number", [-1, 5, 2**70, True, 1.0, "1", None])
def test_an_index_that_no_leaf_has_is_refused(number: Any) -> None:
    proof = inclusion_proof(1, 5, SUBTREES)
    assert refused(verify_inclusion, LEAVES[1], number, 5, proof, ROOTS[5])
    assert refused(inclusion_proof, number, 5, SUBTREES)


@pytest.mark.parametrize("number", [-1, True, 5.0, "5", None])
def test_a_size_that_no_tree_has_is_refused(number: Any) -> None:
    assert refused(root, number, SUBTREES)
    assert refused(inclusion_proof, 0, number, SUBTREES)
    assert refused(verify_inclusion, LEAVES[0], 0, number, [], ROOTS[1])
    for old, new in [(number, 5), (0, number), (number, number)]:
        assert refused(consistency_proof, old, new, SUBTREES)
        assert refused(verify_consistency, old, EMPTY_ROOT, new, ROOTS[5], [])


def test_a_greater_tree_is_no_beginning_of_a_smaller_one() -> None:
    with pytest.raises(ProofError, match="the old tree has 6 leaves and the new one 5"):
        consistency_proof(6, 5, SUBTREES)


@pytest.mark.parametrize("bad", [b"", b"x" * 31, b"x" * 33, "x" * 32, None, 7])
def test_what_is_no_hash_is_refused_wherever_it_stands(bad: Any) -> None:
    proof = inclusion_proof(1, 5, SUBTREES)
    assert refused(verify_inclusion, bad, 1, 5, proof, ROOTS[5])
    assert refused(verify_inclusion, LEAVES[1], 1, 5, proof, bad)
    assert refused(verify_inclusion, LEAVES[1], 1, 5, [*proof[:2], bad], ROOTS[5])
    assert refused(verify_consistency, 3, bad, 5, ROOTS[5], proof)
    assert refused(verify_consistency, 3, ROOTS[3], 5, bad, proof)
    assert refused(verify_consistency, 3, ROOTS[3], 5, ROOTS[5], [bad, *proof])


def test_a_proof_reads_few_and_large_subtrees() -> None:
    asked: list[tuple[int, int]] = []

    def subtree(level: int, index: int) -> bytes:
        asked.append((level, index))
        return LEAVES[0]

    root(2**20 + 2**3 + 1, subtree)
    assert asked == [(20, 0), (3, 2**17), (0, 2**20 + 8)]
    asked.clear()
    inclusion_proof(0, 2**20, subtree)
    assert sorted(asked) == [(level, 1) for level in range(20)]
    asked.clear()
    consistency_proof(2**20, 2**21, subtree)
    assert asked == [(20, 1)]


@pytest.mark.parametrize("size", [0, 1, 2, 3, 63, 64, 65])
def test_a_frontier_has_the_root_of_its_leaves_after_each_append(size: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        assert frontier.root() == ROOTS[frontier.size]
        frontier.append(leaf)
    assert frontier.size == size
    assert frontier.root() == ROOTS[size]


@pytest.mark.parametrize("keep_level", [0, 1, 3, 6, 7])
def test_a_frontier_hands_over_each_complete_subtree_from_its_level_on_once(keep_level: int) -> None:
    kept: list[tuple[int, int, bytes]] = []
    frontier = Frontier(keep_level=keep_level, on_complete=lambda *subtree: kept.append(subtree))
    for leaf in LEAVES[:65]:
        frontier.append(leaf)
    expected = [(level, at, SUBTREES(level, at)) for level in range(keep_level, 7) for at in range(65 >> level)]
    assert sorted(kept) == expected


@pytest.mark.parametrize("keep_level", [0, 8, 9])
@pytest.mark.parametrize("steps", [(1100,), (1, 255, 256, 600), (0, 300, 212, 512, 76)])
def test_a_frontier_extended_by_many_leaves_is_the_one_that_each_was_appended_to(
    keep_level: int, steps: tuple[int, ...]
) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(sum(steps))]
    kept: tuple[list[Any], list[Any]] = ([], [])
    one, many = (Frontier(keep_level=keep_level, on_complete=lambda *s, to=to: to.append(s)) for to in kept)
    for step in steps:
        for leaf in leaves[one.size : one.size + step]:
            one.append(leaf)
        many.extend(leaves[many.size : many.size + step])
        assert (many.size, many.root()) == (one.size, one.root())
    assert kept[0] == kept[1]
    assert len(kept[1]) > 1


def test_a_frontier_refuses_data_in_place_of_its_hash() -> None:
    frontier = Frontier()
    with pytest.raises(ProofError, match="5 bytes, not 32"):
        frontier.append(b"event")
    assert frontier.size == 0
    with pytest.raises(ProofError, match="5 bytes, not 32"):
        frontier.extend([*(leaf_hash(b"%d" % number) for number in range(255)), b"event"])
    assert frontier.size == 255


@pytest.mark.parametrize(("level", "index"), [(0, 5), (1, 2), (3, 0), (-1, 0), (0, -1)])
def test_a_subtree_that_is_not_complete_is_refused(level: int, index: int) -> None:
    with pytest.raises(ProofError, match="is not complete in a tree of 5 leaves"):
        subtrees_of(LEAVES[:5])(level, index)
