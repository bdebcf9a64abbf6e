"""Runs whose parts take as long as a test says, by a clock that only they move."""

from collections.abc import Callable
from typing import Any

import pytest

from training import trainer
from training.programs import Programs, RunState


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def set_times(
    monkeypatch: pytest.MonkeyPatch,
    clock: FakeClock,
    *,
    compiling: float = 0.0,
    collect: float = 0.0,
    update: float = 0.0,
    evaluate: float = 0.0,
    after_learn: Callable[[], None] = lambda: None,
    while_evaluating: Callable[[], None] = lambda: None,
) -> None:
    """Let the parts of a run take these seconds; `after_learn` is called after each slice of gradient steps."""
    compile_programs = trainer.compile_programs

    def paced(*arguments: Any, **options: Any) -> Programs:
        programs = compile_programs(*arguments, **options)
        clock.now += compiling

        def paced_collect(state: RunState) -> RunState:
            clock.now += collect
            return programs.collect(state)

        def paced_learn(state: RunState, updates: Any) -> Any:
            pending = int(state.pending_updates)
            learned, metrics = programs.learn(state, updates)
            clock.now += update * (pending - int(learned.pending_updates))
            after_learn()
            return learned, metrics

        def paced_evaluate(*arguments: Any, **options: Any) -> Any:
            clock.now += evaluate
            while_evaluating()
            return programs.evaluate(*arguments, **options)

        return Programs(paced_collect, paced_learn, paced_evaluate)

    monkeypatch.setattr(trainer, "compile_programs", paced)
