"""No source file of the project calls what would run, or unpickle, what a file says."""

from __future__ import annotations

import ast

import pytest

FOLDERS = ("quantface_arch", "scripts", "inference", "basicsr", "benchmarks")
UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "dill.loads"),
    *("joblib.load", "shelve.open", "marshal.load", "marshal.loads", "torch.jit.load"),
    *("torch.hub.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"),
    *("os.system", "os.popen", "eval", "exec", "pd.read_pickle", "shutil.unpack_archive"),
}
UNSAFE_METHODS = {"extractall"}
UNSAFE_WORDS = {
    "allow_pickle": True,
    "shell": True,
    "trust_remote_code": True,
    "use_safetensors": False,
    "weights_only": False,
}
# The explicit way to read a pickle, and the one place whose loader is checked to be a safe one.
ALLOWED = {
    ("scripts/convert_pickle.py", "pickle.Unpickler"),
    ("scripts/convert_pickle.py", "torch.load without weights_only=True"),
    ("scripts/convert_pickle.py", "weights_only=False"),
    ("quantface_arch/quant/documents.py", "yaml.load"),
    # Reads by the loader that compat puts in the place of BasicSR's.
    ("benchmarks/fuzz_targets.py", "yaml.load"),
}
# Files of users are read by quant/documents.py, which looks at their size first.
PACKAGE_ONLY = {"yaml.safe_load", "json.load"}


def dotted(node):
    """``a.b.c`` of a chain of attributes, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_calls(text, unsafe=UNSAFE):
    """What a source text calls that it should not."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Attribute, ast.Name)) and dotted(node) in unsafe:
            yield dotted(node)
        if isinstance(node, ast.ImportFrom):
            yield from (n for a in node.names if (n := f"{node.module}.{a.name}") in unsafe)
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if dotted(node.func) == "torch.load" and words.get("weights_only") is not True:
            yield "torch.load without weights_only=True"
        if dotted(node.func).rpartition(".")[2] in UNSAFE_METHODS:
            yield dotted(node.func)
        yield from (f"{k}={v}" for k, v in words.items() if UNSAFE_WORDS.get(k, not v) == v)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_calls_what_is_unsafe(repo, folder):
    paths = sorted((repo / folder).rglob("*.py"))
    assert paths
    extra = PACKAGE_ONLY if folder in ("quantface_arch", "scripts", "inference") else set()
    for path in paths:
        name = str(path.relative_to(repo))
        found = {(name, call) for call in unsafe_calls(path.read_text(), UNSAFE | extra)}
        assert found <= ALLOWED, name


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "import pickle\npickle.loads(data)",
        "from pickle import loads",
        "yaml.load(text, Loader=yaml.CLoader)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(words, shell=True)",
        "archive.extractall(folder)",
        "class Mine(pickle.Unpickler): pass",
        "exec(text)",
    ],
)
def test_what_is_unsafe_is_seen(text):
    assert list(unsafe_calls(text))


def test_what_is_safe_is_let_through():
    text = "torch.load(p, weights_only=True); np.load(p); net.eval(); run(w, shell=False)"
    assert not list(unsafe_calls(text))
