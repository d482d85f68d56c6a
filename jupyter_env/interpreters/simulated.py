"""A language model as the interpreter, for tasks whose tables are gone: it invents what the code would print.

Its outputs are no evidence of anything: `simulated` is True, and all that is made from them is marked. What Python
itself settles (syntax, files that do not exist, names that were never bound) is not left to the model.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from importlib.resources import files as resource_files
from pathlib import Path
from typing import Any

import msgspec

from jupyter_env.action import Message
from jupyter_env.chat import ContextOverflow, Model, ModelUnavailable, Usage, neutral
from jupyter_env.interpreters.base import CellResult
from jupyter_env.interpreters.certain import Certain, certainly
from jupyter_env.interpreters.output import OutputLimits, render_outputs, shorten
from jupyter_env.interpreters.simulated_reply import BadReply, SimulatedReply, escaped, read_reply, secret_lines

SYSTEM_PROMPT = resource_files("jupyter_env").joinpath("prompts/simulator.txt").read_text(encoding="utf-8").strip()
NONE = "(none)"
"""What a section of the prompt says that has nothing to hold."""
UNAVAILABLE = "the simulator is not available: "
"""Begins the text of a failure that later tries may not meet: a server that is down or slow."""
UNUSABLE = "the simulator: "
"""Begins the text of one that the same requests meet again: replies of no use, a context that is too short."""

_SHORT = OutputLimits(max_lines=8, max_chars=400, max_line_chars=160)
"""Of the outputs of earlier cells, once the whole ones no longer fit the model's context."""


class PastCell(msgspec.Struct, frozen=True):
    """A cell that was executed, as the next prompts tell it."""

    code: str
    text: str


class SimulatedInterpreter:
    """An `Interpreter` whose outputs a model writes.

    Args:
        model: asked once a cell; it must be usable from the event loop that the cells are run in.
        reference: text of a notebook over the same data, which the outputs should agree with. It goes to this model
            alone; a reply that shows its text is refused.
        retries: further requests after a reply that is no output cell, or one that Python contradicts.
        reply_timeout_s: of one request.
        limits: how much of the outputs the solver sees, as with a kernel.
    """

    simulated = True

    def __init__(
        self,
        model: Model,
        reference: str | None = None,
        *,
        retries: int = 3,
        reply_timeout_s: float = 600.0,
        limits: OutputLimits = OutputLimits(),  # noqa: B008
    ) -> None:
        self._model = model
        self._reference = reference
        self._secret = secret_lines(reference)
        self._retries = retries
        self._reply_timeout_s = reply_timeout_s
        self._limits = limits
        self._files: list[str] = []
        self._past: list[PastCell] = []
        self._dead: CellResult | None = None
        self._asking: asyncio.Task[SimulatedReply] | None = None
        self.usage = Usage()
        """Of the model, over all cells."""

    async def start(self, files: Mapping[str, Path]) -> None:
        """See `Interpreter.start`: these files exist in the invented world, whether or not they do on this host."""
        self._files = sorted(f"data/{name}" for name in files)

    async def run_cell(self, code: str, timeout_s: float) -> CellResult:
        """See `Interpreter.run_cell`. `duration_s` is 0: no code ran, and the model's time must not spend an
        episode's budget. A model that gives no usable reply is the machine's failure, and leaves the state as it was.

        Raises:
            ModelSetupError: the model will never answer as it is set up.
        """
        if self._dead is not None:
            return self._dead
        code = code.encode("utf-8", "replace").decode("utf-8")
        certain = certainly(code, [cell.code for cell in self._past], self._files)
        if certain.error is not None and certain.whole:  # nothing else can come of it
            return self._remember(code, SimulatedReply.of_error(certain.error, certain.where))
        self._asking = asyncio.ensure_future(self._ask(code, certain, timeout_s))
        try:
            reply = await self._asking
        except asyncio.CancelledError:
            if not self._asking.cancelled() or (task := asyncio.current_task()) is None or task.cancelling():
                self._asking.cancel()
                raise
            reply = SimulatedReply.of_error("KeyboardInterrupt: ")
        except (ModelUnavailable, TimeoutError) as error:
            return _failed(UNAVAILABLE + (str(error) or f"no reply within {self._reply_timeout_s:g} s"))
        except (ContextOverflow, BadReply) as error:
            return _failed(f"{UNUSABLE}{error}")
        finally:
            self._asking = None
        return self._remember(code, reply)

    def _remember(self, code: str, reply: SimulatedReply) -> CellResult:
        text = render_outputs(reply.outputs, self._limits)
        text = "\n".join(part for part in (text, reply.note) if part)
        self._past.append(PastCell(code, text))
        result = CellResult(
            status=reply.status, outputs=reply.outputs, text=text, duration_s=0.0, alive=reply.status != "kernel_died"
        )
        if not result.alive:
            self._dead = msgspec.structs.replace(result, outputs=[], text="The kernel is not running.")
        return result

    async def _ask(self, code: str, certain: Certain, timeout_s: float) -> SimulatedReply:
        """The model's reply, once it is one; earlier outputs are shortened when the context is full."""
        messages = self._messages(code, timeout_s)
        shortened = False
        for attempt in range(self._retries + 1):
            try:
                async with asyncio.timeout(self._reply_timeout_s):
                    reply = await self._model(messages, ())
            except ContextOverflow:
                if shortened:
                    raise
                shortened = True
                messages = self._messages(code, timeout_s, _SHORT)
                continue
            self.usage += reply.usage
            cut = reply.finish_reason == "length"
            said = str(reply.message.get("content") or "")
            try:
                return read_reply(said, certain, self._secret - self._shown(code), cut)
            except BadReply as problem:
                if attempt == self._retries:
                    if certain.error is not None:
                        return SimulatedReply.of_error(certain.error, certain.where)
                    raise
                messages = [*self._messages(code, timeout_s, _SHORT if shortened else None), *_again(said, problem)]
        raise BadReply("the conversation does not fit the model's context")

    def _shown(self, code: str) -> set[str]:
        """The lines that an output may repeat whatever the reference holds: those that the solver wrote or has seen."""
        texts = [*(part for cell in self._past for part in (cell.code, cell.text)), code]
        return {line.strip() for text in texts for line in text.splitlines()}

    def _messages(self, code: str, timeout_s: float, limits: OutputLimits | None = None) -> list[Message]:
        """The prompt, its parts in the order in which they change, so that a server's cache holds most of it."""
        past = [
            f"{_tagged('python_cell', cell.code)}\n{_tagged('output_cell', shorten(cell.text, limits or self._limits))}"
            for cell in self._past
        ]
        sections = [
            _tagged("reference_notebook", (self._reference or "").strip() or NONE),
            _tagged("available_files", "\n".join(self._files) or NONE),
            f"<executed_cells>\n{chr(10).join(past) or NONE}\n</executed_cells>",
            f"Time limit of a cell: {timeout_s:g} s",
            f"<cell_to_execute>\n{escaped(code)}\n</cell_to_execute>",
        ]
        return [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "\n\n".join(sections)}]

    async def interrupt(self) -> None:
        """See `Interpreter.interrupt`."""
        if self._asking is not None:
            self._asking.cancel()

    async def branch(self) -> SimulatedInterpreter:
        """See `Interpreter.branch`; nothing can be in the way of it."""
        branch = SimulatedInterpreter(
            self._model,
            self._reference,
            retries=self._retries,
            reply_timeout_s=self._reply_timeout_s,
            limits=self._limits,
        )
        branch._files, branch._past, branch._dead = list(self._files), list(self._past), self._dead
        return branch

    async def close(self) -> None:
        """See `Interpreter.close`."""
        if (asking := self._asking) is not None:
            asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({asking})


def _failed(text: str) -> CellResult:
    return CellResult(status="infrastructure_error", outputs=[], text=text, duration_s=0.0)


def _tagged(tag: str, text: str) -> str:
    return f"<{tag}>\n{escaped(text)}\n</{tag}>"


def _again(said: str, problem: BadReply) -> Sequence[dict[str, Any]]:
    """The refused reply and why it was: short, since a reply without end must not fill the context."""
    asked = f"That is no valid reply: {problem}. Execute the same cell again and reply with one output cell alone."
    return [
        {"role": "assistant", "content": neutral(said[:2_000])},
        {"role": "user", "content": asked},
    ]
