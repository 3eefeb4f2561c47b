"""Panels: the columns of a sparse block, so many at a time that their rows stay close.

An entry names a row of H by its column. Rows of all columns are soon more than a core
keeps in its cache, and most time then goes by waiting for them. So a block may keep its
entries panel after panel: first those of all rows in the first columns, then those in
the next. The entries of a row still follow each other by column, and those of a column
by row: sums over either come out the same, bit for bit. (The loss, a sum over all
entries, may differ in its last bit.)
"""

from __future__ import annotations

import math

# What the rows of H that a panel names may take. A pass asks for up to three such rows
# an entry, and 1 or 2 MiB are what a core has to itself. (On 3 to 31 M entries at ranks
# of 16 to 64, half of it takes 1.0 to 1.1 times as long, twice as much up to 1.25.)
PANEL_BYTES = 5 * 2**17
# Rows with fewer entries in a panel than this aren't worth coming back to: with four
# times as many, a round takes 0.5 to 0.7 of the time, with as many 0.6 to 0.9.
LEAST_ENTRIES = 3


def panels_for(shape: tuple[float, float], stored: float, row_bytes: float) -> int:
    """Return how many panels the entries of a block are kept in.

    Parameters
    ----------
    shape : (p, q)
    stored : float
        Its entries.
    row_bytes : float
        Bytes of a row of H, of one candidate.
    """
    panels = math.ceil(shape[1] * row_bytes / PANEL_BYTES)
    worth = stored > 0 and stored >= LEAST_ENTRIES * panels * shape[0]
    return max(1, panels) if worth else 1
