import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sibert.reporting.curves import MEDIANS, running_median, smooth, thin


def test_smoothing_keeps_a_straight_line_inside():
    line = np.arange(50.0)
    np.testing.assert_allclose(smooth(line, 5)[2:-2], line[2:-2])


def test_smoothing_by_one_entry_changes_nothing():
    values = np.array([3.0, 1.0, 4.0])
    np.testing.assert_allclose(smooth(values, 1), values)


def test_smoothing_passes_over_what_is_not_finite_and_keeps_the_hole():
    smoothed = smooth(np.array([1.0, np.nan, 3.0, np.inf, 5.0]), 3)
    np.testing.assert_allclose(smoothed, [1.0, np.nan, 3.0, np.nan, 5.0])


def test_a_huge_entry_leaves_no_rounding_error_behind():
    values = np.ones(30)
    values[3] = 1e20
    np.testing.assert_array_equal(smooth(values, 5)[6:], 1.0)


def test_a_window_wider_than_the_curve_gives_its_mean():
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0]), 99), 3.0)
    assert len(smooth(np.array([]), 3)) == 0


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40), window=st.integers(1, 9))
def test_smoothed_values_stay_between_the_extremes(values, window):
    smoothed = smooth(np.array(values), window)
    assert min(values) - 1e-9 <= smoothed.min()
    assert smoothed.max() <= max(values) + 1e-9


def test_thinning_keeps_every_spike_and_both_ends():
    x = np.arange(100_000.0)
    y = np.sin(x / 7000)
    y[[31_234, 77_777]] = 50.0, -50.0
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) < 1000
    assert {31_234.0, 77_777.0, 0.0, 99_999.0} <= set(thin_x)
    assert (np.diff(thin_x) > 0).all()
    np.testing.assert_array_equal(thin_y, y[thin_x.astype(int)])


def test_thinning_shows_a_gap_where_nothing_is_finite():
    y = np.ones(10_000)
    y[5000:] = np.nan
    assert np.isnan(thin(np.arange(10_000.0), y)[1]).any()


def test_short_curves_are_not_thinned():
    x = np.arange(10.0)
    assert thin(x, x)[0] is x


def test_the_running_median_ignores_single_spikes_and_holes():
    y = np.full(100, 2.0)
    y[[20, 60]] = 1e9, np.nan
    x, median = running_median(np.arange(100.0), y, 9)
    assert len(x) == 100
    np.testing.assert_array_equal(median, 2.0)


def test_the_running_median_follows_a_trend():
    x = np.arange(200.0)
    np.testing.assert_allclose(running_median(x, 3 * x, 11)[1][5:-5], (3 * x)[5:-5])


def test_the_running_median_of_a_long_curve_has_few_points():
    x = np.arange(50_000.0)
    assert len(running_median(x, x, 100)[0]) == MEDIANS


def test_the_running_median_of_nothing_is_nothing():
    assert len(running_median(np.array([]), np.array([]), 3)[0]) == 0
    assert len(running_median(np.array([1.0]), np.array([np.nan]), 3)[0]) == 0
