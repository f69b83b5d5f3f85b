"""Rows with conversations, as TRL and verl write them: what is read, and the one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from covrl.errors import UserError
from covrl.problems.loading import Fields, load_problems
from covrl.records import Problem, Turn

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "1+1?"}
REPLIED = {"role": "assistant", "content": "2"}
AGAIN = {"role": "user", "content": "And 2+2?"}
TURNS = (Turn("system", "Be brief."), Turn("user", "1+1?"), Turn("assistant", "2"))


DEFAULT = Fields()


def load(tmp_path: Path, *rows: dict[str, Any], fields: Fields = DEFAULT) -> list[Problem]:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(str(tmp_path / "train.jsonl"), fields)


VERL = {
    "data_source": "sums",
    "prompt": [SYSTEM, ASKED],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"split": "train", "index": 7, "answer": "1+1 = 2"},
}


@pytest.mark.parametrize(
    ("row", "fields", "expected"),
    [
        (VERL, Fields(), Problem("train/0", "1+1?", "2", turns=TURNS[:1])),
        (
            VERL,
            Fields(id="extra_info.index", solution="extra_info.answer"),
            Problem("7", "1+1?", "2", solution="1+1 = 2", turns=TURNS[:1]),
        ),
        ({"prompt": [ASKED], "ground_truth": 2}, Fields(), Problem("train/0", "1+1?", "2")),
        ({"prompt": "1+1?", "completion": " 2"}, Fields(), Problem("train/0", "1+1?", "2")),
        ({"prompt": [ASKED], "completion": [REPLIED]}, Fields(), Problem("train/0", "1+1?", "2")),
        ({"messages": [SYSTEM, ASKED, REPLIED]}, Fields(), Problem("train/0", "1+1?", "2", turns=TURNS[:1])),
        (
            {"messages": [SYSTEM, ASKED, REPLIED, AGAIN], "answer": "4"},
            Fields(),
            Problem("train/0", "And 2+2?", "4", turns=TURNS),
        ),
        (
            {"talk": [AGAIN, {"role": "assistant", "content": r"so \boxed{4}"}], "right": r"\boxed{4}"},
            Fields(question="talk", answer="right", extract="boxed"),
            Problem("train/0", "And 2+2?", "4", solution=r"\boxed{4}"),
        ),
        (
            {"messages": [AGAIN, {"role": "assistant", "content": "twice two\n#### 4"}]},
            Fields(extract="hash"),
            Problem("train/0", "And 2+2?", "4", solution="twice two"),
        ),
        (
            {"question": "1+1?", "answer": "2", "tutor": "Be brief.", "prompt": "not read"},
            Fields(system="tutor"),
            Problem("train/0", "1+1?", "2", turns=TURNS[:1]),
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}],
             "answer": "2", "chat_template_kwargs": {"enable_thinking": False, "effort": None}},
            Fields(),
            Problem("train/0", "1+1?", "2", template_options={"enable_thinking": False}),
        ),
    ],
)  # fmt: skip
def test_a_row_is_read_as_it_is_written(tmp_path: Path, row: dict[str, Any], fields: Fields, expected: Problem) -> None:
    assert load(tmp_path, row, fields=fields) == [expected]


def test_a_row_without_a_system_message_has_none(tmp_path: Path) -> None:
    rows = [{"question": "1+1?", "answer": "2", "tutor": tutor} for tutor in (None, "Be brief.")]
    assert [p.turns for p in load(tmp_path, *rows, fields=Fields(system="tutor"))] == [(), TURNS[:1]]


def test_parquet_files_of_verl_are_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = {**VERL, "prompt": [ASKED], "chat_template_kwargs": {"enable_thinking": True}}
    parquet.write_table(
        arrow.Table.from_pylist([{**VERL, "chat_template_kwargs": None}, plain]), tmp_path / "train.parquet"
    )
    assert load_problems(str(tmp_path / "train.parquet")) == [
        Problem("train/0", "1+1?", "2", turns=TURNS[:1]),
        Problem("train/1", "1+1?", "2", template_options={"enable_thinking": True}),
    ]


PLACE = "train.jsonl:2: problem 'train/1': question (field 'messages')"
NO_MESSAGE = "expected an object with role and content, found"
NO_ROLE = "role: expected system, user or assistant, found"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], f"{PLACE}: no message of the user, so there is no question"),
        ([SYSTEM, REPLIED], f"{PLACE}: no message of the user"),
        (["hi"], f"{PLACE}, message 1: {NO_MESSAGE} text"),
        ([{"from": "human"}], f"{PLACE}, message 1: {NO_MESSAGE} an object with from"),
        ([{"role": "tool", "content": "x"}], f"{PLACE}, message 1, {NO_ROLE} 'tool'"),
        ([ASKED, {"role": None, "content": "x"}], f"{PLACE}, message 2, {NO_ROLE} null"),
        ([{"role": "user", "content": None}], f"{PLACE}, message 1, content: expected text, found null"),
        ([{"role": "user", "content": " "}], f"{PLACE}, message 1, content: nothing but white space"),
        ([{"role": "user", "content": "a\ud800"}], rf"{PLACE}, message 1, content: holds \ud800"),
        ([{"role": "user", "content": [{"type": "image"}]}],
         f"{PLACE}, message 1, content, part 1: expected a part of type 'text', found 'image'"),
        ([ASKED, SYSTEM], f"{PLACE}, message 2: a system message stands first, and there is one at most"),
        ([SYSTEM, SYSTEM, ASKED], f"{PLACE}, message 2: a system message stands first"),
        ([ASKED, REPLIED, REPLIED], f"{PLACE}, message 3: after the user's last message there is one of the assistant"),
        ({"role": "user"}, f"{PLACE}: expected text or a list of messages, found an object"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_used_are_named_with_line_and_field(tmp_path: Path, messages: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, {"messages": [ASKED], "answer": "2"}, {"messages": messages, "answer": "2"})
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chat_template_kwargs": "x"}, 'chat_template_kwargs: expected an object such as {"enable_thinking": false}'),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: tokenize is how the template is called"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools: expected text, a number, true or false"),
        ({"answer": None, "x": 1}, "answer (field 'answer'): expected text or a number, found null"),
    ],
)
def test_other_fields_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, {"prompt": [ASKED], "answer": "2"} | row)
    assert said in str(error.value)


def test_a_row_without_an_answer_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no field 'answer' \(answer\): the row has prompt, solution$"):
        load(tmp_path, {"prompt": [ASKED], "solution": "2"})
    with pytest.raises(UserError, match=r"completion'\): expected text or a list with one message of the assistant"):
        load(tmp_path, {"prompt": [ASKED], "completion": [ASKED]})
    with pytest.raises(
        UserError, match=r"system message \(field 's'\): the messages of 'prompt' have a system message"
    ):
        load(tmp_path, {"prompt": [SYSTEM, ASKED], "answer": "2", "s": "x"}, fields=Fields(system="s"))
