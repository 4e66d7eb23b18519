import argparse

import pytest

from common.cli import types


@pytest.mark.parametrize(
    ("parse", "good", "value", "bad"),
    [
        (types.positive_int, "3", 3, ("0", "-1", "1.5", "x", "2147483648", "")),
        (types.thread_count, "3", 3, ("0", "-1", "1025", "")),
        (types.non_negative_int, "0", 0, ("-1", "x", "9" * 30)),
        (types.positive_float, "1e-5", 1e-5, ("0", "nan", "inf", "x")),
        (types.non_negative_float, "0", 0.0, ("-1", "inf")),
        (types.fraction, "0.5", 0.5, ("1.1", "-0.1", "x")),
        (types.height_width, "320,640", (320, 640), ("320", "320x640", "0,640", "1,2,3", "-1,5")),
    ],
)
def test_argument_types(parse, good, value, bad):
    assert parse(good) == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            parse(text)
