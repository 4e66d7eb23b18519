import pytest

from common.quantization.methods import BEST_METHODS, NAMES, ON_WEIGHTS, RANGES, USUAL, methods_of


def test_without_names_it_is_what_it_was():
    assert methods_of(()) == USUAL
    assert USUAL.names == ["histogram"]


def test_names_come_in_the_order_in_which_they_are_done():
    found = methods_of(["correct_biases", "adaround", "mse", "equalize"], time_limit=7)
    assert found.names == ["mse", "equalize", "adaround", "correct_biases"]
    assert found.time_limit == 7


def test_best_is_a_combination_of_the_others():
    assert methods_of(["best"]).names == list(BEST_METHODS)
    assert set(BEST_METHODS) <= {*RANGES, *ON_WEIGHTS} <= set(NAMES)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["mse", "percentile"], "percentile and mse are each a way to find the ranges of activations; take one"),
        (["best", "mse"], "best stands for a combination; leave out mse"),
    ],
)
def test_what_does_not_go_together_is_refused(names, line):
    with pytest.raises(ValueError, match=line):
        methods_of(names)
