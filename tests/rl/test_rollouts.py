"""Rollouts with real kernels in real processes; the model's turns are a script's where a test needs certain ones."""

import time
from collections.abc import Iterator

import pytest
from scripts import TASK, TOKENS, TURNS, Script, answer, rolled, run, scripted, turns_so_far
from tiny_model import QUESTION, make_tokenizer

from jupyter_env import Task
from jupyter_env.action import tool_schemas
from jupyter_env.answer import Integer
from jupyter_env.chat import ModelSetupError, render
from jupyter_env.episode import Budget
from jupyter_env.interpreters import KernelSettings
from rl.environments import Environments
from rl.generation import BatchGenerator, together
from rl.rollouts import Job, Runner, TokenBudget
from rl.template import Template


@pytest.fixture(scope="module")
def environments() -> Iterator[Environments]:
    """For tests that need nothing of their own: a server of kernels takes seconds to start."""
    with Environments(None, budget=Budget(max_turns=8), kernel=KernelSettings(parked=8), processes=2) as environments:
        yield environments


def test_tokens_are_those_sampled_and_the_mask_is_on_them_alone(environments: Environments, template: Template) -> None:
    """Turns whose tokens are not what their text would be encoded to come back as they were sampled."""
    pieces = [
        "<tool_call>\n",
        '{"name": "execute_code", "argum',
        'ents": {"code": "pri',
        'nt(6 * 7)"}}',
        "\n</tool_call>",
    ]
    odd = [token for piece in pieces for token in template.tokenizer(piece).input_ids]
    assert odd != template.tokenizer("".join(pieces)).input_ids
    final = template.tokenizer(answer("42")).input_ids
    sampled = [[*odd, template.end], [*final, template.end]]

    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        turns = [sampled[turns_so_far(template.tokenizer.decode(prompt))] for prompt in prompts]
        # Backends pad behind the end of a turn.
        return [[*turn, 7, 7] for turn in turns], [[-0.1 * n for n in range(len(turn) + 2)] for turn in turns]

    generator = BatchGenerator(generate, template.end, turn_tokens=TURNS, slots=4)
    [rollout] = rolled(environments, template, generator).rollouts
    between = template.between("42", called=True)
    assert rollout.completion_ids == [*sampled[0], *between, *sampled[1]]
    assert rollout.mask == [1] * len(sampled[0]) + [0] * len(between) + [1] * len(sampled[1])
    assert rollout.logprobs is not None and len(rollout.logprobs) == len(rollout.mask)
    assert rollout.logprobs[: len(sampled[0])] == [-0.1 * n for n in range(len(sampled[0]))]
    assert not any(logprob for logprob, mask in zip(rollout.logprobs, rollout.mask, strict=True) if not mask)
    assert rollout.record.reward == 1.0 and rollout.record.usage.completion_tokens == sum(rollout.mask)


def test_the_conversation_is_the_one_that_the_template_renders(environments: Environments, template: Template) -> None:
    """Prompt and what stands between turns, together, are the template's own text of the whole conversation."""
    turns = [run("print(6 * 7)"), "I think so.", answer("42")]
    generator = scripted(template, lambda text: turns[turns_so_far(text)])
    [rollout] = rolled(environments, template, generator).rollouts
    record = rollout.record
    roles = [message["role"] for message in record.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    whole = template.tokenizer.apply_chat_template(record.messages, tools=record.tools, tokenize=False)
    assert template.tokenizer.decode(rollout.prompt_ids + rollout.completion_ids) == whole.removesuffix("\n")


def test_qwen3s_template_is_taken_apart_as_render_writes_it(environments: Environments) -> None:
    """With the training template of Qwen3, tokens are those of `chat.render`, which SFT and serving use."""
    from trl.chat_template_utils import qwen3_training_chat_template

    tokenizer = make_tokenizer()
    tokenizer.chat_template = qwen3_training_chat_template
    template = Template(tokenizer, tool_schemas())
    think = "<think>\nA product.\n</think>\n\n"
    turns = [think + run("print(6 * 7)"), think + answer("42")]
    generator = scripted(template, lambda text: turns[turns_so_far(text)])
    [rollout] = rolled(environments, template, generator).rollouts
    text = tokenizer.decode(rollout.prompt_ids + rollout.completion_ids)
    assert text + "\n" == render(rollout.record.messages, rollout.record.tools)
    assert tokenizer(text).input_ids == rollout.prompt_ids + rollout.completion_ids


def test_a_template_that_is_not_known_is_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    with pytest.raises(ModelSetupError, match="is not known to work"):
        Template(tokenizer, tool_schemas())
    tokenizer.chat_template = "{{ raise_exception('no tools here') }}"
    with pytest.raises(ModelSetupError, match="no tools here"):
        Template(tokenizer, tool_schemas())
    tokenizer.chat_template = None
    with pytest.raises(ModelSetupError, match="no chat template"):
        Template(tokenizer, tool_schemas())


def test_stop_reasons_are_true(environments: Environments, template: Template) -> None:
    """Each budget, and each way to end, by the task that it happens to."""
    scripts: dict[str, Script] = {
        "answered": lambda text: answer("41"),
        "turn_limit": lambda text: run("1"),
        "no_call": lambda text: "I cannot say.",
        "output_limit": lambda text: run("print('many words ' * 60)"),
        "kernel_lost": lambda text: run("import os; os._exit(1)"),
        "context_limit": lambda text: run("x = 1  # " + "a b " * 35),
    }

    def script(text: str) -> str:
        name = next(name for name in scripts if f"[{name}]" in text)
        return scripts[name](text)

    tasks = [Task(id=name, question=f"[{name}] {QUESTION}", answer=Integer(value=42)) for name in scripts]
    tokens = TokenBudget(turn=TURNS, observations=500, episode=1500)
    generator = scripted(template, script)
    batch = rolled(environments, template, generator, [Job(task=task) for task in tasks], tokens)
    found = {rollout.record.task_id: rollout for rollout in batch.rollouts}
    assert {name: rollout.record.stop_reason for name, rollout in found.items()} == {name: name for name in scripts}
    assert all(rollout.record.reward == 0.0 for rollout in found.values())
    for rollout in found.values():  # no dangling observation: the last token was sampled
        assert rollout.mask[-1] == 1 and rollout.completion_ids[-1] == template.end
        assert len(rollout.prompt_ids) + len(rollout.completion_ids) <= tokens.episode


def test_a_turn_that_is_cut_is_told_so_and_closed(environments: Environments, template: Template) -> None:
    turns = ["word " * 400, answer("42")]
    generator = scripted(template, lambda text: turns[turns_so_far(text)])
    [rollout] = rolled(environments, template, generator).rollouts
    assert rollout.record.reward == 1.0
    assert "cut at the token limit" in rollout.record.messages[3]["content"]
    assert rollout.mask[: TURNS + 1] == [1] * TURNS + [0] and rollout.completion_ids[TURNS] == template.end


def test_kernels_of_a_batch_run_at_the_same_time(environments: Environments, template: Template) -> None:
    """Eight cells that wait half a second end in far less than four, and half of the batch generates meanwhile."""

    def script(text: str) -> str:
        return [run("import time; time.sleep(0.5)"), answer("42")][turns_so_far(text)]

    batches: list[int] = []
    jobs = [Job(task=TASK, seed=n) for n in range(8)]
    rolled(environments, template, scripted(template, script), jobs)  # the servers have started
    batch = rolled(environments, template, scripted(template, script, batches), jobs)
    assert all(rollout.record.reward == 1.0 for rollout in batch.rollouts)
    assert batch.seconds.total < 2.5
    assert sum(batches) == 16
    assert [rollout.job.seed for rollout in batch.rollouts] == list(range(8))


def test_a_generator_that_fails_costs_what_waited(environments: Environments, template: Template) -> None:
    def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], None]:
        if generator.slots == 2 and len(failures) < 1:
            failures.append(len(prompts))
            raise MemoryError("out of memory")
        return [[*template.tokenizer(answer("42")).input_ids, template.end] for _ in prompts], None

    failures: list[int] = []
    generator = BatchGenerator(generate, template.end, turn_tokens=TURNS, slots=2, patience=1.0)
    rollouts = rolled(environments, template, generator, [Job(task=TASK, seed=n) for n in range(6)]).rollouts
    assert failures == [2]
    assert [rollout.record.stop_reason for rollout in rollouts].count("infrastructure_error") == 2
    assert "out of memory" in str(rollouts[0].record.error)
    assert [rollout.record.reward for rollout in rollouts].count(1.0) == 4


def test_processes_that_generate_together_stay_in_step(template: Template) -> None:
    """Two trainers with unlike numbers of turns call the backend as often as each other, with as many prompts."""
    import threading

    barrier, counts, sizes = threading.Barrier(2), {}, {0: [], 1: []}

    def exchange(process: int, value: int) -> list[int]:
        barrier.wait(30)
        counts[process] = value
        barrier.wait(30)
        both = [counts[0], counts[1]]
        barrier.wait(30)
        return both

    def trainer(process: int) -> None:
        def generate(prompts: list[list[int]], max_tokens: int) -> tuple[list[list[int]], None]:
            sizes[process].append(len(prompts))
            texts = [template.tokenizer.decode(prompt) for prompt in prompts]
            long = process == 1
            turns = [run("1") if long and turns_so_far(text) < 3 else answer("42") for text in texts]
            return [[*template.tokenizer(turn).input_ids, template.end] for turn in turns], None

        both = together(generate, count=lambda own: max(exchange(process, own)))
        generator = BatchGenerator(both, template.end, turn_tokens=TURNS, slots=8)
        with Environments(None, processes=1) as environments:
            runner = Runner(environments, template, TOKENS)
            jobs = [Job(task=TASK, seed=n) for n in range(2 + process)]
            batch = runner.run(jobs, generator, in_step=lambda own: any(exchange(process, int(own))))
        assert [rollout.record.reward for rollout in batch.rollouts] == [1.0] * (2 + process)

    errors: list[BaseException] = []

    def guarded(process: int) -> None:
        try:
            trainer(process)
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=guarded, args=(process,)) for process in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not errors, errors
    assert sizes[0] == sizes[1] == [3, 3, 3, 3]


def test_time_is_accounted_for(environments: Environments, template: Template) -> None:
    def script(text: str) -> str:
        time.sleep(0.1)
        return [run("import time; time.sleep(0.3)"), answer("42")][turns_so_far(text)]

    rolled(environments, template, scripted(template, script))
    seconds = rolled(environments, template, scripted(template, script)).seconds
    assert 0.2 <= seconds.generation < 0.5 and seconds.waiting >= 0.3
    assert seconds.generation + seconds.waiting == pytest.approx(seconds.total, abs=0.3)
