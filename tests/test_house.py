"""The shape of the house: imports go one way, the wheel claims one name, nothing names this machine."""

import ast
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Later may import earlier, never the other way round.
ORDER = {"data": 0, "units": 1, "vocoder": 2, "speechgpt": 3}
FORBIDDEN = ("/root/", "/home/", "/work/")  # paths of the machine that a file was written on


def sources() -> list[Path]:
    return [path for folder in ORDER for path in sorted((ROOT / folder).rglob("*.py"))]


def imported(path: Path) -> list[str]:
    """Full names of the modules that a source file imports anywhere in it."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def owner(module: str) -> str | None:
    """The folder that owns `speechgpt...`; None for other packages."""
    parts = module.split(".")
    if parts[0] != "speechgpt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ORDER else "speechgpt"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    here = ORDER[path.relative_to(ROOT).parts[0]]
    for module in imported(path):
        assert not module.startswith("."), f"{path}: relative import"
        found = owner(module)
        assert found is None or ORDER[found] <= here, f"{path}: imports {module}"


def test_folders_are_never_imported_by_their_bare_names():
    """From the root a bare `import units` would load a second copy of every module."""
    for path in [*sources(), *sorted((ROOT / "tests").rglob("*.py"))]:
        for module in imported(path):
            assert module.split(".")[0] not in ("data", "units", "vocoder"), f"{path}: imports {module}"


def run_python(code: str) -> str:
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_data_imports_no_torch():
    modules = [
        f"speechgpt.data.{p.stem}" for p in sorted((ROOT / "data").glob("*.py")) if p.stem != "__init__"
    ]
    code = f"""
import importlib, sys
for name in ["speechgpt.data", *{modules!r}]:
    importlib.import_module(name)
print([m for m in ("torch", "transformers", "sklearn") if m in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_the_command_table_and_its_help_import_nothing_heavy():
    code = """
import sys
from speechgpt.cli import main
main(["--help"])
print([m for m in ("torch", "transformers", "numpy", "soundfile") if m in sys.modules])
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_finding_a_model_and_reading_a_file_import_no_torch():
    code = """
import sys
import speechgpt.commands, speechgpt.model_dir, speechgpt.data.audio
print([m for m in ("torch", "transformers") if m in sys.modules])
"""
    assert run_python(code).splitlines()[-1] == "[]"


def test_no_file_names_the_machine_that_it_was_written_on():
    files = [path for path in (ROOT / "tests").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in [*sources(), *sorted(files)]:
        if path != Path(__file__):
            content = path.read_bytes()
            assert not [name for name in FORBIDDEN if name.encode() in content], path


def test_modules_with_vague_names_do_not_exist():
    vague = {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"}
    assert not [path for path in sources() if path.name in vague]


def test_every_command_of_the_table_exists():
    from speechgpt.cli import COMMANDS

    for commands in COMMANDS.values():
        for name, (target, line) in commands.items():
            module, function = target.split(":")
            folder, stem = (
                module.split(".")[1:] if module.count(".") == 2 else ["speechgpt", module.split(".")[1]]
            )
            source = ROOT / folder / f"{stem}.py"
            assert source.exists(), f"{name}: {source}"
            defined = {
                n.name for n in ast.parse(source.read_text("utf-8")).body if isinstance(n, ast.FunctionDef)
            }
            assert function in defined, f"{name}: {target}"
            assert line and not line.endswith(".")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a clean export, because building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    export, out = folder / "a clean export", folder / "out"
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        pytest.skip("not a git checkout")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(export, filter="data")
    out.mkdir()
    code = f"import setuptools.build_meta as b; print(b.build_wheel({str(out)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=export, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_the_wheel_claims_one_name(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        top_level = next(file.read(n).decode() for n in names if n.endswith("top_level.txt"))
    assert tops == {"speechgpt"}
    assert top_level.split() == ["speechgpt"]
    assert "speechgpt/units/__init__.py" in names and "speechgpt/data/audio.py" in names
    assert not [n for n in names if n.startswith("speechgpt/tests")]


def test_the_wheel_holds_everything_that_is_not_code(wheel):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    committed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    for path in set(tracked) & set(committed):
        top = path.split("/")[0]
        if top in ORDER and not path.endswith((".md",)):
            inside = path if top == "speechgpt" else f"speechgpt/{path}"
            assert inside in names, f"{path} is not in the wheel"


def test_versions_are_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pinned = {
        line.split("==")[0].lower()
        for line in (ROOT / "constraints.txt").read_text().split("\n")
        if "==" in line
    }
    wanted = [*project["dependencies"], *(d for e in project["optional-dependencies"].values() for d in e)]
    for requirement in wanted:
        name = requirement.split("=")[0].split(">")[0].split("<")[0].lower()
        assert name in pinned, f"{name} is not in constraints.txt"
