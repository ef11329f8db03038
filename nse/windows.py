"""Windows: texts packed into token sequences as long as a model reads at a time. What is read in them is the reader's matter."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerBase

from nse.errors import StatisticsError


def packed(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, size: int) -> Iterator[list[int]]:
    """Token ids of the texts, one behind the other, in windows of `size`; only the last one may be shorter.

    A text keeps the special tokens that the tokenizer puts around it: with BOS in front each text begins as every prompt does.
    Where the tokenizer puts none, a line break ends each text, as in the file that it comes from. A text that does not fit into
    the rest of its window goes on in the next, behind what stands in front of every text.

    Args:
        tokenizer: Encodes each text by itself.
        texts: What is read.
        size: Tokens of a window.

    Raises:
        StatisticsError: If a window has no room beside the special tokens in front of a text.
    """
    window: list[int] = []
    for text in texts:
        front, rest = _tokens(tokenizer, text)
        if size <= len(front):
            raise StatisticsError(f"a window of {size} tokens has no room for text: give more, 512 as a rule")
        while rest:
            room = size - len(window) - len(front)
            if room > 0:
                window += front + rest[:room]
                rest = rest[room:]
            if room <= 0 or len(window) == size:
                yield window
                window = []
    if window:
        yield window


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    """The special tokens in front of a text, and all that come after."""
    encoded = tokenizer(text, return_special_tokens_mask=True, verbose=False)
    ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
    if not any(special):
        ids = list(tokenizer(text + "\n", verbose=False)["input_ids"])
    first = next((i for i, mark in enumerate(special) if not mark), len(ids))
    return ids[:first], ids[first:]
