"""The sentences of flags: a run and a check of its record go by the same."""

from msbench.benchmark import reliability
from msbench.leaderboard import flags


def sentences(module):
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}


def test_every_sentence_is_known_to_those_who_check():
    assert set(sentences(flags).values()) == flags.ALL
    found = {name: value for name, value in sentences(reliability).items() if name in sentences(flags)}
    assert found == sentences(flags)
