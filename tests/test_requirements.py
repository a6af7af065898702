"""What the package asks of an environment, and the one that it is tested in."""

import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
APART = "benchmark-betty"
"""An extra that no recent pip can install, and no environment has."""


def requirements() -> Iterator[Requirement]:
    """All that are asked for, in any extra that can be installed."""
    for text in [*PROJECT["dependencies"], *(each for extra in EXTRAS if extra != APART for each in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement


def constraints() -> dict[str, str]:
    """The pinned versions, by name."""
    lines = (ROOT / "clusters" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {_plain(name): pinned for name, pinned in pins}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_each_requirement_admits_the_version_that_is_pinned(requirement):
    assert requirement.specifier.contains(constraints()[_plain(requirement.name)])


@pytest.mark.parametrize("text", PROJECT["dependencies"])
def test_the_package_asks_for_ranges(text):
    # An exact pin would keep it out of every environment that has another version.
    (least,) = [each for each in Requirement(text).specifier if each.operator == ">="]
    assert all(each.operator in (">=", "<") for each in Requirement(text).specifier)
    assert Version(version(Requirement(text).name)) >= Version(least.version)


def test_no_pin_is_of_one_platform_alone():
    assert not [pinned for pinned in constraints().values() if "+" in pinned]
