"""Texts from files, folders and datasets: what is read, in which order, under which digest."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from nse.corpus import PASSAGE, PIECE, open_corpus
from nse.errors import StatisticsError
from nse.fingerprint import file_digest

TEXTS = ["Anna lives in Oslo.", "Эмма Жук, 北京市 👩‍🚀", "A text with\u2028a separator"]


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def records(texts: list[str]) -> list[object]:
    return [{"text": text, "id": i} if i % 2 else text for i, text in enumerate(texts)]


FORMATS = {
    "c.txt": "\n".join(TEXTS) + "\n",
    "no_suffix": "\r\n".join(["", *TEXTS, "  "]),
    "bom.txt": "\ufeff" + "\n".join(TEXTS),
    "c.jsonl": "\n\n".join(json.dumps(r, ensure_ascii=False) for r in records(TEXTS)),
    "c.json": json.dumps(records(TEXTS), ensure_ascii=False, indent=1),
    "escaped.json": " " + json.dumps(records(TEXTS)),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_every_format_gives_its_texts(tmp_path, name, packed) -> None:
    path = write(tmp_path / (name + packed), FORMATS[name])
    assert list(open_corpus(path).texts()) == TEXTS
    assert open_corpus(path).digest() == file_digest(path)


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_files(tmp_path) -> None:
    write(tmp_path / "c" / "b.txt", "third")
    write(tmp_path / "c" / "a" / "z.jsonl.gz", '{"text": "second"}')
    write(tmp_path / "c" / "a" / "a.json", '["first"]')
    write(tmp_path / "c" / ".hidden", "never")
    write(tmp_path / "c" / ".git" / "x.txt", "never")
    assert list(open_corpus(tmp_path / "c").texts()) == ["first", "second", "third"]


def test_a_folders_digest_follows_names_and_contents_and_not_its_place(tmp_path) -> None:
    for name in ("one", "two", "renamed", "changed"):
        write(tmp_path / name / "a.txt", "x")
        write(tmp_path / name / "b.txt", "y")
    (tmp_path / "renamed" / "b.txt").rename(tmp_path / "renamed" / "c.txt")
    write(tmp_path / "changed" / "b.txt", "z")
    one, two, renamed, changed = (open_corpus(tmp_path / n).digest() for n in ("one", "two", "renamed", "changed"))
    assert one == two
    assert len({one, renamed, changed}) == 3


@pytest.mark.parametrize("word", ["word ", "北", "👩"])
def test_a_line_as_long_as_a_book_comes_in_whole_pieces(tmp_path, word) -> None:
    book = word * (2 * PIECE // len(word.encode()) + 1000)
    texts = list(open_corpus(write(tmp_path / "book.txt", book + "\nend")).texts())
    assert "".join(texts) == book + "end"
    assert len(texts) >= 4
    assert all(len(t.encode()) <= PIECE and t.endswith(word) for t in texts[:-1])


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_records_across_the_pieces_of_a_file_stay_whole(tmp_path, suffix) -> None:
    texts = [f"{i} " + "北 👩 text " * (i % 500) for i in range(600)] + ["x" * (PIECE + PIECE // 2)]
    lines = [json.dumps(text, ensure_ascii=False) for text in texts]
    data = "[" + ",\n".join(lines) + "]" if suffix == ".json" else "\n".join(lines)
    assert len(data.encode()) > 3 * PIECE
    assert list(open_corpus(write(tmp_path / f"c{suffix}", data)).texts()) == texts


def test_a_file_is_read_as_its_texts_are_asked_for(tmp_path) -> None:
    texts = open_corpus(write(tmp_path / "c.txt", b"line\n" * 9 + b"\xff")).texts()
    assert [next(texts) for _ in range(9)] == ["line"] * 9
    with pytest.raises(StatisticsError, match=r"not UTF-8 \(line 10, byte 0\)"):
        next(texts)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("c.txt", b"fine\nM\xfcnchen", r"c\.txt is not UTF-8 \(line 2, byte 1\)"),
        ("c.txt.gz", b"fine\nM\xfcnchen", r"c\.txt\.gz is not UTF-8 \(line 2, byte 1\)"),
        ("c.jsonl", b'"fine"\n\n"M\xfcnchen"', r"c\.jsonl is not UTF-8 \(line 3, byte 2\)"),
        ("c.json", b'["fine",\n"M\xfcnchen"]', r"c\.json is not UTF-8 \(line 2, byte 2\)"),
        ("c.jsonl", "{}", r"c\.jsonl line 1 has no text: write a text, or an object with the field 'text'"),
        ("c.jsonl", '"x"\n{"text": 3}', r"c\.jsonl line 2 has no text"),
        ("c.jsonl", '"x"\n{', r"c\.jsonl line 2 is not JSON"),
        ("c.json", '{"text": "x"}', r"c\.json is not a JSON list: write one record a line"),
        ("c.json", '["x", {"text": null}]', r"c\.json record 1 has no text"),
        ("c.json", '["x", "y', r"c\.json record 1 is not JSON"),
        ("c.json", '["x"', r"c\.json record 1 is not JSON"),
        ("c.json", "", r"c\.json is not a JSON list"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, name, data, message) -> None:
    with pytest.raises(StatisticsError, match=message) as caught:
        list(open_corpus(write(tmp_path / name, data)).texts())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"no gzip", gzip.compress(b"a text\n" * 1000, mtime=0)[:-20]])
def test_a_broken_archive_is_refused(tmp_path, data) -> None:
    (tmp_path / "c.txt.gz").write_bytes(data)
    with pytest.raises(StatisticsError, match=r"c\.txt\.gz cannot be read"):
        list(open_corpus(tmp_path / "c.txt.gz").texts())


def test_a_missing_corpus_and_an_empty_folder_are_refused(tmp_path) -> None:
    with pytest.raises(StatisticsError, match="cannot be read"):
        open_corpus(tmp_path / "c.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StatisticsError, match="holds no file"):
        open_corpus(tmp_path / "empty")


class TestDatasets:
    """A dataset of the `datasets` library saved to disk."""

    def test_its_texts_come_in_order_and_its_digest_follows_them(self, tmp_path) -> None:
        datasets = pytest.importorskip("datasets")
        for name, texts in (("one", TEXTS), ("two", TEXTS), ("other", TEXTS[::-1])):
            datasets.Dataset.from_dict({"id": [1, 2, 3], "text": texts}).save_to_disk(str(tmp_path / name))
        assert list(open_corpus(tmp_path / "one").texts()) == TEXTS
        one, two, other = (open_corpus(tmp_path / n).digest() for n in ("one", "two", "other"))
        assert one == two != other

    def test_one_without_texts_and_one_of_several_splits_are_refused(self, tmp_path) -> None:
        datasets = pytest.importorskip("datasets")
        without = datasets.Dataset.from_dict({"title": ["x"]})
        without.save_to_disk(str(tmp_path / "without"))
        with pytest.raises(StatisticsError, match=r"has no column 'text' \(it has title\)"):
            list(open_corpus(tmp_path / "without").texts())
        datasets.DatasetDict({"train": without}).save_to_disk(str(tmp_path / "splits"))
        with pytest.raises(StatisticsError, match="several splits: give one of them"):
            open_corpus(tmp_path / "splits")

    def test_without_the_library_it_is_refused_in_one_line(self, tmp_path, monkeypatch) -> None:
        write(tmp_path / "d" / "state.json", "{}")
        write(tmp_path / "d" / "dataset_info.json", "{}")
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(StatisticsError, match="the `datasets` library is missing: install it"):
            list(open_corpus(tmp_path / "d").texts())


class TestSamples:
    """Passages drawn from all over a corpus."""

    @pytest.fixture
    def corpus(self, tmp_path) -> Path:
        """A thousand texts in subjects of a hundred each, in a folder of files of several formats."""
        lines = [f"subject {i // 100} sentence {i}" for i in range(1000)]
        write(tmp_path / "c" / "a.txt", "\n".join(lines[:300]))
        write(tmp_path / "c" / "b.jsonl.gz", "\n".join(json.dumps({"text": line}) for line in lines[300:700]))
        write(tmp_path / "c" / "c.json", json.dumps(lines[700:]))
        return tmp_path / "c"

    def test_a_sample_comes_from_the_whole_corpus_in_random_order(self, corpus) -> None:
        drawn = open_corpus(corpus).sample(characters=5000, seed=0)
        assert 5000 <= sum(map(len, drawn)) < 5000 + len("subject 9 sentence 999")
        subjects = [text.split()[1] for text in drawn]
        assert set(subjects) == set("0123456789")
        assert max(map(subjects.count, subjects)) < len(drawn) / 4
        assert drawn != sorted(drawn, key=lambda text: int(text.split()[-1]))

    def test_the_seed_alone_decides_and_a_larger_sample_begins_with_a_smaller_one(self, corpus) -> None:
        source = open_corpus(corpus)
        small, again, large, other = (
            source.sample(characters=n, seed=s) for n, s in ((2000, 0), (2000, 0), (6000, 0), (2000, 1))
        )
        assert small == again == large[: len(small)]
        assert small != other

    def test_a_corpus_smaller_than_the_sample_is_drawn_whole_and_once(self, corpus) -> None:
        source = open_corpus(corpus)
        assert sorted(source.sample(characters=10**9, seed=0)) == sorted(source.texts())

    def test_a_book_on_one_line_is_drawn_by_the_passage(self, tmp_path) -> None:
        book = " ".join(f"word{i}" for i in range(20_000))
        source = open_corpus(write(tmp_path / "c.txt", "short\n" * 20 + book))
        drawn = source.sample(characters=10 * PASSAGE, seed=0)
        assert all(len(text) <= PASSAGE and text == text.strip() for text in drawn)
        assert sum(map(len, drawn)) < 11 * PASSAGE
        whole = source.sample(characters=10**9, seed=0)
        assert {word for text in whole for word in text.split()} == {"short", *book.split()}

    def test_a_text_without_spaces_is_cut_all_the_same(self, tmp_path) -> None:
        drawn = open_corpus(write(tmp_path / "c.txt", "北" * (2 * PASSAGE + 5))).sample(characters=10**9, seed=0)
        assert sorted(map(len, drawn)) == [5, PASSAGE, PASSAGE]
