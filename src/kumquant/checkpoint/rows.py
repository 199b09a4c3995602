"""Rows of one width out of a matrix of another: a conversion may ask for a weight as single values, too."""

from __future__ import annotations

import numpy as np

from .. import _native


def covering_rows(width: int, begin: int, end: int, columns: int) -> tuple[int, int]:
    """The rows of a matrix of ``columns`` columns that hold rows [begin, end) of the same values ``width`` wide."""
    return begin * width // columns, -(-end * width // columns)


def cut(values: np.ndarray, first: int, width: int, begin: int, end: int) -> np.ndarray:
    """Rows [begin, end) of ``width`` columns out of ``values``, which start at row ``first`` of the matrix."""
    start = first * values.shape[1]
    return values.reshape(-1)[begin * width - start : end * width - start].reshape(-1, width)


def columns_as_rows(matrix: np.ndarray, begin: int, end: int) -> np.ndarray:
    """Columns [begin, end) of ``matrix`` (rows, columns) as a C-contiguous (end - begin, rows), of the same dtype."""
    if not matrix.flags.c_contiguous or matrix.itemsize not in (2, 4):
        return np.ascontiguousarray(matrix[:, begin:end].T)
    result = np.empty((end - begin, len(matrix)), matrix.dtype)
    rows, columns = matrix.shape
    _native.transpose_columns(matrix.reshape(-1).view(np.uint8), rows, columns, begin, end, matrix.itemsize,
                              result.reshape(-1).view(np.uint8))
    return result
