"""Errors of a component's own file are told with their cause, in one line."""

import sys
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate

from quantlab.cli.errors import compact_errors


@pytest.mark.parametrize(
    "code, message",
    [
        ("import nothing_here", "No module named 'nothing_here' ({file}, line 1)"),
        ("\nfrom json import nothing", "cannot import name 'nothing' from 'json' "),
        ("def f(:", "invalid syntax ({file}, line 1)"),
        ("1 / 0", "division by zero ({file}, line 1)"),
        ("other = 1", "{file} has no Mine"),
        (None, "No module named 'component'; is the folder that holds it on PYTHONPATH?"),
    ],
)
def test_what_cannot_be_imported(
    code: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "component.py"
    if code is not None:
        file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "component", raising=False)
    with pytest.raises(CompactHydraException) as caught, compact_errors():
        instantiate({"method": {"_target_": "component.Mine"}})
    said = str(caught.value)
    assert said.startswith("method: component.Mine cannot be imported: ") and "\n" not in said
    assert message.format(file=file) in said


def test_a_component_that_refuses_its_settings_says_so_itself() -> None:
    with pytest.raises(InstantiationException, match="bits must be a whole number"), compact_errors():
        instantiate({"_target_": "quantlab.quant.grid.AffineGrid", "bits": 1, "symmetric": True})
