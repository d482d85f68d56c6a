"""The two tools of an agent, their JSON schemas, and the parsers from a model's message to an action.

A parser never raises: what is no action becomes `Malformed`, whose text tells the model what was wrong and how
to write it. Tool schemas and argument checks come from the same two classes.
"""

from __future__ import annotations

import contextlib
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
    if "<tool_call>" in split_reasoning(_text_of(message))[1]:
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
        except (ValueError, RecursionError) as error:
            return Malformed(reason=f"the arguments are no JSON object: {error}")
    return _action(function.get("name"), arguments)


def parse_hermes(message: Message) -> Action:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, as Qwen and hermes models write it.

    The JSON is read to its own end, so code may hold the text `</tool_call>`.
    """
    text = split_reasoning(_text_of(message))[1]
    calls: list[Any] = []
    end = 0
    while (mark := text.find("<tool_call>", end)) >= 0:
        start = _after_space(text, mark + len("<tool_call>"))
        try:
            call, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            return Malformed(reason=f"the text in <tool_call> is not valid JSON: {error}.{_json_advice(text[start:])}")
        end = _after_space(text, end)
        if not text.startswith("</tool_call>", end):
            return Malformed(reason=f"after the JSON object, </tool_call> was expected, not {_short(text[end:])}")
        calls.append(call)
    if len(calls) != 1:
        return _not_one_call(len(calls))
    if not isinstance(calls[0], dict):
        return Malformed(reason=f"the call is no JSON object with name and arguments: {_short(calls[0])}")
    return _action(calls[0].get("name"), calls[0].get("arguments"))


_DECODER = json.JSONDecoder(strict=False)
_SPACE = re.compile(r"\s*")


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _json_advice(text: str) -> str:
    if "</tool_call>" in text and text.count("</tool_call>") > 1:
        return " If the code holds the text </tool_call>, write it in two parts."
    return ' Write newlines in code as \\n and quotes as \\".'


_FINAL = re.compile(r"^[ \t*]*final_answer[ \t*]*:(.*)$", re.MULTILINE | re.IGNORECASE)


def parse_plain(message: Message) -> Action:
    """One fenced python block, or one line `final_answer: ...`, for models without tool calls."""
    blocks, outside = _fenced(split_reasoning(_text_of(message))[1])
    # The stars of **bold** words belong to no answer.
    answers = [answer for line in _FINAL.findall(outside) if (answer := line.strip(" \t\r*"))]
    if len(blocks) + len(answers) != 1:
        return _not_one_call(len(blocks) + len(answers))
    return _action("execute_code", {"code": blocks[0]}) if blocks else _action("final_answer", {"answer": answers[0]})


def _fenced(text: str) -> tuple[list[str], str]:
    """The closed python blocks, and the text outside of blocks; one pass, as a regular expression would not be."""
    blocks: list[str] = []
    outside: list[str] = []
    block: list[str] | None = None
    for line in text.split("\n"):
        if block is None and line.rstrip() in ("```python", "```py"):
            block = []
        elif block is not None and line.rstrip() == "```":
            blocks.append("".join(block))
            block = None
        else:
            (outside if block is None else block).append(line + "\n")
    return blocks, "".join(outside)


def _text_of(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, list):  # OpenAI's content parts
        texts = (part.get("text") for part in content if isinstance(part, Mapping))
        content = "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning and what follows it: a call that the model only considered while it thought is not one.

    Reasoning ends at the first `</think>`; its opening may have been in the prompt. Opened and never closed (cut
    short), all of the text is reasoning.
    """
    before, closed, after = text.partition("</think>")
    if not closed and not text.lstrip().startswith("<think>"):
        return "", text
    return before.strip().removeprefix("<think>").strip(), after


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
    answer = arguments.get("answer")
    if name == "final_answer" and isinstance(answer, int | float) and not isinstance(answer, bool):
        with contextlib.suppress(ValueError):  # over 4,300 digits
            arguments = {**arguments, "answer": json.dumps(answer)}
    tool: type[ExecuteCode | FinalAnswer] = ExecuteCode if name == "execute_code" else FinalAnswer
    known = set(tool.__struct_fields__)
    if unknown := [key for key in arguments if key not in known]:
        return Malformed(reason=f"{name} takes {', '.join(sorted(known))}, not {', '.join(map(_short, unknown[:5]))}")
    try:
        action = msgspec.convert(arguments, tool)
    except msgspec.ValidationError as error:
        return Malformed(reason=f"bad arguments of {name}: {error}")
    try:
        msgspec.json.encode(action)
    except UnicodeEncodeError:
        return Malformed(reason=f"the arguments of {name} hold half of a surrogate pair, which is no character")
    return _checked_code(action) if isinstance(action, ExecuteCode) else action


def _checked_code(action: ExecuteCode) -> Action:
    if not action.code.strip():
        return Malformed(reason="the code is empty")
    if len(action.code) > MAX_CODE_CHARS:
        return Malformed(reason=f"the code has {len(action.code):,} characters; a cell has at most {MAX_CODE_CHARS:,}")
    if "\0" in action.code:
        return Malformed(reason="the code holds a NUL byte, which Python does not take")
    return action


def _short(value: object, limit: int = 80) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # no text, and no JSON either
        text = f"a {type(value).__name__}"
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
