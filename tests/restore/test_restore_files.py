"""Finding inputs and naming outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantface_arch.errors import UsageError
from quantface_arch.restore.files import OutputFolders, find_sources, left_out_line, output_names


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
    return [str(source.path.relative_to(tree)) for source in sources], len(ignored)


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


def test_files_that_are_left_out_are_named(tree):
    folders = OutputFolders(tree / "results", aligned=False, compare=False)
    for number in range(9):
        (tree / f"photo{number}.xcf").write_bytes(b"x")
    _, others = find_sources([str(tree)], False, folders)
    line = left_out_line(others)
    assert "notes.txt" in line and "photo0.xcf" in line and "and 5 more" in line


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPEG"])
def test_every_suffix_of_a_jpeg_is_an_image(tree, suffix):
    (tree / "empty").mkdir()
    (tree / f"empty/x{suffix}").write_bytes(b"x")
    assert _found(tree, tree / "empty") == ([f"empty/x{suffix}"], 0)


@pytest.mark.parametrize("letter", ["n", "ü", "漢"])
def test_long_names_leave_room_for_a_suffix(letter):
    longest = letter * (251 // len(letter.encode()))
    paths = [Path(f"/r/{longest}.jpg"), Path(f"/r/{longest[:-1]}.jpg"), Path("/r/short.jpg")]
    names = output_names(paths)
    assert len(set(names)) == 3 and names[2] == "short"
    assert all(200 < len(f"{name}_00.png".encode()) <= 255 for name in names[:2])


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
