"""Python starts in this folder, although `tokenize.py` hides its module of that name (see the end of `tokenize.py`).

`inspect`, `linecache` and PyTorch import `tokenize`, so each way of starting Python here is a case of its own. The cheapest
that tell the most always run; `pytest -m slow` runs the rest.
"""

import dis
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import textwrap
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import pytest
import torch

import tokenize

ROOT = Path(__file__).parent.parent
PYTEST = Path(sys.executable).with_name("pytest")
TORCHRUN = Path(sys.executable).with_name("torchrun")

# Ours does its work, and so does Python's.
WORKS = """
import os, sys, vatt, tokenize
tokenize.Vocabulary.build(["an egg"]).save(os.devnull)
if tokenize.untokenize(tokenize.generate_tokens(tokenize.open(vatt.__file__).readline)):
    print("fine")
"""


def start(*command, cwd=ROOT, stdin="", **environment):
    """Runs Python (or the program of a path) to a good end; what it printed"""
    program = command if isinstance(command[0], Path) else (sys.executable, *command)
    done = subprocess.run(program, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTEST_ADDOPTS": "", **environment})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def python_s_own():
    """Python's tokenize, loaded once more under its name"""
    module = ModuleType("tokenize")
    SourceFileLoader("tokenize", os.path.join(os.path.dirname(os.__file__), "tokenize.py")).exec_module(module)
    return module


# The module that answers for both


def test_python_finds_all_of_its_own_tokenize_in_ours():
    assert not [name for name in vars(python_s_own()) if not hasattr(tokenize, name)]


def test_ours_is_there_under_every_command_that_runs_the_tests():
    assert tokenize.video_patches.__code__.co_filename == str(ROOT / "tokenize.py")


def test_a_star_import_gives_the_names_of_python():
    names = {}
    exec("from tokenize import *", names)
    assert {"generate_tokens", "untokenize", "TokenInfo", "NAME", "ENCODING"} <= set(names)


def test_python_s_functions_work_through_ours():
    source = "x = [1,  'two']  # three\n"
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    assert tokenize.untokenize(tokens) == source
    assert [t.string for t in tokens if t.type == tokenize.NAME] == ["x"]
    assert tokenize.detect_encoding(io.BytesIO(b"# coding: latin-1\n").readline)[0] == "iso-8859-1"
    with pytest.raises(tokenize.TokenError):
        list(tokenize.generate_tokens(io.StringIO("x = (").readline))


def test_a_token_of_python_survives_pickling():
    token = next(iter(tokenize.generate_tokens(io.StringIO("x\n").readline)))
    again = pickle.loads(pickle.dumps(token))
    assert again == token
    assert type(again) is tokenize.TokenInfo


def fresh():
    """Our file as a module of its own, so that only what it binds itself is in it"""
    module = ModuleType("ours")
    SourceFileLoader("ours", str(ROOT / "tokenize.py")).exec_module(module)
    return {name: value for name, value in vars(module).items() if not name.startswith("__") or name == "__getattr__"}


def test_no_name_of_ours_takes_the_place_of_one_of_python_s():
    ours, python = fresh(), vars(python_s_own())
    assert not [name for name in ours if name in python and ours[name] is not python[name]]


def globals_of(code):
    """The global names that a piece of code reads, those of its functions included"""
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(globals_of(const) for const in code.co_consts if isinstance(const, CodeType)))


def test_no_function_of_ours_calls_a_function_of_python_s_tokenize_by_accident():
    # After a reload both stand in one module, where `open` and `any` are no longer the built-in ones.
    read = globals_of(compile((ROOT / "tokenize.py").read_text(encoding="utf-8"), "tokenize.py", "exec"))
    hidden = [name for name in vars(python_s_own()) if not name.startswith("__")]
    assert "Counter" in read
    assert not read.difference(fresh()).intersection(hidden)


def test_only_one_file_reloads_tokenize_and_none_copies_its_names():
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("*.py")}
    assert [name for name, text in sources.items() if "reload(tokenize)" in text] == ["vatt.py"]
    assert not [name for name, text in sources.items() if "from tokenize import" in text]


def test_it_gives_the_file_of_python_s_because_torch_compile_refused_its_functions_otherwise():
    assert Path(tokenize.__file__) == Path(os.__file__).with_name("tokenize.py")


# The ways of starting Python


def test_ours_imports_neither_pytorch_nor_numpy():
    start("-c", "import tokenize, sys; tokenize.Vocabulary; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))")


def test_torch_and_vatt_import():
    assert "fine" in start("-c", f"import torch\n{WORKS}")


@pytest.mark.parametrize(("before", "environment"), [
    (f"import sys, torch; sys.path.append({str(ROOT)!r})", {}), (f"import sys; sys.path.append({str(ROOT)!r})", {}),
    ("", {"PYTHONPATH": str(ROOT)}), ("import torch", {"PYTHONPATH": str(ROOT)})], ids=range(4))
def test_vatt_imports_in_another_folder(tmp_path, before, environment):
    (tmp_path / "use.py").write_text(f"{before}\n{WORKS}\nassert {str(ROOT)!r} not in sys.path[:1]")
    assert "fine" in start("use.py", cwd=tmp_path, **environment)


@pytest.mark.parametrize("name", ["data", "heads", "engine"])
def test_a_file_of_another_project_that_hides_one_of_ours_is_named(tmp_path, name):
    (tmp_path / f"{name}.py").write_text("mine = 1\n")
    command = [sys.executable, "-c", f"import sys; sys.path.append({str(ROOT)!r}); import vatt"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120).stderr
    assert "ImportError" in said or "ModuleNotFoundError" in said
    assert name in said.splitlines()[-1]


def test_pip_starts():
    assert "pip" in start("-m", "pip", "--version")


def test_a_virtual_environment_is_made(tmp_path):
    start("-m", "venv", "--without-pip", str(tmp_path / "venv"))
    assert (tmp_path / "venv" / "pyvenv.cfg").exists()


def test_python_m_pytest_starts():
    assert "pytest" in start("-m", "pytest", "--version")


@pytest.mark.skipif(not PYTEST.exists(), reason="no pytest command beside this Python")
def test_the_pytest_command_starts():
    test = "tests/test_tokenize.py::test_a_saved_vocabulary_is_text_whose_line_is_the_id"
    assert "1 passed" in start(PYTEST, "-q", "-p", "no:cacheprovider", test)


def test_the_debugger_starts():
    assert "vatt.py(1)" in start("-m", "pdb", "-c", "where", "-c", "q", "vatt.py")


def test_the_profiler_starts(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import inspect, tokenize\ntokenize.TokenInfo\n")
    start("-m", "cProfile", "-o", os.devnull, str(script))


def test_tracebacks_and_sources_are_read():
    printed = start("-c", """
import inspect, linecache, logging, traceback
print(linecache.getline(logging.__file__, 1))
print(inspect.getsource(linecache.getline))
try:
    linecache.getline()
except TypeError:
    print(traceback.format_exc())
""")
    assert "Copyright" in printed
    assert "def getline" in printed
    assert "TypeError" in printed


def test_torchrun_s_module_starts():
    assert "--nproc" in start("-m", "torch.distributed.run", "--help")


def test_a_script_starts_from_another_folder(tmp_path):
    assert "predict" in start(str(ROOT / "evaluate.py"), "--help", cwd=tmp_path)


SLOW = {
    "python -": ["-"],
    "interactive": ["-i", "-q"],
    "-m code": ["-m", "code"],
    "-O": ["-O", "-"],
    "-W error": ["-W", "error::ImportWarning", "-"],
    "-X dev": ["-X", "dev", "-"],
    "-X frozen_modules": ["-X", "frozen_modules=off", "-"],
    "-m trace": ["-m", "trace", "--count", "--coverdir", "{tmp}", "{script}"],
    "-m pdb": ["-m", "pdb", "-c", "c", "-c", "q", "{script}"],
    "-m cProfile": ["-m", "cProfile", "-o", os.devnull, "{script}"],
    "-m runpy": ["-c", "import runpy; runpy.run_path(r'{script}', run_name='__main__')"],
    "-m coverage": ["-m", "coverage", "run", "--data-file={tmp}/data", "{script}"],
    "-m IPython": ["-m", "IPython", "--no-banner", "--HistoryManager.enabled=False", "{script}"],
    "torch.distributed.run": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "{script}"],
}


def skip_without(command):
    module = command[command.index("-m") + 1] if "-m" in command else "os"
    if importlib.util.find_spec(module.split(".")[0]) is None:
        pytest.skip(f"{module} is not installed")


@pytest.fixture
def script(tmp_path):
    """A script that uses ours and Python's, which another folder holds"""
    path = tmp_path / "script.py"
    body = textwrap.indent(WORKS, "    ")
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nif __name__ == '__main__':\n{body}")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("way", SLOW)
def test_ours_and_python_s_work_however_python_starts_here(way, script, tmp_path):
    skip_without(SLOW[way])
    assert "fine" in start(*(part.format(tmp=tmp_path, script=script) for part in SLOW[way]), stdin=f"exec({WORKS!r})\n")


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in SLOW if "{script}" in str(SLOW[way])])
def test_ours_and_python_s_work_however_python_starts_elsewhere(way, script, tmp_path):
    # From here Python's own is imported first, and ours comes into it with vatt's reload.
    skip_without(SLOW[way])
    assert "fine" in start(*(part.format(tmp=tmp_path, script=script) for part in SLOW[way]), cwd=tmp_path)


@pytest.mark.slow
def test_ours_is_found_on_pythonpath_and_after_a_sitecustomize_that_loads_python_s(script, tmp_path):
    assert "fine" in start(str(script), cwd=tmp_path, PYTHONPATH=str(ROOT))
    (tmp_path / "sitecustomize.py").write_text("import inspect, tokenize\n")
    assert "fine" in start("-c", WORKS, PYTHONPATH=str(tmp_path))
    assert "fine" in start("-i", "-q", stdin=f"exec({WORKS!r})\n", PYTHONSTARTUP=str(tmp_path / "sitecustomize.py"))


@pytest.mark.slow
@pytest.mark.skipif(not TORCHRUN.exists(), reason="no torchrun command beside this Python")
def test_the_torchrun_command_starts(script):
    assert "fine" in start(TORCHRUN, "--standalone", "--nproc-per-node", "1", str(script))


@pytest.mark.slow
@pytest.mark.parametrize("command", [
    ["-m", "pip", "install", "--dry-run", "--no-index", "numpy"],
    ["-m", "pip", "list"],
    ["-m", "venv", "{tmp}/venv"],
    ["-m", "ensurepip", "--version"],
    ["-m", "timeit", "-n", "1", "pass"],
    ["-m", "tokenize", "droptoken.py"],
    ["-m", "tabnanny", "tokenize.py"],
    ["-m", "pydoc", "droptoken"],
    ["-m", "doctest", "losses.py"],
    ["-m", "unittest", "--help"],
    ["-m", "ast", "tokenize.py"],
    ["-m", "dis", "tokenize.py"],
    ["-m", "inspect", "dataclasses"],
    ["-m", "pyclbr", "tokenize.py"],
    ["-m", "compileall", "-q", "-f", "tokenize.py"],
    ["-m", "py_compile", "tokenize.py"],
    ["-m", "zipapp", "--help"],
    ["-m", "torch.utils.collect_env"],
    ["-m", "vatt"],
    ["-P", "-c", "import torch"],                                         # neither sees this folder
    ["-I", "-c", "import torch"],
], ids=" ".join)  # fmt: skip
def test_python_starts_here(command, tmp_path):
    start(*(part.format(tmp=tmp_path) for part in command))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_a_loader_start_here(method, script):
    script.write_text(script.read_text() + f"""
    from torch.utils.data import DataLoader
    for x in DataLoader([1, 2], num_workers=1, multiprocessing_context={method!r}):
        pass
    print("and loaded")
""")
    assert "and loaded" in start(str(script))


@pytest.mark.slow
def test_torch_compile_traces_our_functions():
    torch.compiler.reset()
    compiled = torch.compile(tokenize.video_patches, backend="eager", fullgraph=True)
    video = torch.randn(1, 5, 17, 16, 3)
    assert torch.equal(compiled(video), tokenize.video_patches(video))
