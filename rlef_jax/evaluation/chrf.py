"""chrF (Popovic, 2015), the character n-gram F-score: how much two texts have in common, from 0 to 1.

    chrF = (1 + beta^2) P R / (beta^2 P + R),   beta = 2

For each n from 1 to 6, precision is the share of the hypothesis's n-grams that the reference has too (each as often as
it stands there), recall the share of the reference's; P and R are their means over the n for which both texts are long
enough. White space is left out first, as sacreBLEU's default does: a program that was only indented anew is the same.
"""

from __future__ import annotations

from collections import Counter

ORDER, BETA = 6, 2.0


def chrf(hypothesis: str, reference: str) -> float:
    """The score of one text against another; 1 for two without a character in them."""
    ours, theirs = "".join(hypothesis.split()), "".join(reference.split())
    if ours == theirs:
        return 1.0
    precisions, recalls = [], []
    for n in range(1, ORDER + 1):
        a, b = _grams(ours, n), _grams(theirs, n)
        if not a or not b:
            continue
        common = (a & b).total()
        precisions.append(common / a.total())
        recalls.append(common / b.total())
    if not precisions:
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + BETA**2) * p * r / (BETA**2 * p + r) if p + r else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
