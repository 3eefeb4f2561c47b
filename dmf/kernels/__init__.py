"""Pure functions on blocks: no Dask, no global state, no input is ever changed.

Arrays that they return are their caller's own: partial sums are added in place.

`dense`, `sparse` and `cuda` define the same functions under the same names:

===========  ======================================================================
name         what it gives for one block
===========  ======================================================================
`gradient`   the gradient of the data term for the moving factor, and the loss
`curvature`  the second derivatives of the loss in the plane of one or two moves
`product`    X times the fixed factor: all of X that matters where nothing is masked
`gram`       the matrices of the normal equations, one for each moving row
`errors`     squared and absolute errors of the approximation
`residuals`  X − W H of the observed entries, with their weights
===========  ======================================================================

What needs `residuals` doesn't run on GPUs, so that `cuda` lacks them. All also offer
`directions`, `advance` and `descend_coordinates`, which work on strips of the moving
factor: what happens to them between the passes over the blocks.

Both halves of a round are one computation on X and on its transpose. So a kernel
speaks of the *moving* factor, the one that a half-step updates, and of the *fixed*
one. ``axis=0`` moves W (one row for each row of the block), ``axis=1`` moves H (one
row for each column of the block: inside dmf, H is kept transposed, so that a strip of
either factor is an array of shape (length, K, rank), K being the number of candidates
that are fitted together).
"""

from __future__ import annotations

from types import ModuleType


def kernels_for(kind: str, gpu: bool = False) -> ModuleType:
    """Return the kernels for blocks of a kind, ``"dense"`` or ``"sparse"``.

    Those on dense blocks work wherever the block is; sparse blocks have others on a
    GPU. The choice is made once a fit. Whatever is compiled is imported when it is
    first used, because Numba takes longer to import than all the rest.
    """
    if kind == "sparse" and gpu:
        from dmf.kernels import cuda

        return cuda
    if kind == "sparse":
        from dmf.kernels import sparse

        return sparse
    from dmf.kernels import dense

    return dense
