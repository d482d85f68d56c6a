"""From messages to actions: every form that counts, every malformed one with a reason, and no message that raises."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_env.action import (
    MAX_CODE_CHARS,
    Action,
    ExecuteCode,
    FinalAnswer,
    Malformed,
    parse_hermes,
    parse_message,
    parse_native,
    parse_plain,
    tool_call,
    tool_schemas,
)


def text(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def native(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def call(name: Any = "execute_code", arguments: Any = '{"code": "x"}') -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


def hermes(name: str = "execute_code", **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


X = ExecuteCode(code="x")
ANSWER = FinalAnswer(answer="42")

GOOD: dict[str, tuple[dict[str, Any], Action]] = {
    "hermes": (text(hermes(code="x")), X),
    "hermes with words around": (
        text(f"I look.\n{hermes(code='x', comment='Look.')}\nSo."),
        ExecuteCode(code="x", comment="Look."),
    ),
    "hermes on one line": (text('<tool_call>{"name":"final_answer","arguments":{"answer":"42"}}</tool_call>'), ANSWER),
    "hermes with raw newlines in the text": (
        text('<tool_call>{"name": "execute_code", "arguments": {"code": "a\n\tb"}}</tool_call>'),
        ExecuteCode(code="a\n\tb"),
    ),
    "hermes after reasoning": (text(f"<think>\nhm\n</think>\n\n{hermes(code='x')}"), X),
    "hermes after reasoning that the prompt opened": (text(f"hm\n</think>\n\n{hermes(code='x')}"), X),
    "a call considered in reasoning, then made": (text(f"<think>{hermes(code='y')}</think>{hermes(code='x')}"), X),
    "a call considered in reasoning, then fenced code": (
        text(f"<think>{hermes(code='y')}</think>\n```python\nx\n```"),
        ExecuteCode(code="x\n"),
    ),
    "</tool_call> in code": (text(hermes(code="print('</tool_call>')")), ExecuteCode(code="print('</tool_call>')")),
    "<tool_call> in code": (text(hermes(code="print('<tool_call>')")), ExecuteCode(code="print('<tool_call>')")),
    "</think> in code after reasoning": (
        text(f"<think>a</think>{hermes(code='</think>')}"),
        ExecuteCode(code="</think>"),
    ),
    "a number as answer": (text(hermes("final_answer", answer=42)), ANSWER),
    "a fraction as answer": (text(hermes("final_answer", answer=4.50)), FinalAnswer(answer="4.5")),
    "native, arguments as text": (native(call()), X),
    "native, arguments as an object": (
        native(call(arguments={"code": "x", "comment": "c"})),
        ExecuteCode(code="x", comment="c"),
    ),
    "native without `function`": (native({"name": "final_answer", "arguments": {"answer": "42"}}), ANSWER),
    "native comes before text": ({**text(hermes(code="y")), "tool_calls": [call()]}, X),
    "no native calls, text instead": ({**text(hermes(code="x")), "tool_calls": []}, X),
    "content in parts": (text([{"type": "text", "text": hermes(code="x")[:20]}, {"text": hermes(code="x")[20:]}]), X),
    "fenced": (text("So:\n```python\nx\n```\nDone."), ExecuteCode(code="x\n")),
    "fenced py": (text("```py  \nx\ny\n```  "), ExecuteCode(code="x\ny\n")),
    "fenced with backticks inside": (text("```python\ns = '```'\n```"), ExecuteCode(code="s = '```'\n")),
    "fenced beside a block of another language": (
        text("```text\nout\n```\n```python\nx\n```"),
        ExecuteCode(code="x\n"),
    ),
    "fenced with Windows newlines": (text("```python\r\nx\r\n```\r\n"), ExecuteCode(code="x\r\n")),
    "fenced, with final_answer inside": (
        text("```python\n# final_answer: 1\n```"),
        ExecuteCode(code="# final_answer: 1\n"),
    ),
    "final_answer": (text("I am sure.\nfinal_answer: 42"), ANSWER),
    "final_answer, bold key": (text("**final_answer:** 42  "), ANSWER),
    "final_answer, bold line": (text("**final_answer: 42**"), ANSWER),
    "final_answer, bold value": (text("Final_Answer: **42**"), ANSWER),
    "final_answer with a colon": (text("final_answer: E:346.49, 12:30"), FinalAnswer(answer="E:346.49, 12:30")),
    "final_answer, empty list": (text("final_answer: []"), FinalAnswer(answer="[]")),
}


@pytest.mark.parametrize(("message", "expected"), GOOD.values(), ids=GOOD)
def test_what_counts_as_a_call(message: dict[str, Any], expected: Action):
    assert parse_message(message) == expected


LONG = "x" * 10_000_000
DEEP = "[" * 100_000

MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": (text(""), "no call"),
    "no content": ({"role": "assistant"}, "no call"),
    "content None": (text(None), "no call"),
    "content of another type": (text(5), "no call"),
    "words only": (text("I think the answer is 42."), "no call"),
    "only reasoning": (text(f"<think>{hermes(code='x')}</think>"), "no call"),
    "reasoning cut short": (text(f"<think>I could call {hermes(code='x')} or"), "no call"),
    "reasoning that the prompt opened": (text(f"maybe {hermes(code='x')}\n</think>\n\nLet me see."), "no call"),
    "no JSON": (text("<tool_call>print(1)</tool_call>"), "not valid JSON"),
    "JSON cut short": (text('<tool_call>{"name": "execute_code", "arguments": {"code": "x'), "not valid JSON"),
    "quotes not escaped": (
        text('<tool_call>{"name": "execute_code", "arguments": {"code": "print("a")"}}</tool_call>'),
        "\\n",
    ),
    "empty call": (text("<tool_call></tool_call>"), "not valid JSON"),
    "opened only": (text("<tool_call>"), "not valid JSON"),
    "not closed": (text(hermes(code="x").removesuffix("</tool_call>")), "</tool_call> was expected"),
    "closed only": (text('{"name": "execute_code", "arguments": {"code": "x"}}\n</tool_call>'), "no call"),
    "words after the JSON": (text('<tool_call>{"name": "execute_code"} run it</tool_call>'), "run it"),
    "deep JSON": (text(f"<tool_call>{DEEP}"), "not valid JSON"),
    "a list": (text('<tool_call>[{"name": "execute_code"}]</tool_call>'), "no JSON object"),
    "a nested list": (text(f"<tool_call>{'[' * 900}{']' * 900}</tool_call>"), "no JSON object"),
    "two calls": (text(hermes(code="x") + hermes(code="y")), "2 calls"),
    "two calls, one of them an answer": (text(hermes(code="x") + hermes("final_answer", answer="1")), "2 calls"),
    "unknown tool": (text(hermes("python", code="x")), "'python'"),
    "tool in another case": (text(hermes("Execute_Code", code="x")), "execute_code and final_answer"),
    "no name": (text('<tool_call>{"arguments": {"code": "x"}}</tool_call>'), "no tool"),
    "no arguments": (text('<tool_call>{"name": "execute_code"}</tool_call>'), "JSON object"),
    "arguments as text": (text('<tool_call>{"name": "execute_code", "arguments": "x"}</tool_call>'), "JSON object"),
    "missing argument": (text(hermes()), "code"),
    "missing answer": (text(hermes("final_answer")), "answer"),
    "unknown argument": (text(hermes(code="x", timeout=5)), "timeout"),
    "the tag as an argument": (text(hermes(code="x", tool="execute_code")), "tool"),
    "code of a wrong type": (text(hermes(code=["x"])), "code"),
    "code None": (text(hermes(code=None)), "code"),
    "answer of a wrong type": (text(hermes("final_answer", answer=["42"])), "answer"),
    "answer as a truth value": (text(hermes("final_answer", answer=True)), "answer"),
    "comment of a wrong type": (text(hermes(code="x", comment=1)), "comment"),
    "empty code": (text(hermes(code="")), "empty"),
    "blank code": (text(hermes(code=" \n\t")), "empty"),
    "NUL bytes": (text(hermes(code="x = '\0'")), "NUL"),
    "10 MB of code": (text(hermes(code=LONG)), f"{MAX_CODE_CHARS:,}"),
    "half a surrogate pair in code": (text(hermes(code="print('\ud83d')")), "surrogate"),
    "half a surrogate pair in a comment": (text(hermes(code="x", comment="\ud83d")), "surrogate"),
    "half a surrogate pair in an answer": (text(hermes("final_answer", answer="\ud83d")), "surrogate"),
    "native: no JSON": (native(call(arguments="{oops")), "no JSON object"),
    "native: deep JSON": (native(call(arguments=DEEP)), "no JSON object"),
    "native: arguments as a list": (native(call(arguments="[1]")), "JSON object"),
    "native: arguments None": (native(call(arguments=None)), "JSON object"),
    "native: two calls": (native(call(), call()), "2 calls"),
    "native: no object": (native("execute_code"), "no object"),
    "native: None": (native(None), "no object"),
    "native: function None": (native({"id": "1", "function": None}), "no object"),
    "native: empty": (native({}), "no tool"),
    "native: unknown tool": (native(call("shell")), "'shell'"),
    "native: name of a wrong type": (native(call(name=["execute_code"])), "no tool"),
    "native: empty code": (native(call(arguments={"code": ""})), "empty"),
    "native: keys that are no text": (native(call(arguments={"code": "x", 5: 6})), "5"),
    "native: a name that JSON cannot hold": (native(call(name={(1, 2): 3})), "no tool"),
    "native: an answer of 5,000 digits": (native(call("final_answer", {"answer": 10**5000})), "answer"),
    "native calls in no list": ({"role": "assistant", "tool_calls": "execute_code"}, "no call"),
    "fenced, not closed": (text("```python\nprint(1)"), "no call"),
    "fenced without a language": (text("```\nprint(1)\n```"), "no call"),
    "fenced twice": (text("```python\nx\n```\nand\n```python\ny\n```"), "2 calls"),
    "fenced and empty": (text("```python\n```"), "empty"),
    "fenced and an answer": (text("```python\nx\n```\nfinal_answer: 42"), "2 calls"),
    "two answers": (text("final_answer: 41\nfinal_answer: 42"), "2 calls"),
    "an answer without a value": (text("final_answer:\n"), "no call"),
    "an answer of stars": (text("final_answer: **"), "no call"),
    "an answer within a sentence": (text("My final_answer: 42"), "no call"),
}


@pytest.mark.parametrize(("message", "says"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_wrong_is_said(message: dict[str, Any], says: str):
    action = parse_message(message)
    assert isinstance(action, Malformed) and says in action.reason
    assert len(action.reason) < 1000
    action.reason.encode()


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
NAMED = st.fixed_dictionaries(
    {}, optional={"name": ODD | st.sampled_from(["execute_code", "final_answer"]), "arguments": ODD}
)
# fmt: off
WORDS = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "```python", "```py", "```", "final_answer:", "*", "{", "}",
    "[", "]", ":", ",", "\\u0000", "\\ud83d", "1", '"name"', '"execute_code"', '"final_answer"', '"arguments"',
    '"code"', '"answer"', '"x"',
]
# fmt: on
PIECES = st.lists(st.sampled_from([*WORDS, "\n", " "]) | st.text(max_size=3), max_size=30).map("".join)


def is_sound(action: Action) -> bool:
    """An action that can be stored: of a known kind and encodable."""
    return isinstance(action, ExecuteCode | FinalAnswer | Malformed) and bool(msgspec.json.encode(action))


@given(st.text(st.characters(codec=None)) | PIECES)
@settings(max_examples=400)
def test_no_text_raises(content: str):
    for parser in (parse_message, parse_native, parse_hermes, parse_plain):
        assert is_sound(parser(text(content)))


@given(st.fixed_dictionaries({}, optional={"role": ODD, "content": ODD | PIECES, "tool_calls": ODD | st.lists(
    NAMED | st.fixed_dictionaries({"function": NAMED | ODD}) | ODD, max_size=2)}))  # fmt: skip
@settings(max_examples=400)
def test_no_message_raises(message: dict[str, Any]):
    for parser in (parse_message, parse_native, parse_hermes, parse_plain):
        assert is_sound(parser(message))


@given(PIECES | st.text(), st.text())
def test_a_written_call_is_read_back(code: str, comment: str):
    action = ExecuteCode(code=f"{code.replace(chr(0), '')}#", comment=comment)
    function = tool_call(action)["function"]
    assert parse_message(native(tool_call(action, "id"))) == action
    assert parse_message(text(f"<think>\n</think>\n<tool_call>\n{json.dumps(function)}\n</tool_call>")) == action


@pytest.mark.parametrize(
    "piece",
    ["```python\n", "```py\nx\n``` x\n", "```python\n```\n", "final_answer: x" + " " * 1000, "final_answer",
     "final_answer: *", "<tool_call>", "<tool_call>{}</tool_call>", "</think>", "<think>", " ", "*", "\n"],
)  # fmt: skip
def test_no_text_takes_long(piece: str):
    started = time.process_time()
    parse_message(text(piece * (1_000_000 // len(piece)) + "y"))
    assert time.process_time() - started < 2


def test_the_schemas():
    code, answer = (tool["function"] for tool in tool_schemas())
    assert [tool["type"] for tool in tool_schemas()] == ["function", "function"]
    assert (code["name"], answer["name"]) == ("execute_code", "final_answer")
    assert list(code["parameters"]["properties"]) == ["code", "comment"] and code["parameters"]["required"] == ["code"]
    assert list(answer["parameters"]["properties"]) == answer["parameters"]["required"] == ["answer"]
    for function in (code, answer):
        assert function["description"] and function["parameters"]["type"] == "object"
        for field in function["parameters"]["properties"].values():
            assert set(field) == {"type", "description"} and field["type"] == "string"


def test_the_comment_can_be_required():
    plain, required = tool_schemas(), tool_schemas(require_comment=True)
    assert required[0]["function"]["parameters"].pop("required") == ["code", "comment"]
    assert plain[0]["function"]["parameters"].pop("required") == ["code"]
    assert plain == required


def test_an_action_as_a_call():
    assert tool_call(X) == {"type": "function", "function": {"name": "execute_code", "arguments": {"code": "x"}}}
    assert tool_call(ExecuteCode(code="x", comment="c"), "7")["id"] == "7"
    assert tool_call(ANSWER)["function"] == {"name": "final_answer", "arguments": {"answer": "42"}}
