"""What a newcomer meets first: the import, the files at the top, and that they agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from factories import ROOT

import nlora_lab as nl

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "transformers", "datasets", "peft", "plotly", "ipywidgets", "pandas", "matplotlib")


def imported_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    code = "import nlora_lab as nl; nl.InputError; nl.core.InputError; dir(nl)"
    assert not imported_by(code) & set(HEAVY)


def test_nothing_below_plots_imports_plotly_or_widgets_and_the_algebra_no_transformers():
    below = "import nlora_lab.training.loop, nlora_lab.runs.run, nlora_lab.adapters"
    assert not imported_by(below) & {"plotly", "ipywidgets", "matplotlib"}
    assert not imported_by("import nlora_lab as nl; nl.nystrom") & {"transformers", "peft", "plotly"}


@pytest.mark.parametrize("lab", ["nl.FineTuneLab()", "nl.NystromLab()"])
def test_a_lab_opens_and_its_sliders_move_without_what_takes_a_second_to_import(lab):
    code = f"import nlora_lab as nl; lab = {lab}; lab._repr_mimebundle_(); lab.rank.value = 16"
    assert not imported_by(code) & {"torch", "transformers", "matplotlib", "plotly", "pandas"}


PACKAGES = sorted(path.parent.name for path in (ROOT / "nlora_lab").glob("*/__init__.py"))


def test_there_are_packages_and_nothing_flat():
    assert len(PACKAGES) == 19
    assert {path.name for path in (ROOT / "nlora_lab").iterdir() if path.is_file()} == {
        "__init__.py", "__init__.pyi", "__main__.py", "py.typed",
    }  # fmt: skip


def test_the_top_level_can_be_held_in_the_head():
    names = set(nl.__all__) - set(PACKAGES)
    assert 35 <= len(names) <= 45
    assert names >= {"fine_tune", "race", "Run", "RunConfig", "FineTuneLab", "load_model", "load_task", "recorded_runs"}
    assert set(nl.__all__) & set(PACKAGES) == set(PACKAGES) - {"cli"}
    for name in nl.__all__:
        assert getattr(nl, name).__doc__, name
    assert set(nl.__all__) <= set(dir(nl))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = nl.nothing_like_it


def test_no_module_is_called_like_a_name_that_its_package_exports():
    """Or the name would turn from a function into a module once that is imported."""
    seen = 0
    for package in ["", *PACKAGES]:
        stub = ROOT / "nlora_lab" / package / "__init__.pyi"
        if not stub.is_file():
            continue
        modules = {path.stem for path in stub.parent.glob("*.py")}
        exported = set(re.findall(r" import (\w+) as \1", stub.read_text())) - (set(PACKAGES) if not package else set())
        assert not modules & exported, package
        seen += len(exported)
    assert seen >= 130


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert nl.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {nl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, extra = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    assert extra == {"pip": ["-c constraints.txt", "-e .[lab]"]}
    assert environment["name"] == PROJECT["name"]
    assert "lab" in PROJECT["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=!~;]", r)[0].lower() for r in requirements} - {PROJECT["name"]}


def test_constraints_pin_every_dependency_and_the_base_has_no_caps():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text().lower(), flags=re.M))
    asked = names(PROJECT["dependencies"]) | names([r for g in PROJECT["optional-dependencies"].values() for r in g])
    assert len(asked) >= 20
    assert {n.replace("_", "-") for n in asked} <= {n.replace("_", "-") for n in pinned}
    assert not any("<" in r or "==" in r for r in PROJECT["dependencies"])
    assert "jupyterlab" not in names(PROJECT["dependencies"])


def test_every_library_the_package_imports_is_a_dependency():
    imported = set()
    for path in (ROOT / "nlora_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"nlora_lab"}
    assert len(foreign) >= 8
    # these come with transformers, ipywidgets and datasets, which could not be without them
    brought = {"tokenizers", "huggingface_hub", "traitlets", "pyarrow"}
    otherwise_called = {"PIL": "pillow", "sklearn": "scikit-learn"}
    asked_for = {otherwise_called.get(name, name) for name in foreign - brought}
    cluster = names(PROJECT["optional-dependencies"]["cluster"]) | {"dask", "dask_jobqueue"}  # dask comes with them
    assert asked_for - {"vllm"} - cluster <= names(PROJECT["dependencies"])  # vllm: used where it is installed


def test_the_address_of_the_project_is_the_same_everywhere():
    home = PROJECT["urls"]["Homepage"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["repository-code"] == home
    mentioned = set()
    places = [ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert len(places) >= 2
    for place in places:
        mentioned |= set(re.findall(r"github(?:\.com)?/([\w-]+/nlora-lab)", place.read_text()))
    assert mentioned == {home.removeprefix("https://github.com/")}


def test_the_readme_names_what_exists():
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", readme):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    used = set(re.findall(r"`?make ([a-z]+)", readme))
    assert {"lab", "test"} <= used <= targets


SOURCES = sorted((ROOT / "nlora_lab").rglob("*.py"))
LONG_FUNCTIONS: set[str] = set()
"""Functions of more than 60 lines. Each says in a comment why it is that long."""


def test_no_module_grows_too_long_to_read_in_one_sitting():
    assert len(SOURCES) >= 150
    assert {p.name: n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400} == {}


def test_no_package_has_more_than_a_dozen_modules():
    for package in PACKAGES:
        modules = [p for p in (ROOT / "nlora_lab" / package).glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= 12, package


def test_no_function_grows_too_long():
    long = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                doc = ast.get_docstring(node, clean=False) or ""
                lines = node.end_lineno - node.lineno + 1 - len(doc.splitlines())
                if lines > 60:
                    long.add(f"{path.parent.name}/{path.stem}.{node.name}")
    assert long == LONG_FUNCTIONS


HARD_TO_READ = "|".join(("is" + r" no [a-z]", "of so" + " many", "first so" + " many", "that is held" + " off"))


def test_texts_are_in_plain_english():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    texts = [f for f in listed if f.endswith((".py", ".pyi", ".md", ".ipynb", ".toml", ".yml", ".cff", "Makefile"))]
    assert len(texts) >= 250
    hits = {f for f in texts if (ROOT / f).is_file() and re.search(HARD_TO_READ, (ROOT / f).read_text())}
    assert hits == set()
