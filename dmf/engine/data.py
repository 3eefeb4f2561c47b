"""X as blocks on the grid, with what a fit needs to know of them."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np

from dmf.engine.grid import Grid
from dmf.engine.lower import Key, Place
from dmf.engine.runner import Leaf, Runner
from dmf.kernels import kernels_for
from dmf.totals import Totals

# The share of the spread that rounding may take of a loss without residuals.
DROWNED = 1e-5


@dataclass(frozen=True)
class Data:
    """The blocks of X where the tasks run.

    Attributes
    ----------
    shape : (m, n)
    dtype : the dtype that is computed in
    kind : {"dense", "sparse"}
        Of the blocks.
    grid : Grid
    totals : Totals
        Over all observed entries.
    token : str
        Makes the names of all tasks on these data unique.
    recomputable : bool
        Whether Dask can make blocks anew that a dead worker took along.
    unobserved : float
        The weight α of what isn't observed.
    remote : bool
        Whether the blocks are on the workers of a cluster.
    gpu : bool
        Whether they are in the memory of GPUs.
    together : (bool, bool)
        Whether a task that moves a strip of W, or of H, shall work on all of its
        blocks.
    there : bool
        Whether X was there before: then the factors shall be, too.
    leaves : dict
        The blocks and the counts of each strip, by their keys.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    kind: str
    grid: Grid
    totals: Totals
    token: str
    recomputable: bool
    unobserved: float
    remote: bool
    gpu: bool
    together: tuple[bool, bool]
    there: bool
    leaves: dict[Key, Leaf] = field(repr=False)

    def block(self, axis: int) -> Place:
        """Return where the block (strip, block of the strip) of an axis is."""
        return Place(partial(block_key, self.token, axis), ("block",))

    @property
    def kernels(self) -> ModuleType:
        """The kernels for the kind of blocks."""
        return kernels_for(self.kind, self.gpu)

    def held_out(self) -> Place:
        """Return where the held-out entries of a block are; strips are those of W."""
        return Place(partial(block_key, self.token, 0), ("held_out",))

    @property
    def masked(self) -> bool:
        """False if every entry counts with weight 1: as observed, or as a zero.

        Then Gram matrices stand for residuals; but where the level of X is so far above
        its spread that ½ Σ X² would drown them, residuals are formed all the same.
        """
        epsilon = float(np.finfo(self.dtype).eps)
        lost = epsilon * self.totals.mean_square > DROWNED * self.totals.deviation**2
        return self.totals.masked > 0 or (lost and self.kind == "dense")

    @property
    def noise(self) -> float:
        """The root mean square of residuals that are nothing but rounding of X."""
        epsilon = float(np.finfo(self.dtype).eps)
        share = 10 * epsilon if self.masked else epsilon**0.5
        return share * math.sqrt(self.totals.mean_square)

    @property
    def gram_weight(self) -> float:
        """The weight with which Gram matrices of the factors enter the loss.

        Dense blocks hold their unobserved zeros themselves.
        """
        if not self.masked:
            return 1.0
        return self.unobserved if self.kind == "sparse" else 0.0

    @property
    def constant(self) -> float:
        """What the loss of the kernels lacks: ½ Σ X² where nothing is masked."""
        return 0.0 if self.masked else 0.5 * self.totals.sum_of_squares

    def shared(self, runner: Runner) -> Data:
        """Return the data with their blocks dealt to new workers too."""
        places = self.grid.places()
        blocks = runner.share(
            [self.leaves[block_key(self.token, 0, *place)] for place in places]
        )
        if blocks is None:
            return self
        # By names of their own: tasks go by them to where the blocks were.
        token = uuid.uuid4().hex[:8]
        leaves = {
            (str(name).replace(self.token, token), *rest): leaf
            for (name, *rest), leaf in self.leaves.items()
        }
        keys = [block_key(token, 0, *place) for place in places]
        return replace(
            self, token=token, leaves=leaves | dict(zip(keys, blocks, strict=True))
        )

    def counts(self, axis: int) -> Place:
        """Return where the numbers of observed entries of a strip's rows are."""
        return Place(partial(counts_key, self.token, axis))


def block_key(token: str, axis: int, strip: int, other: int) -> Key:
    """Return the key of a block, by its strip along an axis and its place in that."""
    i, j = (other, strip) if axis else (strip, other)
    return (f"block-{token}", i, j)


def counts_key(token: str, axis: int, strip: int, other: int) -> Key:
    """Return the key of the numbers of observed entries of a strip's rows."""
    return (f"counts-{'WH'[axis]}-{token}", strip)
