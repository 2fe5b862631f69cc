"""Finding inputs and naming outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import UsageError
from quantface_arch.restore.files import OutputFolders, find_sources, output_names


@pytest.fixture
def tree(tmp_path):
    """Return a folder with images, other files and earlier results."""
    root = tmp_path / "in"
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        ".hidden.png",
        "sub/a.png",
        "sub/deeper/c.webp",
        "results/restored/b.png",
        "results/compare/b.png",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def _found(tree, *inputs, recursive=False):
    folders = OutputFolders(tree / "results", aligned=False, compare=True)
    sources, ignored = find_sources([str(text) for text in inputs], recursive, folders)
    return [str(source.path.relative_to(tree)) for source in sources], ignored


def test_files_folders_and_globs(tree):
    assert _found(tree, tree) == (["a.JPG", "b.png"], 1)
    assert _found(tree, tree / "b.png") == (["b.png"], 0)
    assert _found(tree, tree / "*") == (["a.JPG", "b.png"], 1)
    assert _found(tree, tree / "**/*.png")[0][-2:] == ["results/restored/b.png", "sub/a.png"]
    assert _found(tree, tree, tree / "b.png", tree / "sub")[0] == ["a.JPG", "b.png", "sub/a.png"]


def test_recursion_leaves_out_earlier_results(tree):
    expected = ["a.JPG", "b.png", "sub/a.png", "sub/deeper/c.webp"]
    assert _found(tree, tree, recursive=True) == (expected, 1)


def test_an_existing_file_with_brackets_is_not_a_glob(tree):
    (tree / "x[1].png").write_bytes(b"x")
    assert _found(tree, tree / "x[1].png")[0] == ["x[1].png"]


@pytest.mark.parametrize("text", ["missing", "missing.png", "*.bmp", "notes.txt"])
def test_inputs_without_images_are_wrong_usage(tree, text):
    with pytest.raises(UsageError, match=text.replace("*", r"\*")):
        _found(tree, tree / text)


def test_an_empty_folder_is_wrong_usage(tree):
    (tree / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no images or videos in .*empty .*--recursive"):
        _found(tree, tree / "empty")


def test_a_run_never_writes_over_its_inputs(tree):
    folders = OutputFolders(tree / "results", aligned=False, compare=False)
    sources, _ = find_sources([str(tree / "results/restored")], False, folders)
    with pytest.raises(UsageError, match="choose another output"):
        folders.check(sources)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["a.png", "a.jpg"], ["a_png", "a_jpg"]),
        (["x/a.png", "y/a.png"], ["x_a", "y_a"]),
        (["x/a.png", "x/A.jpg", "y/a.png"], ["x_a", "A_jpg", "y_a"]),
        (["a.png", "a.jpg", "a_png.png"], ["r_a", "a_jpg", "a_png_png"]),
    ],
)
def test_names(paths, names):
    assert output_names([Path("/r") / path for path in paths]) == names


@given(
    st.sets(
        st.builds(
            "/{}/{}.{}".format,
            st.sampled_from(["x", "y", "x/a", "x_a"]),
            st.sampled_from(["a", "A", "x_a", "a_png", "b"]),
            st.sampled_from(["png", "jpg", "PNG"]),
        ),
        max_size=12,
    ),
    st.randoms(),
)
@settings(deadline=None)
def test_names_are_unique_and_do_not_depend_on_the_order(paths, random):
    paths = sorted(map(Path, paths))
    names = output_names(paths)
    assert len({name.casefold() for name in names}) == len(paths)
    shuffled = random.sample(paths, len(paths))
    assert dict(zip(shuffled, output_names(shuffled), strict=True)) == dict(
        zip(paths, names, strict=True)
    )
