"""Problems from files and data sets: what is read, and the one line for everything that cannot be."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.errors import UserError
from covrl.extras import install_command
from covrl.problems import digits
from covrl.problems.loading import Extract, Fields, load_problems
from covrl.problems.tasks import find_task
from covrl.records import Problem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes rows as JSON lines (or a text or bytes as they are) and returns the path."""

    def write(content: Any, name: str = "train.jsonl") -> str:
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


DEFAULT = Fields()


def error_of(source: str, fields: Fields = DEFAULT) -> str:
    """The message, without the folder of the source."""
    with pytest.raises(UserError) as caught:
        load_problems(source, fields)
    message = str(caught.value)
    assert message.isprintable()  # so it is one line, whatever the data hold
    return message.replace(f"{Path(source).parent}/", "") if source.startswith("/") else message


def row(**fields: Any) -> dict[str, Any]:
    return {"question": "1+1?", "answer": "2"} | fields


# What is read


def test_rows_become_problems_in_file_order(write: Write) -> None:
    path = write([row(), row(question="6x7?", answer=42)])
    assert load_problems(path) == [Problem("train/0", "1+1?", "2"), Problem("train/1", "6x7?", "42")]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@given(rows=st.lists(st.tuples(TEXT, TEXT, st.lists(TEXT, max_size=3)), min_size=1, max_size=6), ascii=st.booleans())
def test_json_lines_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, list[str]]], ascii: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "train.jsonl"
    lines = [{"id": f"n{i}", "q": q, "a": a, "more": more} for i, (q, a, more) in enumerate(rows)]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=ascii) for line in lines), encoding="utf-8", newline="")
    loaded = load_problems(str(path), Fields("q", "a", accepted="more", id="id"))
    assert [(p.id, p.question, p.answer) for p in loaded] == [
        (f"n{i}", q, a.strip()) for i, (q, a, _) in enumerate(rows)
    ]
    assert [set(p.accepted) for p in loaded] == [{m.strip() for m in more} - {a.strip()} for _, a, more in rows]


def test_the_same_rows_in_every_json_form(write: Write) -> None:
    rows = [row(id="a"), row(id="b", question="a\u2028b \u00e9")]
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    forms = [
        write(lines),
        write("\ufeff" + lines.replace("\n", "\r\n\r\n  \r\n"), "marked.jsonl"),
        write(gzip.compress(lines.encode()), "packed.jsonl.gz"),
        write(lines.rstrip(), "lines.json"),
        write("\ufeff " + json.dumps(rows, indent=1), "array.json"),
        write(lines, "UPPER.JSONL"),
    ]
    expected = [Problem("a", "1+1?", "2"), Problem("b", "a\u2028b \u00e9", "2")]
    assert all(load_problems(path, Fields(id="id")) == expected for path in forms)
    assert [load_problems(path)[1].id for path in forms] == [
        "train/1", "marked/1", "packed/1", "lines/1", "array/1", "UPPER/1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("27.0", "27"),
        ("7", "7"),
        ("-3", "-3"),
        ("0.10", "0.1"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1e-7", "1e-7"),
        ("2.50e+22", "2.5e22"),
        ("1e15", "1000000000000000"),
        ("9" * 400, "9" * 400),
    ],
)
def test_numbers_become_their_shortest_text(write: Write, number: str, text: str) -> None:
    (problem,) = load_problems(write(f'{{"question": "q", "answer": {number}}}'))
    assert problem.answer == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_text_of_a_number_is_that_number_and_no_longer_than_pythons(
    tmp_path_factory: pytest.TempPathFactory, number: float
) -> None:
    path = tmp_path_factory.mktemp("number") / "n.jsonl"
    path.write_text(json.dumps(row(answer=number)))
    (problem,) = load_problems(str(path))
    assert float(problem.answer) == number
    assert len(problem.answer) <= len(repr(number))


def test_of_several_answers_the_first_is_scored_and_all_are_accepted(write: Write) -> None:
    path = write([row(answer=["1/2", 0.5, "1/2", r"\frac12"], more=["0.50", "1/2", 0.5])])
    (problem,) = load_problems(path, Fields(accepted="more"))
    assert problem.answer == "1/2"
    assert problem.accepted == ("0.5", r"\frac12", "0.50")


@pytest.mark.parametrize("more", [None, []])
def test_a_row_may_have_no_further_answers(write: Write, more: Any) -> None:
    (problem,) = load_problems(write([row(more=more)]), Fields(accepted="more"))
    assert problem.accepted == ()


@pytest.mark.parametrize(
    ("extract", "solution", "answer"),
    [
        ("none", " 18 \n", "18"),
        ("hash", "9 * 2 = 18\n#### 18\n", "18"),
        ("boxed", r"so \boxed{1} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    ],
)
def test_the_answer_is_extracted_and_holds_nothing_of_the_solution(
    write: Write, extract: Extract, solution: str, answer: str
) -> None:
    (problem,) = load_problems(write([row(answer=solution)]), Fields(extract=extract))
    assert (problem.id, problem.question, problem.answer) == ("train/0", "1+1?", answer)


def test_each_answer_of_a_list_is_extracted_and_accepted_ones_are_taken_as_they_are(write: Write) -> None:
    path = write([row(answer=["so\n#### 4", "thus\n#### four"], more=["4.0"])])
    (problem,) = load_problems(path, Fields(extract="hash", accepted="more"))
    assert (problem.answer, problem.accepted) == ("4", ("four", "4.0"))


def test_dotted_names_reach_into_objects_and_lists_and_a_key_with_a_dot_goes_first(write: Write) -> None:
    nested = {"prompt": [{"content": "q"}], "meta": {"answer": {"final": 4}}, "meta.id": "x", "a": {"b.c": [1]}}
    fields = Fields("prompt.0.content", "meta.answer.final", accepted="a.b.c", id="meta.id")
    assert load_problems(write([nested]), fields) == [Problem("x", "q", "4", ("1",))]


def test_number_ids(write: Write) -> None:
    assert [p.id for p in load_problems(write([row(id=0), row(id=1.0), row(id="1.0")]), Fields(id="id"))] == [
        "0", "1", "1.0",
    ]  # fmt: skip


def test_nan_in_a_field_that_is_not_used_does_not_matter(write: Write) -> None:
    assert len(load_problems(write('{"question": "q", "answer": "a", "score": NaN}'))) == 1


def test_an_embedded_task() -> None:
    assert load_problems("digits:dev") == digits.problems("dev")


def test_loading_imports_neither_torch_nor_the_extras() -> None:
    code = "import sys, covrl.problems.loading; print({'torch', 'datasets', 'pyarrow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# What cannot be read


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (row(question=""), "problem 'train/1': question (field 'question'): empty"),
        (row(question=" \n"), "problem 'train/1': question (field 'question'): nothing but white space"),
        (
            row(question=None),
            "problem 'train/1': question (field 'question'): expected text or a list of messages, found null",
        ),
        (
            row(question=7),
            "problem 'train/1': question (field 'question'): expected text or a list of messages, found the number 7",
        ),
        (row(question=["q"]), "question (field 'question'), message 1: expected an object with role and content"),
        (row(answer=""), "problem 'train/1': answer (field 'answer'): empty"),
        (row(answer="\t"), "problem 'train/1': answer (field 'answer'): nothing but white space"),
        (row(answer=None), "problem 'train/1': answer (field 'answer'): expected text or a number, found null"),
        (row(answer=True), "problem 'train/1': answer (field 'answer'): expected text or a number, found true"),
        (
            row(answer={"a": 1}),
            "problem 'train/1': answer (field 'answer'): expected text or a number, found an object",
        ),
        (row(answer=math.nan), "answer (field 'answer'): expected text or a number, found the number nan"),
        (row(answer=-math.inf), "answer (field 'answer'): expected text or a number, found the number -inf"),
        (row(answer=[]), "problem 'train/1': answer (field 'answer'): an empty list"),
        (row(answer=["a", ""]), "answer (field 'answer'), entry 2: empty"),
        (row(answer=["a", False]), "answer (field 'answer'), entry 2: expected text or a number, found false"),
        (row(answer=[["a"]]), "answer (field 'answer'), entry 1: expected text or a number, found a list"),
        (row(question="a\ud800b"), r"question (field 'question'): holds \ud800, half of a surrogate pair"),
        (row(answer="\udfff"), r"answer (field 'answer'): holds \udfff, half of a surrogate pair"),
        ([1], "train.jsonl:2: expected an object with fields, found a list"),
        (None, "train.jsonl:2: expected an object with fields, found null"),
        ("text", "train.jsonl:2: expected an object with fields, found text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_line(write: Write, wrong: Any, said: str) -> None:
    message = error_of(write([row(), wrong]))
    assert message.startswith("train.jsonl:2: ")
    assert said in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("3", "accepted (field 'more'): expected a list of answers, found text"),
        (["a", " "], "accepted (field 'more'), entry 2: nothing but white space"),
        ([None], "accepted (field 'more'), entry 1: expected text or a number, found null"),
    ],
)
def test_further_answers_that_cannot_be_used(write: Write, more: Any, said: str) -> None:
    message = error_of(write([row(more=more)]), Fields(accepted="more"))
    assert message == f"train.jsonl:1: problem 'train/0': {said}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (Fields(answer="anser"), "no field 'anser' (answer): did you mean answer? the row has "),
        (Fields(question="problem"), "no field 'problem' (question): the row has question, answer, meta.level, ids"),
        (Fields(answer="meta.levl"), "no field 'meta.levl' (answer): did you mean meta.level? the row has question"),
        (Fields(answer="answer.text"), "no field 'answer.text' (answer): did you mean answer? the row has question"),
        (Fields(id="ids.2"), "no field 'ids.2' (id): did you mean ids? the row has question"),
        (Fields(id="ids.first"), "no field 'ids.first' (id): the row has question"),
        (Fields(accepted="accepted"), "no field 'accepted' (accepted): the row has question, answer, meta.level, ids"),
        (Fields(question=""), "no field '' (question): the row has question, answer, meta.level, ids"),
    ],
)
def test_an_unknown_field_names_the_nearest_and_those_there_are(write: Write, fields: Fields, said: str) -> None:
    message = error_of(write([row(meta={"level": 3}, ids=["a", "b"])]), fields)
    assert message.startswith(f"train.jsonl:1: {said}")


def test_rows_without_fields_or_with_very_many(write: Write) -> None:
    assert error_of(write([{}])) == "train.jsonl:1: no field 'question' (question): the row has no fields"
    message = error_of(write([{f"column{i}": i for i in range(1000)}]))
    assert message.endswith("column18, column19, …")


def test_ids_that_come_twice_name_both_lines(write: Write) -> None:
    path = write("\n".join(json.dumps(row(id=i)) for i in ["a", "b"]) + "\n\n" + json.dumps(row(id="a")))
    message = error_of(path, Fields(id="id"))
    assert message == "train.jsonl:4: the problem id 'a' is that of train.jsonl:1 too; ids must be unique"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "expected text or a number, found null"),
        (True, "expected text or a number, found true"),
        ("", "empty"),
    ],
)
def test_ids_that_cannot_be_used(write: Write, value: Any, said: str) -> None:
    assert error_of(write([row(id=value)]), Fields(id="id")) == f"train.jsonl:1: id (field 'id'): {said}"


@pytest.mark.parametrize(
    ("extract", "answer", "said"),
    [
        ("hash", "It is 18.", "there is no #### with an answer after it in 'It is 18.'"),
        ("hash", "so\n####  ", "there is no #### with an answer after it"),
        ("hash", 18, "there is no #### with an answer after it in '18'"),
        ("boxed", r"\boxed{4", r"there is no \boxed{} with an answer in it in '\\boxed{4'"),
        ("boxed", "x" * 500, f"in it in '…{'x' * 60}'; correct the row, or set extract = \"none\""),
    ],
)
def test_extraction_that_finds_nothing_names_the_row_and_the_fix(
    write: Write, extract: Extract, answer: Any, said: str
) -> None:
    fields = Fields(extract=extract)
    good = {"hash": "#### 1", "boxed": r"\boxed{1}"}[extract]
    message = error_of(write([row(answer=good), row(answer=answer)]), fields)
    assert message.startswith("train.jsonl:2: problem 'train/1': answer (field 'answer'): ")
    assert said in message
    assert 'set extract = "none" if the field holds the answer alone' in message


def test_an_unknown_extractor(write: Write) -> None:
    message = error_of(write([row()]), Fields(extract="box"))  # type: ignore[arg-type]
    assert message == "extract: expected one of none, hash, boxed, found 'box'"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.jsonl: there are no problems in it"),
        (b"\xef\xbb\xbf\n \n", "train.jsonl: there are no problems in it"),
        (b"{}\n{oops}\n", "train.jsonl:1: no field 'question'"),
        (b'\n{"question": "q', "train.jsonl:2: not JSON: Unterminated string starting at column 14"),
        (
            b"question,answer\n",
            "train.jsonl:1: not JSON: Expecting value at column 1; each line holds one whole object",
        ),
        (b'{"a": 1} {"a": 2}\n', "train.jsonl:1: not JSON: Extra data at column 10"),
        (b"{\n", "train.jsonl:1: not JSON: "),
        (b'\n{"question": "\xff"}\n', "train.jsonl:2: not UTF-8: byte 0xff; save the file as UTF-8"),
        ('{"question": "q"}'.encode("utf-16"), "train.jsonl:1: not UTF-8: byte 0xff"),
        (b"9" * 5000, "train.jsonl:1: not JSON: Exceeds the limit (4300 digits)"),
        (b"[" * 200_000, "train.jsonl:1: not JSON: "),
    ],
)
def test_lines_that_are_not_json(write: Write, content: bytes, said: str) -> None:
    assert error_of(write(content)).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "all.json: there are no problems in it"),
        (b"", "all.json: there are no problems in it"),
        (b'[{"question": "q", "answer": "a"},\n {"question": "q"}]', "all.json: row 2: no field 'answer'"),
        (b'[{"question": "q",\n "answer" "a"}]', "all.json:2: not JSON: Expecting ':' delimiter at column 11"),
        (b'[\n\n"\xff"]', "all.json:3: not UTF-8: byte 0xff"),
        (b'{\n"rows": []}', "all.json:1: not JSON: Expecting property name enclosed in double quotes"),
    ],
)
def test_json_files_that_cannot_be_used(write: Write, content: bytes, said: str) -> None:
    assert error_of(write(content, "all.json")).startswith(said)


def test_a_json_file_that_is_neither_form_is_told_both(write: Write) -> None:
    message = error_of(write(b'{\n"rows": []}', "all.json"))
    assert message.endswith("the file is one array of objects, or each line holds one whole object")


@pytest.mark.parametrize("name", ["none.jsonl", "none.json", "none.jsonl.gz", "no/where.jsonl"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    assert error_of(str(tmp_path / name)) == f"{Path(name).name}: no such file"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    assert error_of(str(tmp_path / "data.jsonl")) == "data.jsonl: is a folder, not a file"


def test_a_file_that_is_not_gzip_or_is_cut_short(write: Write) -> None:
    assert error_of(write([row()], "a.jsonl.gz")).startswith("a.jsonl.gz: not a whole gzip file: Not a gzipped file")
    packed = gzip.compress(b"".join(json.dumps(row(id=i)).encode() + b"\n" for i in range(99)))
    assert error_of(write(packed[:-20], "b.jsonl.gz")).startswith("b.jsonl.gz: not a whole gzip file: ")
    broken = packed[:30] + bytes(40) + packed[70:]
    assert error_of(write(broken, "c.jsonl.gz")).startswith("c.jsonl.gz: not a whole gzip file: ")


@pytest.mark.parametrize(
    "source", ["", "data.csv", "openai/gsm8k", "openai/gsm8k:train", "https://example.org/a.jsonl", "train", "/"]
)
def test_an_unknown_form_of_source_lists_the_forms(source: str) -> None:
    with pytest.raises(UserError, match=r"not a source of problems: a source is a file .*hf:owner/name.*digits:train"):
        load_problems(source)


def test_an_unknown_task_or_split() -> None:
    assert error_of("digit:train").startswith("digit:train: unknown task 'digit': did you mean digits? (a source is ")
    assert error_of("digits:tset").startswith("digits:tset: task digits has no split 'tset'; there are base, train")
    assert "no split ''" in error_of("digits:")


def test_texts_that_would_break_the_line_are_escaped(write: Write) -> None:
    message = error_of(write([{"a\nb\x1b\ud800": 1}], "od\nd.jsonl"))
    assert message.startswith(r"od\nd.jsonl:1: no field 'question' (question): the row has a\nb\x1b\ud800")


# Parquet


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[[list[dict[str, Any]]], str]:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra data)")
    import_parquet = pytest.importorskip("pyarrow.parquet")

    def write(rows: list[dict[str, Any]]) -> str:
        import_parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "train.parquet")
        return str(tmp_path / "train.parquet")

    return write


def test_parquet(parquet: Callable[[list[dict[str, Any]]], str]) -> None:
    from decimal import Decimal

    rows = [
        {"m": {"q": "a"}, "x.y": 2.0, "more": ["two"], "n": 7, "price": Decimal("1.50"), "blob": b"\xff"},
        {"m": {"q": "b"}, "x.y": 0.5, "more": None, "n": 8, "price": Decimal("100.00"), "blob": b"\xff"},
    ]
    path = parquet(rows)
    assert load_problems(path, Fields("m.q", "x.y", accepted="more", id="n")) == [
        Problem("7", "a", "2", ("two",)),
        Problem("8", "b", "0.5"),
    ]
    assert [(p.id, p.answer) for p in load_problems(path, Fields("m.q", "price"))] == [
        ("train/0", "1.5"),
        ("train/1", "100"),
    ]
    assert error_of(path, Fields("m.q", "blob")).endswith("expected text or a number, found bytes")
    assert error_of(path, Fields("m.r", "n")) == (
        "train.parquet: row 1: no field 'm.r' (question): did you mean m.q? the row has m.q, n, x.y, more, price, blob"
    )
    assert error_of(path, Fields("question", "n")).endswith("(question): the row has n, m, x.y, more, price, blob")
    assert error_of(path, Fields()).endswith("(question): the row has m.q, x.y, more, n, price, blob")


def test_the_solution_is_read_from_a_column_of_its_own(parquet: Callable[[list[dict[str, Any]]], str]) -> None:
    path = parquet([row(work="add them", other="x")])
    assert load_problems(path, Fields(solution="work")) == [Problem("train/0", "1+1?", "2", solution="add them")]


def test_parquet_that_cannot_be_used(parquet: Callable[[list[dict[str, Any]]], str], write: Write) -> None:
    path = parquet([row(), row(answer=None)])
    assert error_of(path) == (
        "train.parquet: row 2: problem 'train/1': answer (field 'answer'): expected text or a number, found null"
    )
    assert error_of(parquet([row(id="a"), row(id="a")]), Fields(id="id")) == (
        "train.parquet: row 2: the problem id 'a' is that of train.parquet: row 1 too; ids must be unique"
    )
    whole = Path(path).read_bytes()
    assert error_of(write(b"", "a.parquet")).startswith("a.parquet: not a Parquet file that can be read: ")
    assert error_of(write(whole[:-9], "b.parquet")).startswith("b.parquet: not a Parquet file that can be read: ")
    assert error_of(write(whole[:4] + bytes(60) + whole[64:], "c.parquet")).startswith("c.parquet: ")
    assert error_of(str(Path(path).parent / "none.parquet")) == "none.parquet: no such file"


# Extras and data sets by name


@pytest.mark.parametrize(
    ("module", "source"), [("pyarrow", "train.parquet"), ("datasets", "hf:openai/gsm8k/main:train")]
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str, source: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    message = error_of(source)
    assert f"{source.split('/')[-1]}: this source needs the package {module} (" in message
    assert message.endswith(install_command("data"))


class FakeTable:
    """The part of ``datasets.Dataset`` that is used."""

    def __init__(self, rows: list[dict[str, Any]], selected: tuple[str, ...] | None = None) -> None:
        self.rows, self.selected = rows, selected
        self.column_names = list(rows[0]) if rows else ["question", "answer"]

    def select_columns(self, columns: list[str]) -> FakeTable:
        return FakeTable([{c: r[c] for c in columns} for r in self.rows], tuple(columns))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[Any, ...]]]:
    """Puts a ``datasets`` in place that returns a table of the rows, or raises; gives the calls that it got."""

    def install(answer: Any) -> list[tuple[Any, ...]]:
        calls: list[tuple[Any, ...]] = []

        def load_dataset(name: str, config: str | None, split: str) -> FakeTable:
            calls.append((name, config, split))
            if isinstance(answer, Exception):
                raise answer
            return FakeTable(answer)

        module = ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return install


@pytest.mark.parametrize(
    ("source", "call", "problem_id"),
    [
        ("hf:openai/gsm8k/main:train", ("openai/gsm8k", "main", "train"), "openai/gsm8k/main/train/0"),
        ("hf:owner/name:test", ("owner/name", None, "test"), "owner/name/test/0"),
        ("hf:owner/name:train[:10%]", ("owner/name", None, "train[:10%]"), "owner/name/train[/10%]/0"),
    ],
)
def test_a_data_set_by_name(hub: Any, source: str, call: tuple[Any, ...], problem_id: str) -> None:
    calls = hub([row(answer="so\n#### 2", picture="costly to decode")])
    assert load_problems(source, Fields(extract="hash")) == [Problem(problem_id, "1+1?", "2", solution="so")]
    assert calls == [call]


def test_rows_of_a_data_set_that_cannot_be_used(hub: Any) -> None:
    source = "hf:owner/name:train"
    hub([row(), row(answer=" ")])
    assert error_of(source).startswith(
        "hf:owner/name:train: row 2: problem 'owner/name/train/1': answer (field 'answer'): nothing but white space"
    )
    hub([{"problem": "q", "solution": "s"}])
    assert error_of(source).endswith("row 1: no field 'question' (question): the row has problem, solution")
    hub([])
    assert error_of(source) == "hf:owner/name:train: there are no problems in it"


class DatasetNotFoundError(FileNotFoundError): ...


class ConnectError(Exception): ...


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ValueError("Unknown split \"trian\". Should be one of ['train']."), "the data set has no split 'trian'"),
        (ValueError("BuilderConfig 'cfg' not found. Available: ['main']"), "the data set has no config 'cfg'"),
        (ValueError("Config name is missing.\nPlease pick one: ['a', 'b']"), "the data set needs a config: write hf:"),
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub"), "no such data set on the hub, or it is priv"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset on the Hub."), "the data set is gated: accept its"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)"), "the hub cannot be reached (no ne"),
        (ConnectError("name or service not known"), "the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"),
        (RuntimeError("Dataset scripts are no longer supported, but found a.py"), "the data set is a script, which"),
        (KeyError("odd\nthing"), "the datasets package cannot load it (KeyError: "),
        (ValueError("x" * 5000), "the datasets package cannot load it (ValueError: "),
    ],
)
def test_what_the_datasets_package_raises_becomes_one_line(hub: Any, error: Exception, cause: str) -> None:
    hub(error)
    message = error_of("hf:a/b/cfg:trian")
    assert message.startswith(f"hf:a/b/cfg:trian: {cause}")
    assert message.endswith("; or give the path of a .jsonl or .parquet file of it")
    assert len(message) < 500


@pytest.mark.parametrize("source", ["hf:", "hf:gsm8k", "hf:gsm8k:train", "hf:openai/gsm8k", "hf:openai/gsm8k:"])
def test_a_data_set_without_owner_or_split_is_told_the_form(source: str) -> None:
    with pytest.raises(UserError, match=r"expected hf:owner/name\[/config\]:split, such as hf:openai/gsm8k/main:train"):
        load_problems(source)


def test_the_real_datasets_package_on_a_local_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="datasets is not installed (the extra data)")
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(json.dumps(row(more=["two"])) + "\n" + json.dumps(row(answer="3", more=[])))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    loaded = load_problems("hf:owner/name:train", Fields(accepted="more"))
    assert loaded == [
        Problem("owner/name/train/0", "1+1?", "2", ("two",)),
        Problem("owner/name/train/1", "1+1?", "3"),
    ]
    assert error_of("hf:owner/name:train", Fields("q", "a")).endswith(
        "train: row 1: no field 'q' (question): the row has question, answer, more"
    )
    assert "the data set has no split 'tset' (ValueError: Unknown split" in error_of("hf:owner/name:tset")
    assert "the data set has no config 'main' (ValueError: " in error_of("hf:owner/name/main:train")
    assert len(load_problems("hf:owner/name:train[:1]")) == 1


# Real problems


def real(name: str) -> str:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not there")
    return str(DATA / name)


@pytest.mark.parametrize(
    ("name", "fields", "count", "first", "last"),
    [
        ("gsm8k/train.jsonl", Fields(extract="hash"), 7473, "72", "50"),
        ("gsm8k/test.jsonl", Fields(extract="hash"), 1319, "18", "14"),
        (
            "math500/test.jsonl",
            Fields("problem", id="unique_id"),
            500,
            r"\left( 3, \frac{\pi}{2} \right)",
            r"106^\circ",
        ),
        ("amc23/test.jsonl", Fields(id="id"), 40, "27", "8"),
        ("aime24/test.jsonl", Fields("problem", id="id"), 30, "204", "902"),
    ],
)
def test_real_data_sets(name: str, fields: Fields, count: int, first: str, last: str) -> None:
    problems = load_problems(real(name), fields)
    assert len(problems) == count
    assert all(p.question.strip() and p.answer and p.answer == p.answer.strip() for p in problems)
    assert problems[0].answer == first
    assert problems[-1].answer == last
    assert not any("####" in p.answer or "\n" in p.answer for p in problems)


def test_extracted_answers_of_math500_are_the_given_ones() -> None:
    given_answers = load_problems(real("math500/test.jsonl"), Fields("problem"))
    extracted = load_problems(real("math500/test.jsonl"), Fields("problem", "solution", extract="boxed"))
    same = sum(a.answer == b.answer for a, b in zip(given_answers, extracted, strict=True))
    assert same == 500


def test_gsm8k_with_the_wrong_setting_says_so() -> None:
    message = error_of(real("gsm8k/train.jsonl"), Fields(extract="boxed"))
    assert message.startswith("train.jsonl:1: problem 'train/0': answer (field 'answer'): there is no \\boxed{}")


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ("1,200", "1200"),
        ("-12,345,678.50", "-12345678.50"),
        ("$1,200", "$1200"),
        ("3,4", "3,4"),
        ("1,2000", "1,2000"),
        ("1234,567", "1234,567"),
        ("1,200,30", "1,200,30"),
        ("0.125,300", "0.125,300"),
        ("1,200 or 3", "1200 or 3"),
    ],
)
def test_behind_hashes_numbers_lose_their_thousands_separators(write: Write, given: str, answer: str) -> None:
    path = write([row(answer=f"so it is 1,200\n#### {given}")])
    (problem,) = load_problems(path, Fields(extract="hash"))
    assert (problem.answer, problem.solution) == (answer, "so it is 1,200")
    (plain,) = load_problems(write([row(answer=given)]), Fields())
    assert plain.answer == given, "answers that are taken as they are keep theirs"


def test_no_answer_of_gsm8k_keeps_a_comma() -> None:
    problems = load_problems(real("gsm8k/train.jsonl"), Fields(extract="hash"))
    assert sum("," in p.answer for p in problems) == 0
    assert sum(p.answer == "1200" for p in problems) > 0


def test_a_task_by_name_names_the_option_that_was_typed() -> None:
    with pytest.raises(UserError, match=r"^--task: unknown task 'animal': did you mean animals\?$"):
        find_task("animal")


def test_a_field_that_the_answer_is_taken_from_is_the_worked_solution(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        json.dumps({"question": "6 x 7?", "answer": "6 times 7\nis 42\n#### 42", "why": " see above "}) + "\n"
    )
    (hashed,) = load_problems(str(path), Fields(extract="hash"))
    assert (hashed.answer, hashed.solution) == ("42", "6 times 7\nis 42")
    (named,) = load_problems(str(path), Fields(extract="hash", solution="why"))
    assert named.solution == "see above"
    (plain,) = load_problems(str(path), Fields())
    assert plain.solution is None
