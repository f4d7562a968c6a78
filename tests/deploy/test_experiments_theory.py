"""Sharing a factor pays: on made-up people whose truth is known, and against hand-made figures."""

from __future__ import annotations

import numpy as np
import pytest
from support import fits
from support.teacher import Teacher, excess_loss, expected_slope, subspace_distance

ROWS, COLUMNS, RANK, SAMPLES, RIDGE = 16, 2, 1, 100, 1.0


def town(people: int, seed: int = 0) -> Teacher:
    return Teacher.draw(people, ROWS, COLUMNS, RANK, seed=seed)


# --- the teacher ----------------------------------------------------------------------------------


def test_a_teacher_has_one_column_space_and_margins_of_the_sharpness_asked_for():
    teacher = Teacher.draw(5, 8, 3, 2, sharpness=1.5)
    stacked = teacher.parameters.transpose(1, 0, 2).reshape(8, -1)
    assert np.linalg.matrix_rank(stacked) == 2
    assert np.square(teacher.parameters).sum(axis=(1, 2)) == pytest.approx([1.5**2] * 5)


def test_more_people_leave_those_who_were_there_and_their_choices_as_they_are():
    few, many = town(2), town(7)
    assert (few.parameters == many.parameters[:2]).all()
    assert (few.choices(5, seed=3) == many.choices(5, seed=3)[:2]).all()


def test_choices_follow_bradley_and_terry():
    teacher = Teacher.draw(1, 4, 2, 2, sharpness=1.0)
    margins = np.einsum("njk,jk->n", teacher.choices(400_000, seed=0)[0], teacher.parameters[0])
    # Of the pairs a margin of about 1 apart, σ(1) = .731 were chosen by the reward.
    near = np.abs(np.abs(margins) - 1) < 0.05
    assert (margins[near] > 0).mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=0.01)


def test_rewards_differ_by_the_margin():
    teacher = town(2)
    features = np.random.default_rng(0).standard_normal((3, ROWS, COLUMNS))
    assert teacher.rewards(1, features)[2] == pytest.approx((features[2] * teacher.parameters[1]).sum())


def test_the_excess_loss_is_what_sampling_gives():
    teacher = Teacher.draw(2, 4, 2, 2)
    found = teacher.parameters + 0.3 * np.random.default_rng(1).standard_normal(teacher.parameters.shape)
    choices = teacher.choices(200_000, seed=5)

    def loss(theta: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, -np.einsum("injk,ijk->in", choices, theta)).mean(axis=1)

    exact = excess_loss(teacher.parameters, found)
    assert exact == pytest.approx(loss(found) - loss(teacher.parameters), abs=0.002)
    assert (exact > 0.008).all()
    assert excess_loss(teacher.parameters, teacher.parameters) == pytest.approx([0, 0])


def test_a_choice_between_equals_has_a_quarter_of_a_measurement():
    assert expected_slope(np.array([0.0])) == pytest.approx([0.25])


def test_distance_of_a_plane_turned_by_thirty_degrees():
    plane = np.eye(3)[:, :1]
    turned = np.array([[np.cos(np.pi / 6)], [np.sin(np.pi / 6)], [0.0]])
    assert subspace_distance(plane, turned) == pytest.approx(0.5)
    assert subspace_distance(plane, 7 * plane) == pytest.approx(0.0)


# --- the fits -------------------------------------------------------------------------------------


def test_fits_end_where_no_small_step_lowers_the_loss():
    choices = town(3).choices(60, seed=1)

    def objective(theta: np.ndarray) -> float:
        margins = np.einsum("injk,ijk->in", choices, theta)
        return float(np.logaddexp(0, -margins).sum() + RIDGE / 2 * np.square(theta).sum())

    basis, factors = fits.shared(choices, RIDGE, RANK)
    rng = np.random.default_rng(0)
    best = objective(basis @ factors)
    for _ in range(20):
        near = basis + 0.02 * rng.standard_normal(basis.shape)
        assert objective(near @ (factors + 0.02 * rng.standard_normal(factors.shape))) > best
    best = objective(full := fits.full(choices, RIDGE))
    for _ in range(20):
        assert objective(full + 0.02 * rng.standard_normal(full.shape)) > best


# --- the claim ------------------------------------------------------------------------------------


def test_the_more_people_the_better_for_each():
    """The same four people, among ever more others, with the same 100 choices each."""
    errors, distances = [], []
    for people in (4, 16, 64):
        teacher = town(people)
        basis, factors = fits.shared(teacher.choices(SAMPLES, seed=1), RIDGE, RANK)
        errors.append(excess_loss(teacher.parameters, basis @ factors)[:4].mean())
        distances.append(subspace_distance(teacher.basis, basis))
    assert errors[0] > errors[1] > errors[2]
    assert distances[0] > 1.5 * distances[1] > 1.5**2 * distances[2]


def test_sharing_beats_low_rank_alone_and_that_beats_all_parameters():
    teacher = town(16)
    choices = teacher.choices(4 * SAMPLES, seed=1)
    bases, own = fits.alone(choices, RIDGE, RANK)
    basis, factors = fits.shared(choices, RIDGE, RANK)
    shared = excess_loss(teacher.parameters, basis @ factors).mean()
    alone = excess_loss(teacher.parameters, bases @ own).mean()
    full = excess_loss(teacher.parameters, fits.full(choices, RIDGE)).mean()
    assert 4 * shared < alone < 0.9 * full
