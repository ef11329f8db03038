"""From text to tokens: the one rule for spaces, BOS and the token of a fact, in editing and scoring alike.

The rule: special tokens are the tokenizer's own choice, less an EOS at the end; one space joins prompt and target unless
either brings its own; places are found by character offsets, never by re-tokenised prefixes.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from nse.errors import TokenError

LEAD = "\n"
"""Put in front of a text whose fact would stand at its very first token."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """Token ids of a prompt, perhaps with its target, and the places that matter in them.

    Attributes:
        ids: Token ids of prompt and target together.
        prompt_length: Number of ids that belong to the prompt (BOS included); the rest is the target.
        fact_token: Index of the token where a fact is written, -1 if no place was given.
    """

    ids: tuple[int, ...]
    prompt_length: int
    fact_token: int = -1

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Token ids of the target."""
        return self.ids[self.prompt_length :]


def join(prompt: str, target: str) -> str:
    """Prompt and target as one text, with one space between unless either brings white space of its own."""
    return prompt + target if prompt[-1:].isspace() or target[:1].isspace() else f"{prompt} {target}"


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, target: str = "", span: tuple[int, int] | None = None
) -> TokenizedPrompt:
    """Tokenises prompt and target in one go and finds the target and the fact's token by character offsets.

    Args:
        tokenizer: A fast tokenizer.
        prompt: Text up to where the target begins.
        target: Text of the target, empty for none.
        span: Character positions (start, end) in `prompt` of what ends with the fact's token, as its subject.

    Raises:
        TokenError: If the tokenizer has no offsets, the subject has no token, or a part of the target is unknown to it.
    """
    if not tokenizer.is_fast:
        raise TokenError(
            f"{type(tokenizer).__name__} reports no character offsets: load the model with a fast tokenizer"
        )
    text = join(prompt, target) if target else prompt
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    special = list(encoded["special_tokens_mask"])
    while len(ids) > 1 and special[-1] and ids[-1] == tokenizer.eos_token_id:
        ids.pop(), offsets.pop(), special.pop()
    own = [i for i in range(len(ids)) if not special[i] or offsets[i][1] > offsets[i][0]]
    length = next((i for i in own if target and offsets[i][1] > len(prompt)), len(ids))
    if target and length == len(ids):
        raise TokenError(f"target {target!r} has no token after {prompt!r}: give it visible characters")
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids[length:]:
        raise TokenError(f"target {target!r} holds characters the tokenizer does not know: the model cannot produce it")
    last = -1
    if span is not None:
        start, end = span
        inside = [i for i in own if offsets[i][0] < end and offsets[i][1] > start and offsets[i][1] <= len(prompt)]
        if not inside:
            raise TokenError(f"subject {prompt[start:end]!r} has no token in {prompt!r}: check the subject's spelling")
        last = inside[-1]
    return TokenizedPrompt(tuple(ids), length, last)


def tokenize_template(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    subject: str,
    *,
    target: str = "",
    fact_token: str = "subject_last",
) -> TokenizedPrompt:
    """Puts `subject` into the one `{}` of `template` and tokenises.

    The first token of a text is an attention sink: its hidden state is up to two hundred times as long as others, and hardly
    depends on which token it is. A fact that would be written there, as that of a subject of one token under a tokenizer that
    puts no BOS in front, would be written for every text; so a line break takes the first place.

    Args:
        tokenizer: A fast tokenizer.
        template: Text with one `{}`, up to where the target begins.
        subject: What takes the place of the `{}`.
        target: Text of the target, empty for none.
        fact_token: "subject_last", the last token of what stands for `{}`, or "last", that of the prompt, spaces aside: a space
            may become a part of the target's first token, the end of a line that opens a chat answer does not.

    Raises:
        TokenError: As `tokenize`.
    """
    prompt, span = _placed(template, subject, fact_token)
    found = tokenize(tokenizer, prompt, target=target, span=span)
    if found.fact_token == 0:
        led = tokenize(tokenizer, LEAD + prompt, target=target, span=(span[0] + len(LEAD), span[1] + len(LEAD)))
        return led if led.fact_token > 0 else found  # some tokenizers drop white space in front
    return found


def unheard(tokenizer: PreTrainedTokenizerBase, template: str, subject: str) -> bool:
    """Whether the subject's last token is the very first token of its prompt.

    An attention sink stands there, which hardly depends on the token, so that a model answers such a prompt alike for all
    subjects, before a correction and after it. What stands in front, as a chat template does, mends it.

    Raises:
        TokenError: As `tokenize`.
    """
    prompt, span = _placed(template, subject, "subject_last")
    return tokenize(tokenizer, prompt, span=span).fact_token == 0


def _placed(template: str, subject: str, fact_token: str) -> tuple[str, tuple[int, int]]:
    """A prompt and the characters (start, end) of it that end with the fact's token."""
    start = template.index("{}")
    prompt = template[:start] + subject + template[start + 2 :]
    if fact_token == "last":
        return prompt, (0, len(prompt.rstrip(" ")))
    return prompt, (start + len(subject) - len(subject.lstrip()), start + len(subject.rstrip()))
