"""The names that editors offer are those that there are."""

from typing import Any, get_args

import pytest

from stratrun import ACCELERATORS, LOGGERS, PRECISIONS, STRATEGIES
from stratrun.engine.non_finite import POLICIES
from stratrun.registry import Registry
from stratrun.registry.offers import offers_of
from stratrun.runner import names


def known(registry: Registry) -> set[str]:
    """Of each entry of ours the name that the others abbreviate, or write as a class."""
    ours = [offer for offer in offers_of(registry) if offer.provider == "stratrun"]
    return {max(offer.names, key=len) if registry is PRECISIONS else offer.names[0] for offer in ours}


@pytest.mark.parametrize(
    ("literal", "registry"),
    [
        (names.AcceleratorName, ACCELERATORS),
        (names.StrategyName, STRATEGIES),
        (names.PrecisionName, PRECISIONS),
        (names.LoggerName, LOGGERS),
    ],
)
def test_every_name_that_editors_offer_is_one_and_none_is_left_out(literal: Any, registry: Registry) -> None:
    assert set(get_args(literal)) - {"auto"} == known(registry)


def test_every_policy_that_an_editor_offers_is_taken_and_no_other() -> None:
    assert set(get_args(names.NonFinitePolicy)) == set(POLICIES)
