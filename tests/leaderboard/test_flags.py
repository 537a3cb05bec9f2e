"""The sentences of flags: a run and a check of its record go by the same."""

import pytest
from msbench.benchmark import reliability
from msbench.leaderboard import flags


def sentences(module):
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}


def test_every_sentence_is_known_to_those_who_check():
    assert set(sentences(flags).values()) == flags.ALL
    found = {name: value for name, value in sentences(reliability).items() if name in sentences(flags)}
    assert found == sentences(flags)


@pytest.mark.parametrize("before", [0.9, 0.9922, 0.99])
def test_what_is_exactly_as_much_as_is_allowed_is_not_too_much(make_record, before):
    """In binary, 0.9922 - 0.9822 is more than a hundredth."""
    for points, found in ((1, False), (1.1, True)):
        copy = {"undefended": 0.9, "defended": 0.71 - points / 50, "images": 1000, "argmax_changed": 0, "l1": 0}
        record = make_record(
            paid__defended_accuracy_before=before,
            paid__defended_accuracy=before - points / 100,
            paid__shifted=copy,
            curve=[],
        )
        assert flags.moved(record.paid, [], None) == found
        assert flags.fragile(record.paid, before) == found
