"""No source file of the project calls what would run, or unpickle, what a file says."""

from __future__ import annotations

import ast

import pytest

FOLDERS = ("quantface_arch", "scripts", "inference", "basicsr", "benchmarks")
UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads"),
    *("joblib.load", "shelve.open", "marshal.load", "marshal.loads", "torch.jit.load"),
    *("torch.hub.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("eval", "exec", "pandas.read_pickle", "shutil.unpack_archive"),
}
UNSAFE_METHODS = {"extractall"}
# What these have to be, if they are given.
SAFE_WORDS = {
    "allow_pickle": False,
    "shell": False,
    "trust_remote_code": False,
    "use_safetensors": True,
    "weights_only": True,
}
# The reader that builds tensors and placeholders alone, and the one place whose loader is checked
# to be a safe one.
ALLOWED = {
    ("quantface_arch/utils/inert_pickle.py", "pickle.Unpickler"),
    ("quantface_arch/utils/inert_pickle.py", "torch.load without weights_only=True"),
    ("quantface_arch/utils/inert_pickle.py", "weights_only=False"),
    ("quantface_arch/utils/safe_yaml_json.py", "yaml.load"),
    # Reads by the loader that compat puts in the place of BasicSR's.
    ("benchmarks/fuzz_targets.py", "yaml.load"),
    # Unpacks what git itself packed from this repository.
    ("benchmarks/compare_commits.py", "files.extractall"),
}
# Files of users are read by utils/safe_yaml_json.py, which looks at their size first.
PACKAGE_ONLY = {"yaml.safe_load", "json.load"}


def imported(nodes):
    """What the names stand for that imports give."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update((name.asname, name.name) for name in node.names if name.asname)
        elif isinstance(node, ast.ImportFrom):
            names = {name.asname or name.name: name.name for name in node.names}
            found.update((name, f"{node.module}.{full}") for name, full in names.items())
    return found


def dotted(node, names):
    """``a.b.c`` of a chain of attributes, by the modules' own names, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}".removeprefix("builtins.")
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


def unsafe_calls(text, unsafe=UNSAFE):
    """What a source text calls, or hands on, that it should not."""
    nodes = list(ast.walk(ast.parse(text)))
    names = imported(nodes)
    yield from unsafe & set(names.values())
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        name = dotted(node, names)
        if name in unsafe or (name == "torch.load" and id(node) not in called):
            yield name
        if isinstance(node, ast.Call):
            yield from _unsafe_words(dotted(node.func, names), node)


def _unsafe_words(name, call):
    words = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
    if name == "torch.load" and words.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name.rpartition(".")[2] in UNSAFE_METHODS:
        yield name
    yield from (f"{k}={v}" for k, v in words.items() if SAFE_WORDS.get(k, v) is not v)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_calls_what_is_unsafe(repo, folder):
    paths = sorted((repo / folder).rglob("*.py"))
    assert paths
    extra = PACKAGE_ONLY if folder in ("quantface_arch", "scripts", "inference") else set()
    found = {
        (str(path.relative_to(repo)), call)
        for path in paths
        for call in unsafe_calls(path.read_text(), UNSAFE | extra)
    }
    # Nor is anything allowed that nobody needs any more.
    assert found == {(name, call) for name, call in ALLOWED if name.startswith(f"{folder}/")}


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import torch as t\nt.load(path)",
        "map(torch.load, paths)",
        "import pickle\npickle.loads(data)",
        "import pickle as p\np.loads(data)",
        "from pickle import loads",
        "import pandas as pd\npd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.CLoader)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "subprocess.run(words, shell=True)",
        "subprocess.run(words, shell=flag)",
        "archive.extractall(folder)",
        "class Mine(pickle.Unpickler): pass",
        "exec(text)",
        "builtins.eval(text)",
    ],
)
def test_what_is_unsafe_is_seen(text):
    assert list(unsafe_calls(text))


def test_what_is_safe_is_let_through():
    text = "torch.load(p, weights_only=True); np.load(p); net.eval(); run(w, shell=False)"
    assert not list(unsafe_calls(text))
