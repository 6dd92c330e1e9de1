"""Two fits are the same only if everything that decides their results is."""

import functools
import math

import pytest

from skavi._estimators.fit_identity import describe_value


def falling(rate):
    return lambda iteration: 1 / (1 + iteration / rate)


def with_default(rate):
    def schedule(iteration, rate=rate):
        return rate

    return schedule


class Schedule:
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, iteration):
        return self.rate


PAIRS = {
    "enclosed values": (falling(5), falling(500)),
    "defaults": (with_default(1.0), with_default(2.0)),
    "names of functions": (lambda i: math.sin(i), lambda i: math.cos(i)),
    "partial functions": (functools.partial(max, 1), functools.partial(max, 2)),
    "objects that are called": (Schedule(1), Schedule(2)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_functions_that_differ_are_told_apart(name):
    one, other = PAIRS[name]
    assert describe_value(one) != describe_value(other)


@pytest.mark.parametrize("make", [falling, with_default, Schedule])
def test_functions_made_alike_are_the_same(make):
    assert describe_value(make(3)) == describe_value(make(3))
