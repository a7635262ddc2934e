"""k-reciprocal re-ranking as docs/method.md states it, dense and in float64; and random cases for it.

Ties are decided by index. The distances are those that csrc/rerank.hpp defines, in float32 from given inner products,
so that the same neighbours are found wherever the products come from.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ZERO_BELOW = np.float32(2.0**-20)


@dataclass(frozen=True)
class Setting:
    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3
    squared: bool = False

    @property
    def near(self) -> int:
        return self.k1 + 1

    @property
    def half(self) -> int:
        return round(self.k1 / 2) + 1  # Python rounds half to even


def distances(products: np.ndarray, norms: np.ndarray, row: int = 0, column: int = 0) -> np.ndarray:
    """Squared distances of a block of products whose corner is at (row, column), float32."""
    own = np.arange(row, row + len(products))[:, None]
    other = np.arange(column, column + products.shape[1])
    sums = norms[own] + norms[other]
    d = sums - np.float32(2) * products
    return np.where((d <= ZERO_BELOW * sums) | (own == other), np.float32(0), d)


def symmetric_products(features: np.ndarray) -> np.ndarray:
    """Inner products [N, N] of which both halves have the same bits."""
    products = features @ features.T
    return np.triu(products) + np.triu(products, 1).T


def weights(products: np.ndarray, setting: Setting) -> np.ndarray:
    """V [N, N] before the k2 expansion."""
    n = len(products)
    squared = distances(products, products.diagonal())
    order = np.argsort(squared, axis=1, kind="stable")
    scaled = _scaled(squared, setting)
    v = np.zeros((n, n))
    half = [_reciprocal(order, i, setting.half) for i in range(n)]
    for i in range(n):
        reciprocal = _reciprocal(order, i, setting.near)
        members = set(reciprocal)
        for candidate in reciprocal:
            if 3 * len(half[candidate] & reciprocal) > 2 * len(half[candidate]):
                members |= half[candidate]
        chosen = sorted(members)
        v[i, chosen] = np.exp(-scaled[i, chosen])
        v[i] /= (
            v[i].sum() if chosen else 1
        )  # among many duplicates an image can be far from its own nearest, and have none
    return v


def dense(products: np.ndarray, queries: int, setting: Setting) -> np.ndarray:
    """The final distances [Q, G] of inner products [N, N], the queries first."""
    squared = distances(products, products.diagonal())
    v = weights(products, setting)
    if setting.k2 > 1:
        order = np.argsort(squared, axis=1, kind="stable")
        v = v[order[:, : setting.k2]].mean(axis=1)
    common = np.stack([np.minimum(v[q], v[queries:]).sum(axis=1) for q in range(queries)])
    jaccard = 1 - common / (2 - common)
    return (1 - setting.lambda_) * jaccard + setting.lambda_ * _scaled(squared, setting)[:queries, queries:]


def _scaled(squared: np.ndarray, setting: Setting) -> np.ndarray:
    farthest = squared.max(axis=1, keepdims=True).astype(np.float64)
    scaled = np.divide(squared, farthest, out=np.zeros(squared.shape), where=farthest > 0)
    return scaled**2 if setting.squared else scaled


def _reciprocal(order: np.ndarray, i: int, size: int) -> set[int]:
    return {int(j) for j in order[i, :size] if i in order[j, :size]}


class Case(NamedTuple):
    features: np.ndarray
    products: np.ndarray
    queries: int
    setting: Setting
    block: tuple[int, int]
    rows: int


def random_case(seed: int) -> Case:
    """A small problem of odd sizes: clustered features with duplicates and, on every third seed, a grid full of
    ties."""
    r = np.random.default_rng(seed)
    n = int(r.integers(2, 90))
    dims = int(r.integers(1, 40))
    identities = int(r.integers(1, 1 + n // 4)) if n >= 4 else 1
    features = r.standard_normal((identities, dims))[r.integers(0, identities, n)] + 0.3 * r.standard_normal((n, dims))
    if seed % 3 == 2:
        features = np.round(features)  # products are exact, so equal distances are equal
    copies = r.integers(0, n, n // 8)
    features[r.integers(0, n, len(copies))] = features[copies]
    features = features.astype(np.float32)
    k1 = int(r.integers(1, min(n, 45)))
    setting = Setting(k1, int(r.integers(1, min(k1 + 1, 12) + 1)), float(r.uniform(0, 1)), bool(r.integers(2)))
    block = (int(r.integers(1, 90)), int(r.integers(1, 300)))
    return Case(
        features, symmetric_products(features), int(r.integers(1, n)), setting, block, int(r.integers(1, n + 1))
    )
