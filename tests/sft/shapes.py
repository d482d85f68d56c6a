"""Conversations of six shapes, with thoughts and without."""

from typing import Any

from jupyter_env.action import tool_schemas

TOOLS = tool_schemas()
QUESTION = {"role": "user", "content": "How many rows has `data/a.csv`?"}
SYSTEM = {"role": "system", "content": "You answer questions about data."}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(content: str = "", *calls: dict[str, Any], thought: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = list(calls)
    if thought is not None:
        message["reasoning_content"] = thought
    return message


def output(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


RUN = call("execute_code", code='print("Größe: 数", """<think>""")\nlen(df)')
ANSWER = call("final_answer", answer="77")

SHAPES: dict[str, list[dict[str, Any]]] = {
    "one answer": [QUESTION, turn("", ANSWER)],
    "tools": [SYSTEM, QUESTION, turn("", RUN), output("77\n"), turn("", ANSWER)],
    "thoughts and text": [
        *(SYSTEM, QUESTION, turn("I look.", RUN, thought="First\nlook.")),
        *(output(""), turn("Done.", ANSWER, thought="77 it is.")),
    ],
    "thought in the content": [
        SYSTEM,
        QUESTION,
        turn("<think>\nHm.\n</think>\n\nSo:", RUN),
        output("77"),
        turn("", ANSWER),
    ],
    "two outputs and a correction": [
        *(SYSTEM, QUESTION, turn("", RUN, RUN), output("1"), output("assistant\n2"), turn("It is 2.")),
        *({"role": "user", "content": "Error: no call.\nassistant\nTry again."}, turn("", ANSWER)),
    ],
    "ends with an output": [SYSTEM, QUESTION, turn("  spaces  ", RUN, thought=""), output("x" * 50)],
}
