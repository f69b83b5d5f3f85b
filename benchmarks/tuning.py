"""Learning rates from results on dev: a small grid for every method, which grows while the best rate is at its edge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from covrl.comparison.cells import Budget, Cell, Exam, Result, found


@dataclass(frozen=True, slots=True)
class Tuning:
    """How rates are chosen: by the mean of avg@n over ``seeds``, among ``rates`` and those that are added to the grid.

    The grid grows by a factor of two while the best is at an edge, between ``least`` and ``most``.
    """

    seeds: tuple[int, ...]
    budget: Budget
    exam: Exam
    rates: tuple[float, ...]
    least: float
    most: float

    def score(self, method: str, setting: str, rate: float, known: Sequence[Result]) -> float | None:
        """Mean avg@n over the seeds; None until all seeds have a result."""
        cells = [Cell(method, setting, rate, seed, self.budget, self.exam) for seed in self.seeds]
        have = found(cells, known)
        return fmean(have[cell].figures["exam"]["avg@n"] for cell in cells) if len(have) == len(cells) else None

    def tried(self, method: str, setting: str, known: Sequence[Result]) -> list[float]:
        """The rates to run, given the results: the grid, then one beyond the edge if the best so far is there."""
        rates = sorted(self.rates)
        while True:
            scores = {rate: self.score(method, setting, rate, known) for rate in rates}
            counted = {rate: value for rate, value in scores.items() if value is not None}
            if len(counted) < len(rates):
                return rates
            best = max(rates, key=lambda rate: counted[rate])
            if best == rates[0] and best / 2 >= self.least:
                rates.insert(0, best / 2)
            elif best == rates[-1] and best * 2 <= self.most:
                rates.append(best * 2)
            else:
                return rates

    def best(self, method: str, setting: str, known: Sequence[Result]) -> float | None:
        """The tuned rate; None while a result is missing."""
        scores = {r: self.score(method, setting, r, known) for r in self.tried(method, setting, known)}
        counted = {rate: value for rate, value in scores.items() if value is not None}
        return max(counted, key=lambda rate: counted[rate]) if len(counted) == len(scores) else None
