"""Going back through steps of which few states are kept."""

import weakref

import pytest

from distmeta.meta.backwards import backwards, most_states


class State:
    """A state that is counted while it lives."""

    def __init__(self, step: int, alive: weakref.WeakSet) -> None:
        self.step = step
        alive.add(self)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7, 20, 21, 22, 55])
def test_each_step_comes_from_the_last_one_on_with_few_states_at_a_time(steps):
    alive, asked, most, seen = weakref.WeakSet(), [], 0, []
    first = State(0, weakref.WeakSet())

    def advance(before: State, step: int) -> State:
        nonlocal most
        assert before.step == step
        asked.append(step)
        after = State(step + 1, alive)
        most = max(most, len(alive))
        return after

    for step, before, after in backwards(first, steps, advance):
        assert (before.step, after.step) == (step, step + 1)
        seen.append(step)
        most = max(most, len(alive))
        del before, after
    assert seen == list(reversed(range(steps)))
    assert max(asked.count(step) for step in range(steps)) <= 2
    assert most <= most_states(steps)


def test_how_few_states_there_are():
    assert [most_states(steps) for steps in (1, 3, 6, 10, 20, 21)] == [2, 3, 4, 5, 7, 7]
