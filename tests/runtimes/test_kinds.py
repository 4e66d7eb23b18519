from common.commands.trace import FORMATS
from common.runtimes.candidates import OPENERS, SHORT_FORMS
from common.runtimes.kinds import KINDS, TRACED


def test_every_kind_of_file_can_be_opened():
    assert set(KINDS.values()) == set(OPENERS)
    assert set(SHORT_FORMS.values()) <= set(KINDS)


def test_every_traced_kind_can_be_written():
    assert set(FORMATS) == set(TRACED)
