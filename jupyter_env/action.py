"""The two tools of an agent, their JSON schemas, and the parsers from a model's message to an action.

A parser never raises: what is no action becomes `Malformed`, whose text tells the model what was wrong and how
to write it. Tool schemas and argument checks come from the same two classes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Message = dict[str, Any]
"""A chat message in OpenAI's form: `role`, `content`, and for assistants perhaps `tool_calls`."""

MAX_CODE_CHARS = 100_000
"""Longer code is refused with an observation; real cells have a few thousand characters."""


class ExecuteCode(msgspec.Struct, frozen=True, kw_only=True, tag="execute_code", tag_field="tool"):
    """Run a code cell in the notebook and read its output."""

    code: Annotated[str, Meta(description="Python code of the cell. Variables of earlier cells are still there.")]
    comment: Annotated[str, Meta(description="What this step does and why, in the first person.")] = ""


class FinalAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="final_answer", tag_field="tool"):
    """Give the answer to the question. This ends the work."""

    answer: Annotated[str, Meta(description="Only the answer, written as the guidelines ask.")]


class Malformed(msgspec.Struct, frozen=True, kw_only=True, tag="malformed", tag_field="tool"):
    """A message that holds no single valid call."""

    reason: str
    """What was wrong, for the model."""


Action = ExecuteCode | FinalAnswer | Malformed
Parser = Callable[[Message], Action]

HOW_TO_CALL = (
    "Make exactly one call a turn, to execute_code or final_answer, written as\n"
    '<tool_call>\n{"name": "execute_code", "arguments": {"code": "print(1)"}}\n</tool_call>'
)
"""Appended to the observation after a malformed call."""


def tool_schemas(require_comment: bool = False) -> list[dict[str, Any]]:
    """The two tools in OpenAI's form.

    Args:
        require_comment: makes `comment` of execute_code required, for trace generation with models that
            otherwise call tools without a word.
    """
    run = _tool_schema(ExecuteCode, required=["code", "comment"] if require_comment else ["code"])
    return [run, _tool_schema(FinalAnswer, required=["answer"])]


def _tool_schema(tool: type[msgspec.Struct], required: list[str]) -> dict[str, Any]:
    components = msgspec.json.schema_components([tool])[1]
    properties = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in components[tool.__name__]["properties"].items()
        if name != "tool"
    }
    function = {
        "name": tool.__struct_config__.tag,
        "description": " ".join((tool.__doc__ or "").split()),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    return {"type": "function", "function": function}


def parse_message(message: Message) -> Action:
    """The default parser: native tool calls if the message has them, else hermes, fenced or `final_answer:` text."""
    if message.get("tool_calls"):
        return parse_native(message)
    text = _text_of(message)
    if "<tool_call>" in text:
        return parse_hermes(message)
    return parse_plain(message)


def parse_native(message: Message) -> Action:
    """OpenAI tool calls: `tool_calls[0].function` with a name and arguments as JSON text or an object."""
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or len(calls) != 1:
        return _not_one_call(len(calls) if isinstance(calls, list) else 0)
    function = calls[0].get("function", calls[0]) if isinstance(calls[0], Mapping) else None
    if not isinstance(function, Mapping):
        return Malformed(reason=f"the tool call is no object with a function: {_short(calls[0])}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False)
        except ValueError as error:
            return Malformed(reason=f"the arguments are no JSON object: {error}")
    return _action(function.get("name"), arguments)


def parse_hermes(message: Message) -> Action:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Qwen and hermes models write it.

    The JSON is read to its own end, so code may hold the text `</tool_call>`.
    """
    text = _after_reasoning(_text_of(message))
    calls: list[Any] = []
    while "<tool_call>" in text:
        text = text.partition("<tool_call>")[2].lstrip()
        try:
            call, end = json.JSONDecoder(strict=False).raw_decode(text)
        except (ValueError, RecursionError) as error:
            return Malformed(reason=f"the text in <tool_call> is not valid JSON: {error}.{_json_advice(text)}")
        text = text[end:].lstrip()
        if not text.startswith("</tool_call>"):
            return Malformed(reason=f"after the JSON object, </tool_call> was expected, not {_short(text)}")
        text = text.removeprefix("</tool_call>")
        calls.append(call)
    if len(calls) != 1:
        return _not_one_call(len(calls))
    if not isinstance(calls[0], dict):
        return Malformed(reason=f"the call is no JSON object with name and arguments: {_short(calls[0])}")
    return _action(calls[0].get("name"), calls[0].get("arguments"))


def _json_advice(text: str) -> str:
    if "</tool_call>" in text and text.count("</tool_call>") > 1:
        return " If the code holds the text </tool_call>, write it in two parts."
    return ' Write newlines in code as \\n and quotes as \\".'


_FENCE = re.compile(r"^```(?:python|py)[ \t]*\n(.*?)^```[ \t]*$", re.DOTALL | re.MULTILINE)
_FINAL = re.compile(r"^[ \t*]*final_answer[ \t*]*:[ \t*]*(\S.*?)[ \t]*$", re.MULTILINE | re.IGNORECASE)


def parse_plain(message: Message) -> Action:
    """One fenced python block, or one line `final_answer: ...`, for models without tool calls."""
    text = _after_reasoning(_text_of(message))
    blocks = _FENCE.findall(text)
    answers = _FINAL.findall(_FENCE.sub("", text))
    if len(blocks) + len(answers) != 1:
        return _not_one_call(len(blocks) + len(answers))
    return _action("execute_code", {"code": blocks[0]}) if blocks else _action("final_answer", {"answer": answers[0]})


def _text_of(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's content parts
        content = "".join(part.get("text") or "" for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _after_reasoning(text: str) -> str:
    """What follows the think block: a call that the model only considered there is not one."""
    return text.rpartition("</think>")[2]


def _not_one_call(count: int) -> Malformed:
    if count == 0:
        return Malformed(reason="the message holds no call")
    return Malformed(reason=f"the message holds {count} calls where one is expected; none was run")


def _action(name: object, arguments: object) -> Action:
    """Check the arguments of a named call against the tool's fields."""
    if not isinstance(name, str) or name not in ("execute_code", "final_answer"):
        return Malformed(reason=f"there is no tool {_short(name)}; the tools are execute_code and final_answer")
    if not isinstance(arguments, dict):
        return Malformed(reason=f"the arguments of {name} are a JSON object, not {_short(arguments)}")
    if (
        name == "final_answer"
        and isinstance(arguments.get("answer"), int | float)
        and not isinstance(arguments["answer"], bool)
    ):
        arguments = {**arguments, "answer": json.dumps(arguments["answer"])}
    tool: type[ExecuteCode | FinalAnswer] = ExecuteCode if name == "execute_code" else FinalAnswer
    known = set(tool.__struct_fields__)
    if unknown := sorted(str(key) for key in arguments if key not in known):
        return Malformed(reason=f"{name} takes {', '.join(sorted(known))}, not {', '.join(unknown)}"[:500])
    try:
        action = msgspec.convert(arguments, tool)
    except msgspec.ValidationError as error:
        return Malformed(reason=f"bad arguments of {name}: {error}")
    if isinstance(action, ExecuteCode):
        return _checked_code(action)
    return action


def _checked_code(action: ExecuteCode) -> Action:
    if not action.code.strip():
        return Malformed(reason="the code is empty")
    if len(action.code) > MAX_CODE_CHARS:
        return Malformed(reason=f"the code has {len(action.code):,} characters; a cell has at most {MAX_CODE_CHARS:,}")
    if "\0" in action.code:
        return Malformed(reason="the code holds a NUL byte, which Python does not take")
    try:
        action.code.encode()
    except UnicodeEncodeError:
        return Malformed(reason="the code holds half of a surrogate pair, which is no character")
    return action


def _short(value: object, limit: int = 80) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return repr(text[:limit]) + ("..." if len(text) > limit else "")


def tool_call(action: ExecuteCode | FinalAnswer, call_id: str | None = None) -> dict[str, Any]:
    """The action as an entry of an assistant message's `tool_calls`, with its arguments as an object."""
    arguments = {name: getattr(action, name) for name in action.__struct_fields__}
    if isinstance(action, ExecuteCode) and not action.comment:
        del arguments["comment"]
    call: dict[str, Any] = {
        "type": "function",
        "function": {"name": action.__struct_config__.tag, "arguments": arguments},
    }
    return call if call_id is None else {"id": call_id, **call}
