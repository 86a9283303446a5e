"""The house rules that a machine can check."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stellarfit

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    p for name in ("emulators", "scaling", "stellarfit") for p in (ROOT / name).rglob("*.py")
)
OBSERVERS = ("arviz", "astropy", "blackjax", "matplotlib", "numpyro", "specutils", "typer")


def test_training_needs_no_observers_libraries():
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({OBSERVERS!r}))\n"
        "import emulators.emulator, emulators.grid, emulators.grid_import, emulators.train\n"
        "import emulators.physics.synthesizer, scaling"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_importing_stellarfit_is_light_and_names_its_surface():
    script = (
        "import sys, stellarfit; assert not {'jax', 'astropy'} & set(sys.modules); "
        "[getattr(stellarfit, name) for name in stellarfit.__all__]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert set(stellarfit.__all__) == set(stellarfit._HOMES)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = stellarfit.nonsense


def test_versions_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert stellarfit.__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sources(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says what it is for"
    assert text.count("\n") <= 450, "a file is readable in one sitting"
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {"pickle", "beartype"} & imported
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    for node in tree.body:
        # What a script's main does, the file's docstring says.
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "main":
            private = node.name.startswith("_")
            assert private or ast.get_docstring(node), f"{node.name} has no docstring"


def test_documents_name_files_that_exist():
    for document in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        text = (ROOT / document).read_text()
        for name in re.findall(
            r"`((?:emulators|stellarfit|scaling|examples|docs|tests|benchmarks)/[\w./-]+)`", text
        ):
            assert (ROOT / name).exists(), f"{document} names {name}"
        for name in re.findall(r"\]\((?!http)([\w./-]+)", text):
            assert (ROOT / name).exists(), f"{document} links {name}"


def test_command_lines_in_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    from stellarfit.cli import app

    verbs = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback} | {
        "grid"
    }
    blocks = "".join(re.findall(r"^```$(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    used = set(re.findall(r"^stellarfit (\w+)", blocks, re.MULTILINE))
    assert used and used <= verbs
