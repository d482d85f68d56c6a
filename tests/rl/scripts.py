"""Models of the tests whose turns a function writes, as tokens of a real tokenizer."""

import json
from collections.abc import Callable, Sequence

from tiny_model import QUESTION

from jupyter_env import Task
from jupyter_env.action import ExecuteCode, FinalAnswer, tool_call
from jupyter_env.answer import Integer
from rl.environments import Environments
from rl.generation import BatchGenerator
from rl.rollouts import Batch, Job, Runner, TokenBudget
from rl.template import Template

TASK = Task(id="a", question=QUESTION, answer=Integer(value=42))
TURNS = 200
Script = Callable[[str], str]
"""From the conversation's text to the model's turn."""


def call(action: ExecuteCode | FinalAnswer) -> str:
    return f"<tool_call>\n{json.dumps(tool_call(action)['function'])}\n</tool_call>"


def run(code: str) -> str:
    return call(ExecuteCode(code=code))


def answer(text: str) -> str:
    return call(FinalAnswer(answer=text))


def scripted(template: Template, script: Script, batches: list[int] | None = None, end: bool = True) -> BatchGenerator:
    """A generator whose turns a function writes."""

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        if batches is not None:
            batches.append(len(prompts))
        turns = [script(template.tokenizer.decode(prompt)) for prompt in prompts]
        ids = [template.tokenizer(turn).input_ids + [template.end] * end for turn in turns]
        cut = [turn[:max_tokens] for turn in ids]
        return cut, [[-0.5] * len(turn) for turn in cut]

    return BatchGenerator(generate, template.end, turn_tokens=TURNS, slots=16)


TOKENS = TokenBudget(turn=TURNS, observations=2000, episode=4000)


def rolled(
    environments: Environments,
    template: Template,
    generator: BatchGenerator,
    jobs: Sequence[Job] = (Job(task=TASK),),
    tokens: TokenBudget = TOKENS,
) -> Batch:
    return Runner(environments, template, tokens).run(jobs, generator)


def turns_so_far(text: str) -> int:
    return text.count("<|im_start|>assistant") - 1
