"""The numbers against the papers' formulas written as loops, and the file against its plan."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ark.cycle import Cycle, Phase
from ark.forgetting import (
    MATRIX,
    NUMBERS,
    PICTURE,
    Matrix,
    _write,
    conclude,
)
from ark.transfer import (
    MEASURES,
    backward_transfer,
    forgetting,
    forward_transfer,
    lost_between,
    visits,
)

NAN = math.nan


def sequential(tasks: int) -> np.ndarray:
    """A row of the start, then a row after each task, each trained once."""
    return np.vstack([np.zeros((1, tasks), bool), np.eye(tasks, dtype=bool)])


@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_one_visit_each_gives_the_papers_numbers(tasks: int) -> None:
    scores = np.random.default_rng(tasks).random((tasks + 1, tasks))
    start, papers = scores[0], scores[1:]  # papers[i, j]: score on j after training i
    backward = sum(papers[-1, i] - papers[i, i] for i in range(tasks - 1)) / (tasks - 1)
    lost = [max(papers[k, j] for k in range(tasks - 1)) - papers[-1, j] for j in range(tasks - 1)]
    forward = sum(papers[i - 1, i] - start[i] for i in range(1, tasks)) / (tasks - 1)
    trained = sequential(tasks)
    assert np.nanmean(backward_transfer(scores, trained)) == pytest.approx(backward)
    assert np.nanmean(forgetting(scores, trained)) == pytest.approx(sum(lost) / (tasks - 1))
    assert np.nanmean(forward_transfer(scores, trained)) == pytest.approx(forward)
    assert np.isnan(lost_between(scores, trained)).all()


def test_a_cyclic_plan_is_read_by_visits() -> None:
    #                   start  a    a    b    b    a    b
    score = np.array([[0.5, 0.6, 0.9, 0.7, 0.8, 0.85, 0.4]]).T
    trained = np.array([[0, 1, 1, 0, 0, 1, 0]], bool).T
    assert visits(trained[:, 0]) == [(1, 2), (5, 5)]
    assert backward_transfer(score, trained) == pytest.approx([0.4 - 0.85])
    assert forgetting(score, trained) == pytest.approx([0.9 - 0.4])
    assert lost_between(score, trained) == pytest.approx([0.9 - 0.8])
    assert np.isnan(forward_transfer(score, trained)).all()  # it was first
    other = ~trained
    other[0] = False
    assert forward_transfer(score, other) == pytest.approx([0.9 - 0.5])
    # the last row is its own: nothing came after it
    assert np.isnan(backward_transfer(score, other)).all()
    assert lost_between(score, other) == pytest.approx([0.8 - 0.85])


def test_what_was_not_measured_is_nan_and_nothing_else_becomes_it() -> None:
    trained = sequential(3)
    scores = np.array([[0.1, 0.2, 0.3], [0.9, 0.3, NAN], [NAN, 0.8, 0.4], [0.5, NAN, 0.7]])
    assert backward_transfer(scores, trained) == pytest.approx([0.5 - 0.9, NAN, NAN], nan_ok=True)
    assert forgetting(scores, trained) == pytest.approx([0.9 - 0.5, NAN, NAN], nan_ok=True)
    assert forward_transfer(scores, trained) == pytest.approx(
        [NAN, 0.3 - 0.2, 0.4 - 0.3], nan_ok=True
    )
    no_start = forward_transfer(scores[1:], trained[1:])
    assert np.isnan(no_start).all()
    never = np.zeros((4, 1), bool)
    for measure in MEASURES.values():
        assert np.isnan(measure(scores[:, :1], never)).all()


def test_forgetting_takes_no_score_from_before_training() -> None:
    scores = np.array([[0.9], [0.6], [0.5]])
    trained = np.array([[0, 1, 0]], bool).T
    assert forgetting(scores, trained) == pytest.approx([0.1])


@pytest.fixture
def cycle() -> Cycle:
    phases = [Phase("x/a", ["backbone"], steps=1), Phase("x/a", steps=2), Phase("x/b", steps=4)]
    return Cycle(phases, [1, 2, 4], 2)


def write(folder: Path, steps: list[int], keys: tuple[str, ...]) -> None:
    rows = [
        {"step": step, "who": who, **{k: 0.01 * step + 0.1 * n for n, k in enumerate(keys)}}
        for step in steps
        for who in ("student", "teacher")
    ]
    rows[-1][keys[0]] = ""
    _write(folder / MATRIX, rows)


def test_the_plan_says_what_trained_between_rows(cycle: Cycle, tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 3, 7, 8, 14], ("x/a", "x/b"))
    matrix = Matrix.read(tmp_path / MATRIX, "teacher", cycle, ["x/a", "x/b"])
    assert matrix.steps == (0, 1, 3, 7, 8, 14)
    expected = [[0, 0], [1, 0], [1, 0], [0, 1], [1, 0], [1, 1]]
    assert matrix.trained.astype(int).tolist() == expected
    assert matrix.scores[2] == pytest.approx([0.03, 0.13])
    assert np.isnan(matrix.scores[-1, 0])


def test_six_tasks_and_sixty_phases_are_drawn(tmp_path: Path) -> None:
    from PIL import Image

    keys = tuple(f"some_dataset/task{n}" for n in range(6))
    phases = [Phase(key, steps=2) for key in keys]
    write(tmp_path, list(range(0, 122, 2)), keys)
    lines = "\n".join(conclude(tmp_path, Cycle(phases, [2] * 6, 10), keys))
    assert all(key in lines for key in keys)
    assert PICTURE in lines
    assert (tmp_path / NUMBERS).is_file()
    width, height = Image.open(tmp_path / PICTURE).size
    assert 1000 < width < 4000
    assert 500 < height < 2000


def test_a_run_without_rows_reports_nothing(cycle: Cycle, tmp_path: Path) -> None:
    assert conclude(tmp_path, cycle, ["x/a", "x/b"]) == []
