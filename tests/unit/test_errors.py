"""The tree of errors: what is drawn is what is there."""

from __future__ import annotations

import re

import pytest

from lisiere import errors
from lisiere.errors import ConfigError, LisiereError, Permanent, Rejected, Retryable


def drawn() -> dict[str, str]:
    """Class -> parent, as the docstring draws them."""
    parents: dict[str, str] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│ ├└─]*)([A-Z]\w+)\b", line)
        if found:
            depth = len(found[1]) // 4
            branch[depth:] = [found[2]]
            if depth:
                parents[found[2]] = branch[depth - 1]
    return parents


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    there = {kind.__name__: kind.__bases__[0].__name__ for kind in classes if kind is not LisiereError}
    assert drawn() == there
    assert len(there) == 4
    assert LisiereError.__bases__ == (Exception,)


@pytest.mark.parametrize("kind", [Rejected, Retryable, Permanent])
def test_kinds_exclude_each_other(kind: type[LisiereError]) -> None:
    others = {ConfigError, Rejected, Retryable, Permanent} - {kind}
    assert not any(issubclass(kind, other) for other in others)


def test_a_configuration_error_carries_its_path_and_says_it() -> None:
    error = ConfigError("There is no model.", "$.pipelines[0].model")
    assert error.path == "$.pipelines[0].model"
    assert "There is no model." in str(error)
    assert "$.pipelines[0].model" in str(error)
    assert str(ConfigError("Nothing fits.")) == "Nothing fits."


def test_every_error_says_in_its_docstring_what_to_do() -> None:
    assert all((kind.__doc__ or "").endswith(".") for kind in (ConfigError, Rejected, Retryable, Permanent))
