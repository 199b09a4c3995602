"""Stop strings across token boundaries."""

import pytest

from kumquant.engine.stop import StopMatcher


def run(stop, pieces):
    matcher = StopMatcher(stop)
    shown = []
    for piece in pieces:
        shown.append(matcher.push(piece))
        if matcher.stopped:
            break
    else:
        shown.append(matcher.flush())
    return shown, matcher.stopped


@pytest.mark.parametrize(("stop", "pieces", "shown", "stopped"), [
    ([], ["a", "b"], ["a", "b", ""], False),
    (["END"], ["one E", "N", "D two"], ["one ", "", ""], True),
    (["END"], ["one E", "N", "o"], ["one ", "", "ENo", ""], False),
    (["END"], ["aE", "EN", "D"], ["a", "E", ""], True),
    (["\n\n"], ["a\n", "b\n", "\nc"], ["a", "\nb", ""], True),
    (["abab"], ["ab", "aab", "ab"], ["", "aba", ""], True),
    (["xyz", "b"], ["abxyz"], ["a"], True),
    (["long stop", "stop"], ["a long s", "top"], ["a ", ""], True),
    (["END"], ["an EN"], ["an ", "EN"], False),
])
def test_nothing_of_a_stop_string_is_shown(stop, pieces, shown, stopped):
    assert run(stop, pieces) == (shown, stopped)
