"""Problems from files, from Hugging Face data sets by name, and from the embedded tasks.

A row becomes a :class:`Problem` by field names (:class:`Fields`). Input that cannot be used is an error of one line:
the place (``train.jsonl:12``, or ``train.parquet: row 12``; lines and rows count from 1), what was found there and what
would be right. No row is skipped or repaired silently, apart from blank lines, a byte order mark, and white space
around an answer.

``datasets`` and ``pyarrow`` are imported only for the sources that need them.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import re
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from covrl.errors import UserError
from covrl.escapes import lost_backslash
from covrl.extras import install_command
from covrl.problems.conversation import (
    ANSWERS,
    OPTIONS,
    QUESTIONS,
    REPLY,
    Conversation,
    read_conversation,
    read_options,
    read_reply,
)
from covrl.problems.tasks import find_task
from covrl.problems.values import check_text, kind, row_error
from covrl.records import Problem, Turn
from covrl.rewards.extract import EXTRACTORS

Extract = Literal["none", "hash", "boxed"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")

FORMS = (
    "a source is a file (.jsonl, .jsonl.gz, .json or .parquet), a data set hf:owner/name[/config]:split, "
    "or a split of an embedded task such as digits:train"
)

FIELDS_LISTED = 20
"""Fields of a row that an error names at most."""

_HUB_SOURCE = re.compile(r"hf:(?P<name>[^/:\s]+/[^/:\s]+)(?:/(?P<config>[^:\s]+))?:(?P<split>.+)")
_TASK_SOURCE = re.compile(r"(?P<task>[A-Za-z][\w-]*):(?P<split>[\w-]*)")
_GROUPED_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NOTHING_FOUND = {"hash": "#### with an answer after it", "boxed": r"\boxed{} with an answer in it"}


@dataclass(frozen=True)
class Fields:
    r"""Which fields of a row make a problem.

    A dotted name reaches into objects (``meta.answer``) and lists (``prompt.0.content``). ``answer`` is text, a number,
    or a list of them: the first is scored, all are accepted; with ``every`` all of them together are the answer. With
    ``truth`` it may be true or false, which become these words. ``accepted`` names a list of further accepted answers,
    taken as they are; it may be empty or null. ``extract`` is how the answer is taken from its field: as it is, after
    the last ``####`` (there thousands separators are removed: 1,200 becomes 1200), or from the last ``\boxed{}``.
    ``solution`` names a field with a worked solution; without one, a field that the answer was extracted from is the
    solution (up to the last ``####``). ``system`` names a field with the problem's own system message.

    A question may be a list of messages (:mod:`covrl.problems.conversation`). With the names of question and answer
    left as they are, a row without such a field is read as TRL and verl write it. Variables for the chat template are
    read where a row has them.

    Example:
        >>> Fields(question="problem", answer="solution", extract="boxed")
    """

    question: str = "question"
    answer: str = "answer"
    accepted: str | None = None
    id: str | None = None
    extract: Extract = "none"
    solution: str | None = None
    every: bool = False
    truth: bool = False
    system: str | None = None

    @property
    def questions(self) -> tuple[str, ...]:
        """The fields that may hold the question: the first that a row has is read."""
        return (self.question, *(QUESTIONS if self.question == Fields.question else ()))

    @property
    def answers(self) -> tuple[str, ...]:
        """The fields that may hold the answer: the first that a row has is read."""
        return (self.answer, *((*ANSWERS, REPLY) if self.answer == Fields.answer else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that are read, as they are named."""
        every = (*self.questions, *self.answers, self.accepted, self.id, self.solution, self.system, OPTIONS)
        return tuple(name for name in every if name is not None)


class _Row(NamedTuple):
    where: str
    value: Any
    unread: Sequence[str] = ()
    """Other columns of the row, which no field needs."""


def load_problems(source: str, fields: Fields = Fields(), name: str = "") -> list[Problem]:
    """All problems of a source, in its order. An id is the row's own, or ``<name>/<row number from 0>``.

    Without a ``name`` it is the file's, without its ending, or the data set's.

    Example:
        >>> load_problems("gsm8k/train.jsonl", Fields(extract="hash"))[0].id
        'train/0'

    Raises:
        UserError: the source cannot be read, has no rows, or a row cannot be used.
    """
    if fields.extract not in get_args(Extract):
        raise UserError(f"extract: expected one of {', '.join(get_args(Extract))}, found {fields.extract!r}")
    if rows := _rows(source, fields.names):
        return _problems(rows, source, name or stem_of(source), fields)
    if task := _TASK_SOURCE.fullmatch(source):
        try:
            return find_task(task["task"], where="").problems(task["split"])
        except UserError as error:
            raise row_error(source, f"{error} ({FORMS})") from None
    raise row_error(source or "problems", f"not a source of problems: {FORMS}")


def read_rows(source: str, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file or data set as they are, each with its place, which an error about it should begin with.

    ``names`` are the fields that will be asked for; see :func:`field_of`.

    Raises:
        UserError: the source cannot be read, or a row is no object.
    """
    rows = _rows(source, names)
    if rows is None:
        raise row_error(source or "problems", f"not a file or data set: {FORMS}")
    for row in rows:
        if not isinstance(row.value, Mapping):
            raise row_error(row.where, f"expected an object with fields, found {kind(row.value)}")
        yield row.where, row.value


def field_of(where: str, row: Mapping[str, Any], role: str, name: str) -> Any:
    """The value of a field (dotted names reach inside).

    Raises:
        UserError: there is no such field; the message has the nearest name.
    """
    return _field(_Row(where, row), role, name)


def stem_of(source: str) -> str:
    """What the ids of a source's problems begin with: the file's name, or the data set's."""
    suffix = _suffix(source)
    return Path(source).name[: -len(suffix)] if suffix else source.removeprefix("hf:").replace(":", "/")


def _rows(source: str, names: Sequence[str]) -> Iterator[_Row] | None:
    """The rows of a data set or file; None for any other source."""
    if "\0" in source:
        raise row_error(source, "holds a NUL, so it is no name of a file")
    if source.startswith("hf:"):
        return _hub_rows(source, names)
    suffix = _suffix(source)
    if suffix is None:
        return None
    path = Path(source).expanduser()
    return _parquet_rows(path, names) if suffix == ".parquet" else _json_rows(path, suffix)


def _suffix(source: str) -> str | None:
    if "://" in source:  # would only be reported as a missing file
        return None
    return next((suffix for suffix in SUFFIXES if source.lower().endswith(suffix)), None)


def _problems(rows: Iterator[_Row], source: str, stem: str, fields: Fields) -> list[Problem]:
    problems: list[Problem] = []
    places: dict[str, str] = {}
    for number, row in enumerate(rows):
        problem = _problem(row, f"{stem}/{number}", fields)
        if problem.id in places:
            first = places[problem.id]
            raise row_error(row.where, f"the problem id {problem.id!r} is that of {first} too; ids must be unique")
        places[problem.id] = row.where
        problems.append(problem)
    if not problems:
        raise row_error(source, "there are no problems in it")
    return problems


# One row


def _problem(row: _Row, default_id: str, fields: Fields) -> Problem:
    if not isinstance(row.value, Mapping):
        raise row_error(row.where, f"expected an object with fields, found {kind(row.value)}")
    problem_id = default_id
    if fields.id is not None:
        problem_id = _answer_text(_field(row, "id", fields.id), f"{row.where}: id (field {fields.id!r})")
    place = f"{row.where}: problem {problem_id!r}"
    said = _conversation(row, place, fields)
    name, value = _answer(row, said, fields)
    spot = f"{place}: answer (field {name!r})"
    value = read_reply(value, spot) if name == REPLY else value
    value = str(value) if fields.truth and isinstance(value, bool) else value
    answers = [_extracted(*a, fields.extract) for a in _answer_list(value, spot)]
    if not answers:
        raise row_error(spot, "an empty list, so there is no answer to score")
    if fields.every and len(answers) > 1:
        answers = [", ".join(answer.strip().strip("$") for answer in answers)]
    if fields.accepted is not None:
        answers += _accepted(_field(row, "accepted", fields.accepted), f"{place}: accepted (field {fields.accepted!r})")
    answer, *accepted = dict.fromkeys(answers)
    if fields.solution is not None:
        name, value = fields.solution, _field(row, "solution", fields.solution)
    return Problem(
        id=problem_id,
        question=said.question,
        answer=answer,
        accepted=tuple(accepted),
        solution=_solution(name, value, place, fields),
        turns=said.turns,
        template_options=read_options(row.value.get(OPTIONS), f"{place}: {OPTIONS}"),
    )


def _conversation(row: _Row, place: str, fields: Fields) -> Conversation:
    """The row's question, and the messages around it."""
    name, value = _first(row, "question", fields.questions)
    spot = f"{place}: question (field {name!r})"
    if isinstance(value, list):
        said = read_conversation(value, spot)
    elif isinstance(value, str):
        check_text(value, spot)
        said = Conversation(value)
    else:
        raise row_error(spot, f"expected text or a list of messages, found {kind(value)}")
    if fields.system is None or (system := _field(row, "system message", fields.system)) is None:
        return said
    spot = f"{place}: system message (field {fields.system!r})"
    if not isinstance(system, str):
        raise row_error(spot, f"expected text, found {kind(system)}")
    check_text(system, spot)
    if said.turns and said.turns[0].role == "system":
        raise row_error(spot, f"the messages of {name!r} have a system message too; there is one at most")
    return said._replace(turns=(Turn("system", system), *said.turns))


def _answer(row: _Row, said: Conversation, fields: Fields) -> tuple[str, Any]:
    """The field that has the row's answer, and what is in it; the assistant's reply where no field has it."""
    if said.reply is not None and fields.answer == Fields.answer and not _has(row, fields.answers):
        return next(name for name in fields.questions if _has(row, (name,))), said.reply
    return _first(row, "answer", fields.answers)


def _has(row: _Row, names: Sequence[str]) -> bool:
    return any(_present(row, name) for name in names)


def _first(row: _Row, role: str, names: Sequence[str]) -> tuple[str, Any]:
    """The first of the fields that the row has, and its value."""
    name = next((name for name in names if _present(row, name)), names[0])
    return name, _field(row, role, name)


def _present(row: _Row, name: str) -> bool:
    try:
        _reach(row.value, name)
    except (LookupError, ValueError):
        return False
    return True


def _solution(name: str, value: Any, place: str, fields: Fields) -> str | None:
    """The worked solution of a field, or of what the answer was taken from."""
    if fields.solution is None and fields.extract == "none":
        return None
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str):
        raise row_error(f"{place}: solution (field {name!r})", f"expected text, found {kind(value)}")
    if lost := lost_backslash(value):
        raise row_error(f"{place}: solution (field {name!r})", lost)
    cut = value.rpartition("####")[0] if fields.extract == "hash" and "####" in value else value
    return cut.strip() or None


def _accepted(value: Any, spot: str) -> list[str]:
    if value is None:  # how a table marks a row without a list
        return []
    if not isinstance(value, list):
        raise row_error(spot, f"expected a list of answers, found {kind(value)}")
    return [text for text, _ in _answer_list(value, spot)]


def _answer_list(value: Any, spot: str) -> list[tuple[str, str]]:
    """Each answer with the place that an error about it names."""
    if not isinstance(value, list):
        return [(_answer_text(value, spot), spot)]
    spots = [f"{spot}, entry {i}" for i in range(1, len(value) + 1)]
    return [(_answer_text(entry, at), at) for entry, at in zip(value, spots, strict=True)]


def _answer_text(value: Any, spot: str) -> str:
    text = value if isinstance(value, str) else _number_text(value)
    if text is None:
        raise row_error(spot, f"expected text or a number, found {kind(value)}")
    check_text(text, spot, is_formula=True)
    return text.strip()


def _extracted(text: str, spot: str, extract: Extract) -> str:
    found = EXTRACTORS[extract](text)
    if found is None:
        shown = text if len(text) <= 60 else f"…{text[-60:]}"
        raise row_error(
            spot,
            f"there is no {_NOTHING_FOUND[extract]} in {shown!r}; correct the row, "
            'or set extract = "none" if the field holds the answer alone',
        )
    return _GROUPED_NUMBER.sub(lambda number: number[0].replace(",", ""), found) if extract == "hash" else found


def _number_text(value: Any) -> str | None:
    """The shortest text of a number, ``None`` for anything else: 27.0 is ``27``, 1e-07 is ``1e-7``."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if not isinstance(value, int) and not math.isfinite(value):  # an int may be too large for isfinite
        return None
    if isinstance(value, Decimal):
        text = format(value, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = re.sub(r"e([+-])0*", lambda e: "e" + e[1].strip("+"), repr(value).removesuffix(".0"))
    return "0" if text == "-0" else text


def _field(row: _Row, role: str, name: str) -> Any:
    try:
        return _reach(row.value, name)
    except (LookupError, ValueError):
        pass
    known = [*_paths(row.value), *row.unread]
    leaves = [path for path in known if not any(other.startswith(f"{path}.") for other in known)]
    listed = ", ".join(leaves[:FIELDS_LISTED]) + (", …" if len(leaves) > FIELDS_LISTED else "")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.65)  # solution is not what was meant by question
    hint = f"did you mean {near[0]}? " if near else ""
    raise row_error(row.where, f"no field {name!r} ({role}): {hint}the row has {listed or 'no fields'}")


def _reach(value: Any, name: str) -> Any:
    """The value at a dotted name; a key that itself holds the dot goes first.

    Raises:
        LookupError, ValueError: there is none.
    """
    if isinstance(value, Mapping) and name in value:
        return value[name]
    head, dot, rest = name.partition(".")
    if isinstance(value, list):
        inner = value[int(head)]
    elif isinstance(value, Mapping):
        inner = value[head]
    else:
        raise LookupError(name)
    return _reach(inner, rest) if dot else inner


def _paths(row: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in row.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


# Files


def _json_rows(path: Path, suffix: str) -> Iterator[_Row]:
    """The rows of JSON lines, or of a ``.json`` file that holds one array."""
    with _reading(path), gzip.open(path) if suffix == ".jsonl.gz" else path.open("rb") as file:
        if suffix == ".json" and file.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            rows = _parsed(_decoded(file.read(), path, 1), path, 1)
            yield from (_Row(f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(file, 1):
            text = _decoded(line, path, number).rstrip()
            if text:
                yield _Row(f"{path}:{number}", _parsed(text, path, number))


def _decoded(raw: bytes, path: Path, first_line: int) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = first_line + raw.count(b"\n", 0, error.start)
        raise row_error(f"{path}:{line}", f"not UTF-8: byte 0x{raw[error.start]:02x}; save the file as UTF-8") from None


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what, line = f"{error.msg.removesuffix(' at')} at column {error.colno}", first_line + error.lineno - 1
        if error.msg.startswith("Invalid \\"):  # of \sqrt, say
            what += r" (a backslash is written twice in JSON: \\sqrt)"
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; very deep nesting
        what, line = str(error), first_line
    array = "the file is one array of objects, or " if path.suffix.lower() == ".json" else ""
    raise row_error(f"{path}:{line}", f"not JSON: {what}; {array}each line holds one whole object")


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[_Row]:
    arrow = _extra("pyarrow", path)
    parquet = _extra("pyarrow.parquet", path)
    try:
        with _reading(path), path.open("rb") as file:
            table = parquet.ParquetFile(file)
            needed, unread = _columns(table.schema_arrow.names, names)
            rows = (row for batch in table.iter_batches(columns=needed) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield _Row(f"{path}: row {number}", row, unread)
    except arrow.ArrowException as error:
        raise row_error(path, f"not a Parquet file that can be read: {error}") from None


def _columns(columns: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that the fields reach into, and the others, which may be large and are not decoded."""
    used = {name if name in columns else name.partition(".")[0] for name in names}
    if used.isdisjoint(columns):  # a table without columns has no rows either
        return list(columns), []
    return [c for c in columns if c in used], [c for c in columns if c not in used]


@contextmanager
def _reading(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except FileNotFoundError:
        raise row_error(path, "no such file") from None
    except IsADirectoryError:
        raise row_error(path, "is a folder, not a file") from None
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise row_error(path, f"not a whole gzip file: {error}") from None
    except OSError as error:
        raise row_error(path, f"cannot be read: {error.strerror or error}") from None


# Data sets by name


def _hub_rows(source: str, names: Sequence[str]) -> Iterator[_Row]:
    form = _HUB_SOURCE.fullmatch(source)
    if form is None:
        raise row_error(source, "expected hf:owner/name[/config]:split, such as hf:openai/gsm8k/main:train")
    datasets = _extra("datasets", source)
    try:
        table = datasets.load_dataset(form["name"], form["config"], split=form["split"])
        needed, unread = _columns(table.column_names, names)
        for number, row in enumerate(table.select_columns(needed), 1):
            yield _Row(f"{source}: row {number}", row, unread)
    except Exception as error:  # the hub client, the network and every file format raise their own
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        cause = _hub_cause(error, form["config"], form["split"])
        raise row_error(source, f"{cause} ({said}); or give the path of a .jsonl or .parquet file of it") from None


def _hub_cause(error: Exception, config: str | None, split: str) -> str:
    text, kinds = str(error), {cls.__name__ for cls in type(error).__mro__}
    if "Unknown split" in text:
        return f"the data set has no split {split!r}"
    if "Config name is missing" in text:
        return "the data set needs a config: write hf:owner/name/config:split"
    if "BuilderConfig" in text and "not found" in text:
        return f"the data set has no config {config or 'default'!r}"
    if "gated" in text:
        return "the data set is gated: accept its terms on the hub and log in with hf auth login"
    if "scripts are no longer supported" in text:
        return "the data set is a script, which the datasets package no longer runs"
    if kinds & {"ConnectionError", "ConnectError", "OfflineModeIsEnabled", "TimeoutError", "TimeoutException"}:
        return "the hub cannot be reached (no network, or HF_HUB_OFFLINE is set)"
    if isinstance(error, FileNotFoundError):
        return "no such data set on the hub, or it is private and needs hf auth login"
    return "the datasets package cannot load it"


# Errors


def _extra(module: str, source: str | Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        what = f"this source needs the package {module} ({error}): {install_command('data')}"
        raise row_error(source, what) from None
