"""chrF (Popovic, 2015), the character n-gram F-score of two texts, from 0 to 1.

    chrF = (1 + beta^2) P R / (beta^2 P + R),   beta = 2

For each n from 1 to 6, precision is the share of the hypothesis's n-grams that also occur in the reference (with
multiplicity), recall the share of the reference's n-grams that occur in the hypothesis. P and R are their means over
the n for which both texts are long enough. White space is removed first, as by default in sacreBLEU, so a program that
is only reindented counts as unchanged.
"""

from __future__ import annotations

from collections import Counter

ORDER, BETA = 6, 2.0


def chrf(hypothesis: str, reference: str) -> float:
    """The score of a text against a reference; 1 if both are empty."""
    hypothesis_text, reference_text = "".join(hypothesis.split()), "".join(reference.split())
    if hypothesis_text == reference_text:
        return 1.0
    precisions, recalls = [], []
    for n in range(1, ORDER + 1):
        a, b = _grams(hypothesis_text, n), _grams(reference_text, n)
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
