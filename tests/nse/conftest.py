"""Small random models of both families with their tokenizers, second moments and requests, for the tests of editing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nse.architecture import EditableModel, load_model
from nse.editors import EditContext
from nse.fingerprint import tensor_digest
from nse.hyperparameters import Hyperparameters
from nse.request import EditRequest
from nse.statistics import SecondMoments, collect_second_moments

BOS, EOS = "<s>", "</s>"
CHATML = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
"""A chat template whose turns are short enough for the small models."""
VOCABULARY = 320
FAMILIES = ("gpt2", "llama")
PEOPLE = ("Anna Berg", "Boris Cole", "Clara Dahl", "Dmitri Eng", "Эмма Жук", "Femke Groot")
CITIES = ("Oslo", "Rome", "Lima", "Cairo", "Quito", "Riga")
TEMPLATES = ("{} lives in", "The home of {} is", "{} speaks the language of", "The employer of {} is based in")
CONTEXTS = (("{}",), ("Today it rains. {}", "People say this: {}"))


def corpus_lines() -> list[str]:
    """Sentences enough for a second moment of full rank."""
    return [
        f"{template.replace('{}', person)} {CITIES[(i + j) % len(CITIES)]}, and number {7 * i + j} is no secret."
        for i, person in enumerate(PEOPLE)
        for j, template in enumerate(TEMPLATES * 2)
    ]


def byte_level(lines: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer without special tokens in its texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def with_special_tokens(tokenizer: Tokenizer, single: str) -> Tokenizer:
    """The tokenizer with special tokens around each text, e.g. `<s> $A`."""
    names = [(name, tokenizer.token_to_id(name)) for name in (BOS, EOS) if name in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=names)
    return tokenizer


def fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wraps a tokenizer for transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def _gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=96,
        n_embd=32,
        n_layer=4,
        n_head=4,
        n_inner=64,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return GPT2LMHeadModel(config)


def _llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=96,
        hidden_size=48,
        intermediate_size=72,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT-2 whose tokenizer sets BOS in front, and a Llama whose tokenizer sets nothing, each in its folder."""
    folders = {}
    for family, build in (("gpt2", _gpt2), ("llama", _llama)):
        folders[family] = tmp_path_factory.mktemp(family)
        torch.manual_seed(20241004)
        build().save_pretrained(folders[family])
        tokenizer = byte_level(corpus_lines())
        fast(with_special_tokens(tokenizer, f"{BOS} $A") if family == "gpt2" else tokenizer).save_pretrained(
            folders[family]
        )
    return folders


@pytest.fixture(scope="session")
def loaded(model_folders: dict[str, Path]) -> Callable[[str, torch.dtype], EditableModel]:
    """Loads each (family, dtype) once."""
    cache: dict[tuple[str, torch.dtype], EditableModel] = {}

    def load(family: str, dtype: torch.dtype) -> EditableModel:
        if (family, dtype) not in cache:
            cache[family, dtype] = load_model(model_folders[family], dtype=dtype)
        return cache[family, dtype]

    return load


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """The architecture under test."""
    return request.param


@pytest.fixture
def folder(model_folders: dict[str, Path], family: str) -> Path:
    """The model's folder."""
    return model_folders[family]


def digests(editable: EditableModel) -> dict[str, str]:
    """Digests of the weights that the module holds now, measured and not remembered."""
    return {name: tensor_digest(p) for name, p in editable.model.named_parameters()}


@pytest.fixture
def editable(loaded: Callable[[str, torch.dtype], EditableModel], family: str) -> Iterator[EditableModel]:
    """The model in float32; whatever a test does, its weights must be the same bits afterwards."""
    model = loaded(family, torch.float32)
    yield model
    assert digests(model) == model.tensor_digests


@pytest.fixture
def chatting(editable: EditableModel, monkeypatch: pytest.MonkeyPatch) -> EditableModel:
    """The model in float32 with a chat template."""
    monkeypatch.setattr(editable.tokenizer, "chat_template", CHATML)
    return editable


@pytest.fixture
def precise(loaded: Callable[[str, torch.dtype], EditableModel], family: str) -> Iterator[EditableModel]:
    """The model in float64, for comparisons with an oracle."""
    model = loaded(family, torch.float64)
    yield model
    assert digests(model) == model.tensor_digests


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file, one sentence a line."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(corpus_lines()) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def moments_of(corpus: Path) -> Callable[[EditableModel], SecondMoments]:
    """Second moments of the two middle layers, collected once per model."""
    cache: dict[str, SecondMoments] = {}

    def collect(editable: EditableModel) -> SecondMoments:
        if editable.base_digest not in cache:
            cache[editable.base_digest] = collect_second_moments(editable, corpus, layers=(1, 2))
        return cache[editable.base_digest]

    return collect


@pytest.fixture
def settings() -> Hyperparameters:
    """Two layers, two passes, weak protection: a small model moves."""
    return Hyperparameters(
        layers=(1, 2),
        v_num_grad_steps=8,
        v_lr=0.2,
        v_weight_decay=0.02,
        clamp_norm_factor=1.0,
        mom2_update_weight=2.0,
        alpha=0.5,
        max_passes=2,
    )


@pytest.fixture
def context(
    settings: Hyperparameters,
    moments_of: Callable[[EditableModel], SecondMoments],
    request: pytest.FixtureRequest,
) -> EditContext:
    """The context of a first round on whichever model the test asks for."""
    model = request.getfixturevalue("precise" if "precise" in request.fixturenames else "editable")
    return EditContext(settings, moments_of(model), CONTEXTS)


def fact(index: int, *, case_id: str | None = None) -> EditRequest:
    """The index-th correction of a small stream."""
    return EditRequest(
        case_id=case_id or f"case {index}",
        subject=PEOPLE[index % len(PEOPLE)],
        prompt_template=TEMPLATES[index % len(TEMPLATES)],
        target_new=CITIES[(index + 2) % len(CITIES)],
        target_true=CITIES[index % len(CITIES)],
        relation="home",
    )


@pytest.fixture
def requests() -> list[EditRequest]:
    """Four corrections."""
    return [fact(i) for i in range(4)]
