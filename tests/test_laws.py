"""Fits of scaling laws: exact laws come back, intervals cover what they promise, errors weigh, bad input is refused."""

from fractions import Fraction

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import thetadot as td

SCALES = np.logspace(-5, -1, 7)


def dataset(y, x=SCALES, **variables):
    """A scan over `init_scale`, and over seeds if y has rows."""
    dims = ("seed", "init_scale")[-np.ndim(y) :]
    found = {name: (dims, values) for name, values in {"escape": y, **variables}.items()}
    return xr.Dataset(found, coords={"init_scale": x})


def test_an_exact_power_law_comes_back():
    fit = td.fit_power_law(dataset(3.0 * SCALES**-1.5))
    assert fit.value == pytest.approx(-1.5, abs=1e-13) and fit.prefactor == pytest.approx(3.0, rel=1e-12)
    assert fit.interval[1] - fit.interval[0] < 1e-12
    assert (fit.num_points, fit.num_left_out, fit.sample_interval) == (7, 0, None)


def test_an_exact_log_law_comes_back_with_its_sign():
    """y = a + b log(1/x): times that grow as the scale falls have b > 0."""
    fit = td.fit_log_law(dataset(2.0 + 1.25 * np.log(1 / SCALES)))
    assert fit.value == pytest.approx(1.25, abs=1e-13) and fit.prefactor == pytest.approx(2.0, rel=1e-12)
    wrong = td.fit_power_law(dataset(2.0 + 1.25 * np.log(1 / SCALES)))  # the other law does not fit as well
    assert wrong.interval[1] - wrong.interval[0] > 1e-3


def test_names_other_than_the_default_ones_and_a_band():
    ds = dataset(3.0 * SCALES**2).rename(escape="loss", init_scale="width")
    fit = td.fit_power_law(ds, x="width", y="loss")
    y, low, high = fit.at(np.array([0.5, 1.0]))
    np.testing.assert_allclose(y, [0.75, 3.0], rtol=1e-12)
    assert np.all(low <= y) and np.all(y <= high)
    assert repr(fit).startswith("Fit: loss = 3 width^p, p = 2 (95 %: ")
    fit = td.fit_log_law(ds, x="width", y="loss")
    np.testing.assert_allclose(fit.at(SCALES)[0], fit.prefactor + fit.value * np.log(1 / SCALES), rtol=1e-12)


def coverage(interval, num_draws=600, num_points=5, seed=0, errors=None):
    """Share of draws whose interval holds the true slope 2 of a log law with normal scatter."""
    rng = np.random.default_rng(seed)
    x = np.logspace(-4, 0, num_points)
    size = np.full(num_points, 0.3) if errors is None else errors
    hits = 0
    for _ in range(num_draws):
        y = 1.0 + 2.0 * np.log(1 / x) + size * rng.normal(size=num_points)
        stated = {} if errors is None else {"escape_error": errors}
        low, high = interval(td.fit_log_law(dataset(y, x, **stated)))
        hits += low <= 2.0 <= high
    return hits / num_draws


def promised(num_draws=600):
    """95 % within four standard deviations of a binomial share."""
    return 0.95, 4 * np.sqrt(0.95 * 0.05 / num_draws)


def test_the_regression_interval_covers_what_it_promises():
    share, error = promised()
    assert abs(coverage(lambda fit: fit.interval) - share) < error


def test_the_test_of_coverage_sees_an_interval_without_student():
    """Negative control: with three degrees of freedom the normal quantile is a third too small."""
    ratio = stats.norm.ppf(0.975) / stats.t.ppf(0.975, 3)

    def normal(fit):
        return tuple(fit.value + ratio * (end - fit.value) for end in fit.interval)

    share, error = promised()
    assert abs(coverage(normal) - share) > error


def test_the_interval_covers_with_stated_errors_of_many_sizes():
    """The errors explain the scatter: never below the promise."""
    share, error = promised(300)
    found = coverage(lambda fit: fit.interval, 300, 7, errors=np.logspace(-3, 0, 7))
    assert found > share - error


def test_the_band_covers_the_mean():
    rng, hits = np.random.default_rng(3), 0
    at = np.array([1e-3])
    for _ in range(300):
        y = np.exp(1.0 + 2.0 * np.log(SCALES) + 0.2 * rng.normal(size=7))
        _, low, high = td.fit_power_law(dataset(y)).at(at)
        hits += bool(low[0] <= np.exp(1.0) * at[0] ** 2 <= high[0])
    share, error = promised(300)
    assert abs(hits / 300 - share) < error


def test_bootstrap_over_seeds_covers_where_points_of_a_seed_hang_together():
    """Each seed has its own slope: points are not independent, so the regression claims too much, seeds do not."""
    rng, logs = np.random.default_rng(1), np.log(1 / SCALES)
    by_seeds, by_points = 0, 0
    for _ in range(100):
        slopes = 2.0 + 0.1 * rng.normal(size=(40, 1))
        fit = td.fit_log_law(dataset(1.0 + slopes * (logs - np.mean(logs))[None, :]))
        assert fit.sample_interval is not None
        by_seeds += fit.sample_interval[0] <= 2.0 <= fit.sample_interval[1]
        by_points += fit.interval[0] <= 2.0 <= fit.interval[1]
    assert abs(by_seeds / 100 - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 100)
    assert by_points < by_seeds - 20


def test_errors_weigh():
    y = 2.0 + 1.5 * np.log(1 / SCALES)
    y[0] += 1.0
    errors = np.full(7, 1e-3)
    errors[0] = 1.0
    weighted, equal = (td.fit_log_law(dataset(y, **stated)) for stated in ({"escape_error": errors}, {}))
    assert abs(weighted.value - 1.5) < 1e-3 < abs(equal.value - 1.5)
    misled = td.fit_log_law(dataset(y, escape_error=errors[::-1].copy()))
    assert abs(misled.value - 1.5) > 1e-2


def test_tiny_errors_do_not_hide_the_scatter():
    """Where points scatter far more than their numerical errors say, one lucky error must not rule the line."""
    rng = np.random.default_rng(2)
    y = 2.0 + 1.5 * np.log(1 / SCALES) + 0.1 * rng.normal(size=7)
    errors = np.array([1e-12, 1e-6, 1e-11, 1e-6, 1e-6, 1e-6, 1e-6])
    stated, without = td.fit_log_law(dataset(y, escape_error=errors)), td.fit_log_law(dataset(y))
    assert stated.value == pytest.approx(without.value, rel=1e-8)
    np.testing.assert_allclose(stated.interval, without.interval, rtol=1e-6)


def exact_line(x, y, errors):
    """The slope of the weighted line and its standard error, in exact arithmetic."""
    x, y, errors = ([Fraction(float(value)) for value in values] for values in (x, y, errors))
    w = [1 / e**2 for e in errors]
    mean_x, mean_y = (sum(a * b for a, b in zip(w, part, strict=True)) / sum(w) for part in (x, y))
    xx = sum(a * (b - mean_x) ** 2 for a, b in zip(w, x, strict=True))
    xy = sum(a * (b - mean_x) * (c - mean_y) for a, b, c in zip(w, x, y, strict=True))
    return float(xy / xx), float(1 / xx) ** 0.5


@pytest.mark.parametrize("digits", [3, 6, 9, 12])
@pytest.mark.parametrize("point", [0, 3])
def test_one_point_that_is_known_far_better_than_all_others(digits, point):
    y = 2.0 + 1.5 * np.log(1 / SCALES) + np.array([0.5, -0.3, 0.2, 0.1, -0.4, 0.3, -0.2])
    errors = np.ones(7)
    errors[point] = 10.0**-digits  # the errors of the others explain the scatter: this point rules the line
    fit = td.fit_log_law(dataset(y, escape_error=errors))
    slope, error = exact_line(-np.log(SCALES), y, errors)
    assert fit.value == pytest.approx(slope, rel=1e-13)
    half = stats.t.ppf(0.975, 5) * error
    np.testing.assert_allclose(fit.interval, [slope - half, slope + half], rtol=1e-12)
    assert fit.at(SCALES[point : point + 1])[0] == pytest.approx(y[point], abs=1e-4 if digits == 3 else 1e-10)
    others = exact_line(-np.log(SCALES), y, np.ones(7))[0]
    assert point == 3 or abs(slope - others) > 0.01  # the middle point turns no line
    seeds = np.stack([y, y + 0.1 * np.log(SCALES[point] / SCALES)])  # they agree where the point is
    interval = td.fit_log_law(dataset(seeds, escape_error=np.stack([errors, errors]))).sample_interval
    assert interval is not None
    low, high = interval
    assert low == pytest.approx(slope, rel=1e-9) and high == pytest.approx(slope + 0.1, rel=1e-9)


def test_lanes_without_a_result_are_left_out_and_counted():
    y = np.tile(3.0 * SCALES**-1.5, (3, 1))
    y[0, 1] = np.nan
    y[1, 2] = 1e9
    y[2, 3] = -1.0
    status = np.full(y.shape, "done", object)
    status[1, 2], status[2, 3], status[2, 4] = "blew up", "failed", "stopped"
    fit = td.fit_power_law(dataset(y, status=status))
    assert (fit.num_points, fit.num_left_out) == (18, 3)
    assert fit.value == pytest.approx(-1.5, abs=1e-12)
    errors = np.full(y.shape, 1e-6)
    errors[2, 5] = np.inf
    assert td.fit_power_law(dataset(y, status=status, escape_error=errors)).num_left_out == 4


@pytest.mark.parametrize(
    ("ds", "arguments", "sentence"),
    [
        (dataset(SCALES), {"y": "descent"}, "there is no 'descent' in this dataset: choose among escape, init_scale"),
        (dataset(SCALES), {"x": "width"}, "there is no 'width'"),
        (dataset(np.where(SCALES < 1e-3, SCALES, np.nan)), {}, None),
        (dataset(np.where(SCALES < 1e-4, SCALES, np.nan)), {}, "at least three different 'init_scale'; 2 have a value"),
        (dataset(-SCALES), {}, "logarithm of 'escape', which must be positive"),
        (dataset(SCALES, SCALES - 1e-3), {}, "logarithm of 'init_scale', which must be positive"),
        (dataset(SCALES, np.where(SCALES > 1e-2, np.inf, SCALES)), {}, "logarithm of 'init_scale', .* got inf"),
        (dataset(SCALES, escape_error=-SCALES), {}, "'escape_error' holds errors, which may not be negative; got -0.1"),
        (dataset(SCALES).assign(other=("seed", [1.0, 2.0])), {"y": "other"}, "'other' must vary along 'init_scale'"),
    ],
)
def test_bad_input_gets_one_sentence(ds, arguments, sentence):
    if sentence is None:
        assert td.fit_power_law(ds, **arguments).num_points == 4 - 1
        return
    with pytest.raises(ValueError, match=sentence):
        td.fit_power_law(ds, **arguments)
