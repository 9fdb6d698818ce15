"""The Wilson score interval: what an accuracy from n questions says about the accuracy behind it."""

from math import sqrt


def wilson(correct: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Lower and upper bound of a proportion, ``correct`` successes in ``n`` trials, at ``z`` standard errors (1.96: 95%).

    Unlike mean +- z standard errors it stays inside [0, 1] and has a width at 0 and at n successes, where the other has none.

    Raises:
        ValueError: without trials there is no interval, and more successes than trials is a counting fault.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"wilson needs 0 <= correct <= n and n > 0, got correct={correct}, n={n}")
    share = correct / n
    shrink = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else centre - half), (1.0 if correct == n else centre + half)
