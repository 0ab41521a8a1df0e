"""Says what would decide an undecided claim or grade: more seeds, more test groups, more targets, or none of these.

Estimates are taken to stay where they are while their limits close in on them. A claim is asked by its own rule, at the
limits to expect of each number of seeds, groups or targets in turn. What another doubling of the steps may bring stays
as it is, however many seeds there are, and so does the confidence level: a study with declared looks is asked at the
level of its last one, and between two looks not at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from scipy import special

from jaxseg.analysis.folds import expected_half_width_over_folds, t_quantile
from jaxseg.analysis.statistics import MIN_SEEDS
from jaxseg.study.claims.findings import LONGER, SENSITIVITY, UNDECIDED, Measured, Quantity, count_of_seeds, decides
from jaxseg.study.claims.rules import MIN_TARGETS

MAX_SEEDS, MAX_GROUPS = 128, 1024
"""Numbers of seeds and test groups beyond which a study is unrealistic."""
MAX_TARGETS = 64
"""Number of targets beyond which verdicts over targets are unrealistic."""
_BOUNDLESS = 1e12
"""As many times the seeds as leave limits no width."""

Design = tuple[str, tuple[Quantity, ...]]
"""A larger study, or more targets, in words, with the quantities as they are to be expected there."""

# --------------------------------------------------------------------------------------------- limits of a larger study


def _has_limits(found: Quantity) -> bool:
    undefined = math.isnan(found.low) or math.isnan(found.high)
    return not undefined and (not found.log or min(found.value, found.low) > 0)


def _half_width(found: Quantity) -> float:
    if found.log:
        return (math.log(found.high) - math.log(found.low)) / 2
    return (found.high - found.low) / 2


def _shrunk(found: Quantity, factor: float) -> Quantity:
    """A quantity whose limits are this many times as far from its value, on the scale on which they were computed."""
    if not _has_limits(found):
        return found
    low, high = (
        found.value * (limit / found.value) ** factor if found.log else found.value + factor * (limit - found.value)
        for limit in (found.low, found.high)
    )
    return dataclasses.replace(found, low=low, high=high)


def _is_p(found: Quantity) -> bool:
    return found.key.partition(" ")[0] == "p"


def _smaller_p(found: Quantity, times: float) -> Quantity:
    """A one-sided p where its normal score grows with the square root of the seeds; each more seed halves its least."""
    score = special.ndtri(found.value) * math.sqrt(times)
    least = found.least * 0.5 ** (found.n_seeds * (times - 1)) if math.isfinite(found.least) else found.least
    return dataclasses.replace(found, value=max(float(special.ndtr(score)), least), least=least)


def _of_larger_study(found: Quantity, times: float, groups: float = 1.0) -> Quantity:
    """A quantity as it is to be expected of this many times the seeds, and the test groups."""
    n_seeds = round(found.n_seeds * times)
    if _is_p(found):
        return dataclasses.replace(_smaller_p(found, times), n_seeds=n_seeds)
    factor = 1 / math.sqrt(times)
    if found.spread is not None and (now := _half_width(found)) > 0:
        sizes = (max(n_seeds // found.folds, 2), round(found.n_groups * groups) // found.folds, found.folds)
        factor = expected_half_width_over_folds(found.spread, *sizes, confidence=found.confidence) / now
    return dataclasses.replace(_shrunk(found, factor), n_seeds=n_seeds)


def _over_more_targets(found: Quantity, more: int) -> Quantity:
    """A mean or slope over targets as it is to be expected of this many more.

    Its error falls with the square root of the number of targets, and its degrees of freedom grow with them.
    """
    if math.isnan(found.df):
        return found
    df = found.df + more
    narrower = t_quantile(df, found.confidence) / t_quantile(found.df, found.confidence)
    # A mean has one degree of freedom fewer than targets; counting a slope's so errs by a target.
    return _shrunk(found, narrower * math.sqrt((found.df + 1) / (df + 1)))


# ------------------------------------------------------------------------------------------------------------- designs


def _larger_studies(quantities: Sequence[Quantity], looks: Sequence[int] = ()) -> Iterator[Design]:
    """More and more seeds, then with twice the seeds more and more test groups, as far as a study is realistic."""
    counted = [q for q in quantities if _has_limits(q) and q.n_seeds]
    if not counted:
        return
    fewest = min([q for q in counted if q.thresholds] or counted, key=lambda q: q.n_seeds)
    n_seeds, folds = fewest.n_seeds, max(q.folds for q in counted)

    def of(seeds: int, groups: float = 1.0) -> tuple[Quantity, ...]:
        return tuple(_of_larger_study(q, seeds / n_seeds, groups) for q in quantities)

    at_looks = [math.ceil(look / fewest.seeds_each) for look in looks if look > n_seeds * fewest.seeds_each]
    beyond = range(max(MIN_SEEDS, n_seeds, *at_looks) + folds, MAX_SEEDS + 1, folds)
    for seeds in (*at_looks, *beyond):
        yield f"about {count_of_seeds(seeds, fewest.seeds_each)}, if the estimate stays", of(seeds)
    twice = count_of_seeds(2 * n_seeds, fewest.seeds_each)
    for limited in [q for q in counted if q.spread is not None][:1]:
        for groups in _more_groups(limited):
            words = f"no number of seeds, the patients limit it: about {groups} test groups with {twice}"
            yield words, of(2 * n_seeds, groups / limited.n_groups)


def _more_groups(found: Quantity) -> Iterator[int]:
    """Numbers of test groups to try, an eighth more each time and the same in each fold."""
    groups = found.n_groups // found.folds
    while groups <= MAX_GROUPS:
        groups += max(groups // 8, 1)
        yield groups * found.folds


def _more_targets(quantities: Sequence[Quantity], asked: Sequence[Quantity]) -> Iterator[Design]:
    """More and more targets; the quantities that are asked about are those that are said to stay."""
    staying = f"{asked[0].name} stays" if len(asked) == 1 else "the means stay"
    for more in range(1, MAX_TARGETS):
        yield f"about {more} more targets, if {staying}", tuple(_over_more_targets(q, more) for q in quantities)


# -------------------------------------------------------------------------------------------------------------- claims


def of_claim(measured: Measured, otherwise: str = "", looks: Sequence[int] = ()) -> str:
    """Returns what would decide a claim that its rule leaves open in one study; empty if no limits are known.

    Args:
        measured: The claim's quantities and rule.
        otherwise: What the rule itself says would decide it.
        looks: The declared looks, as numbers of seeds; none where seeds may be added one by one.
    """
    if (otherwise and otherwise != LONGER) or not any(map(_has_limits, measured.quantities)):
        return otherwise
    number = _by_rule(measured, _larger_studies(measured.quantities, looks))
    # What another doubling may bring forbids a verdict, unless limits leave it enough room.
    both = ", or ".join(filter(None, (otherwise, number)))
    return both or _nothing_decides(measured, "seeds or patients")


def _by_rule(measured: Measured, designs: Iterable[Design]) -> str:
    """The first design at which the rule decides, in words; empty if there is none.

    An absence counts only where the positive control shows the effect. Where it does not, a verdict without it is
    looked for.
    """
    with_control, sensitive = "", measured.sensitive()
    for words, larger in designs:
        at = dataclasses.replace(measured, quantities=larger)
        if decides(at, sensitive=sensitive):
            return words
        if not with_control and not sensitive and decides(at, sensitive=True):
            with_control = f"{words}; and {SENSITIVITY}"
    return with_control


def _nothing_decides(measured: Measured, of: str) -> str:
    """Says why no realistic number decides: by what the rule says of limits without any width."""
    exact = [_smaller_p(q, _BOUNDLESS) if _is_p(q) else _shrunk(q, 0.0) for q in measured.quantities]
    at_once = dataclasses.replace(measured, quantities=tuple(exact))
    if decides(at_once, sensitive=True):
        return _too_near(_nearest(_judged(measured)), of)
    unknown = [q.name for q in measured.quantities if q.thresholds and not _has_limits(q)]
    if unknown:
        lacks = ", ".join(unknown)
        return (
            f"{MIN_TARGETS} targets that know {lacks}" if of == "targets" else f"limits of {lacks}, which are not known"
        )
    ruling = at_once.rule(at_once.by_key(), True)
    still = tuple(dataclasses.replace(q, fall=0.0, rise=0.0) for q in exact)
    longer = LONGER if decides(dataclasses.replace(measured, quantities=still), sensitive=True) else ""
    if also := ruling.needs or longer:
        return f"no number of {of} alone: also {also}"
    why = "" if ruling.supported else ruling.note
    return f"no number of {of}: {why or 'with these estimates the rule decides neither way'}"


def _too_near(found: Quantity, of: str) -> str:
    return f"no realistic number of {of}: {found.name} is too near a limit of the rule"


def _judged(measured: Measured) -> list[Quantity]:
    """The quantities with limits that the reason of a finding names, or else all that have limits."""
    known = [q for q in measured.quantities if _has_limits(q)]
    return [q for q in known if q.key in measured.shown] or known


def _nearest(quantities: Sequence[Quantity]) -> Quantity:
    """The quantity that lies nearest to a number of the rule, beside its limits."""

    def widths(found: Quantity) -> float:
        far = [math.log(found.value / t) if found.log else found.value - t for t in found.thresholds]
        return min(map(abs, far), default=math.inf) / max(_half_width(found), 1e-300)

    return min(quantities, key=widths)


# --------------------------------------------------------------------------------------------------------------- grades


def what_grades(found: Quantity, looks: Sequence[int] = ()) -> str:
    """Says what would give a quantity a grade; empty if its limits are unknown.

    Args:
        found: The quantity, which has a scale.
        looks: As `of_claim` takes them.
    """
    return _by_limits(found, _is_graded, _larger_studies([found], looks), "seeds or patients")


def of_undecided(quantities: tuple[Quantity, ...]) -> str:
    """Returns the needs of the first undecided quantity, where its grade is what is asked."""
    needs = (_by_limits(q, _question(q), _larger_studies([q]), "seeds or patients") for q in _undecided(quantities))
    return next(filter(None, needs), "")


def _by_limits(found: Quantity, question: Callable[[Quantity], bool], designs: Iterable[Design], of: str) -> str:
    """The first design at which a quantity's limits answer a question, in words."""
    if not _has_limits(found):
        return ""
    return next((words for words, (narrower,) in designs if question(narrower)), _too_near(found, of))


def _question(found: Quantity) -> Callable[[Quantity], bool]:
    """What an undecided quantity is asked for: a grade or, if it has one or can have none, to be told from a number."""
    return _is_graded if found.grade == UNDECIDED else lambda narrower: not _holds_a_number(narrower)


def _is_graded(found: Quantity) -> bool:
    return found.grade != UNDECIDED


def _holds_a_number(found: Quantity) -> bool:
    return any(found.low <= t <= found.high for t in found.thresholds)


def _undecided(quantities: Sequence[Quantity]) -> list[Quantity]:
    """Quantities whose limits hold a number of the rule, then those without a grade."""
    return [*filter(_holds_a_number, quantities), *(q for q in quantities if q.grade == UNDECIDED)]


# -------------------------------------------------------------------------------------------------------------- targets


def targets_needed(quantities: tuple[Quantity, ...], measured: Measured | None = None) -> str:
    """Returns how many more targets would decide, if estimates stay.

    Args:
        quantities: Means or slopes over targets.
        measured: The claim with its rule, about these quantities. Without it the first of them that holds a number of
            the rule is asked to be told from it, which is the same where the rule has a single number.
    """
    known = [q for q in quantities if _has_limits(q) and not math.isnan(q.df)]
    if measured is not None and known:
        number = _by_rule(measured, _more_targets(quantities, _judged(measured)))
        return number or _nothing_decides(measured, "targets")
    for found in _undecided(known):
        return _by_limits(found, _question(found), _more_targets([found], [found]), "targets")
    return ""
