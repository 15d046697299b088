"""RFC 6040 section 4.2, the whole table, whatever the DSCP bits are."""

from __future__ import annotations

import pytest

from encap.ecn import decapsulate_ecn

NOT_ECT, ECT1, ECT0, CE, DROP = 0, 1, 2, 3, -1

# Figure 4: inner field, then the new field for outer Not-ECT, ECT(0), ECT(1), CE.
FIGURE_4 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: DROP},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


@pytest.mark.parametrize("inner", FIGURE_4)
@pytest.mark.parametrize("outer", [NOT_ECT, ECT0, ECT1, CE])
def test_figure_4(inner: int, outer: int) -> None:
    for dscp in range(0, 256, 4):
        assert decapsulate_ecn(dscp | outer, (0xFC - dscp) | inner) == FIGURE_4[inner][outer]
