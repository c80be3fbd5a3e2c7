"""The page of architectures has all of them."""

from pathlib import Path

import pytest

from monosem.sae import SAE

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@pytest.mark.parametrize("name", sorted(SAE.registry))
def test_every_architecture_has_its_row_its_section_and_its_parameters_there(name: str) -> None:
    text = PAGE.read_text()
    assert f"| `{name}` | `{SAE.registry[name].__name__}` |" in text
    assert any(line.startswith("## ") and name in line[3:].split(", ") for line in text.splitlines())
    assert [parameter for parameter in SAE.registry[name].parameters_of() if f"`{parameter}" not in text] == []
