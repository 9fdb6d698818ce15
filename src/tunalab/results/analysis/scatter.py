"""How far runs scatter from seed to seed, estimated from all cells of a comparison together.

The two seeds of one pair of variants hardly show it: Student's t of one degree of freedom takes 12.7 standard errors, and a
bootstrap of two values, which takes fewer, finds leads where there are none. So cells that are compared, trained on the same seeds,
are taken to scatter alike, as in any analysis of variance, and their residuals estimate it together.

    C  cells (variants, or arms of a sweep)    S  seeds    I  items (questions)    R  resamples
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Scatter:
    """``deviation``: the standard deviation of one run's value that neither its cell nor its seed explains; ``freedom``: degrees
    of freedom of that estimate.
    """

    deviation: float
    freedom: int

    def half_width(self, seeds: int, squares: float = 1.0) -> float:
        """Of the 95% interval of sum_c w_c mean_c over ``seeds``; ``squares``: sum_c w_c^2, 2 for a difference of two cells."""
        return float(stdtrit(self.freedom, 0.975)) * self.error(seeds, squares)

    def draws(self, resamples: int, seeds: int, squares: float, generator: np.random.Generator) -> np.ndarray:
        """As many errors of such a sum, (R,): Student's t at equal steps of probability, in random order."""
        probability_R = (np.arange(resamples) + 0.5) / resamples
        quantile_R: np.ndarray = stdtrit(self.freedom, generator.permutation(probability_R))
        return self.error(seeds, squares) * quantile_R

    def error(self, seeds: int, squares: float) -> float:
        return self.deviation * float(np.sqrt(squares / seeds))


def scatter_of_contrasts(value_CS: np.ndarray) -> Scatter | None:
    """For differences of cells paired by seed: what a seed does to all cells alike cancels. Freedom (C - 1)(S - 1).

    None of one seed, or of one cell.
    """
    freedom = (value_CS.shape[0] - 1) * (value_CS.shape[1] - 1)
    if freedom < 1:
        return None
    cells, seeds = value_CS.mean(axis=1, keepdims=True), value_CS.mean(axis=0, keepdims=True)
    residual_CS = value_CS - cells - seeds + value_CS.mean()
    return Scatter(float(np.sqrt((residual_CS**2).sum() / freedom)), freedom)


def scatter_of_means(value_CS: list[np.ndarray]) -> Scatter | None:
    """For the means of cells by themselves, each of its own number of seeds. Freedom sum_c (S_c - 1).

    None where every cell has one seed.
    """
    freedom = sum(len(value_S) - 1 for value_S in value_CS)
    if freedom < 1:
        return None
    squares = sum(float(((value_S - value_S.mean()) ** 2).sum()) for value_S in value_CS)
    return Scatter(float(np.sqrt(squares / freedom)), freedom)
