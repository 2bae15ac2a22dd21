"""Noise between seeds, compute multipliers and fits: against closed forms and simulated truth."""

from __future__ import annotations

import math
import random

import pytest

from server.scaling import fit, multiplier, noise
from server.scaling.fit import PowerLaw

LAW = PowerLaw(0.9, 0.5, 0.25, 1e14)
SIZES = [1e13, 3e13, 1e14, 3e14]


class TestNoise:
    @pytest.mark.parametrize(
        ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423)]
    )
    def test_students_t_is_that_of_the_tables(self, degrees: int, expected: float) -> None:
        assert noise.t_quantile(degrees) == pytest.approx(expected, abs=1e-4)

    def test_cells_share_one_variance(self) -> None:
        found = noise.pooled([[1.0, 3.0], [10.0, 10.0, 16.0], [5.0]])
        assert found.degrees_of_freedom == 3
        assert found.spread == pytest.approx(math.sqrt((2.0 + 24.0) / 3))

    def test_one_seed_each_knows_no_noise(self) -> None:
        found = noise.pooled([[1.0], [2.0]])
        assert found.spread is None
        assert found.half_width(1, 1) is None

    def test_no_difference_is_taken_for_real_in_five_of_a_hundred(self) -> None:
        source, wrong = random.Random(3), 0
        for _ in range(1000):
            a = [source.gauss(1, 0.01) for _ in range(3)]
            b = [source.gauss(1, 0.01) for _ in range(3)]
            width = noise.pooled([a, b]).half_width(3, 3)
            assert width is not None
            wrong += abs(sum(a) - sum(b)) / 3 > width
        assert 25 <= wrong <= 80


class TestMultiplier:
    def test_between_two_points_it_is_linear_in_the_logarithms(self) -> None:
        baseline = [(1e12, 2.0), (1e14, 1.0)]  # log-log slope: 100 times for half the loss
        found = multiplier.against(baseline, 5e12, math.sqrt(2.0))
        assert found.value == pytest.approx(2.0)  # the baseline needs 1e13

    @pytest.mark.parametrize(("loss", "why"), [(2.1, "worse"), (0.9, "better than every run")])
    def test_beyond_the_baseline_there_is_none(self, loss: float, why: str) -> None:
        found = multiplier.against([(1e12, 2.0), (1e14, 1.0)], 1e13, loss)
        assert found.value is None
        assert why in found.note

    def test_a_run_that_cost_more_and_reached_less_is_no_part_of_the_baseline(self) -> None:
        assert multiplier.envelope([(1, 3.0), (3, 2.0), (2, 3.5)]) == [(1, 3.0), (3, 2.0)]

    def test_one_size_is_no_baseline(self) -> None:
        assert multiplier.against([(1e12, 2.0)], 1e12, 2.0).value is None


class TestFit:
    def test_a_law_without_noise_is_found(self) -> None:
        found = fit.fit([(flops, LAW.at(flops)) for flops in SIZES])
        assert found.law.at(1e15) == pytest.approx(LAW.at(1e15), rel=1e-4)
        assert found.law.e == pytest.approx(0.9, abs=1e-3)
        assert found.law.alpha == pytest.approx(0.25, abs=1e-3)
        assert found.is_curvature_known

    def test_the_same_points_give_the_same_answer_in_any_order(self) -> None:
        points = [(flops, LAW.at(flops) + 1e-3 * (-1) ** k) for k, flops in enumerate(SIZES)]
        one, other = fit.fit(points), fit.fit(points[::-1])
        assert (one.law, one.interval_at(1e15)) == (other.law, other.interval_at(1e15))
        fit._fit.cache_clear()
        assert fit.fit(points).e_interval == one.e_interval

    def test_the_interval_holds_the_truth_about_as_often_as_it_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fit, "DRAWS", 100)
        source, held = random.Random(7), 0
        for _ in range(40):
            points = [(flops, LAW.at(flops) + source.gauss(0, 2e-3)) for flops in SIZES * 2]
            low, high = fit.fit(points).interval_at(1e15)
            held += low <= LAW.at(1e15) + source.gauss(0, 2e-3) <= high
        assert held >= 34

    def test_neither_part_of_the_law_is_negative(self) -> None:
        rising = fit.fit([(flops, 1.0 + 0.01 * k) for k, flops in enumerate(SIZES)])
        assert rising.law.a == 0.0
        straight = fit.fit([(flops, 3.0 - 0.3 * math.log10(flops / 1e13)) for flops in SIZES])
        assert straight.law.e >= 0.0
        assert not straight.is_curvature_known

    def test_three_sizes_are_too_few_however_many_seeds(self) -> None:
        points = [(flops, LAW.at(flops)) for flops in SIZES[:3] * 3]
        assert not fit.can_fit(points)
        with pytest.raises(ValueError, match="4 sizes"):
            fit.fit(points)
