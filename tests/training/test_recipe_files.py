"""Test files that extend each other, and the errors of files that cannot be read."""

from pathlib import Path

import pytest

from tinyrm.errors import InvalidInput
from training.loading import RECIPES, find_recipe, merge, read_recipe


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / "row.yaml"


def test_the_file_wins_over_what_it_extends_and_later_parts_over_earlier(tmp_path: Path) -> None:
    row = write(
        tmp_path,
        one="a: 1\nb: {x: 1, y: 1, z: 1}\nkept: [1]",
        two="a: 2\nb: {y: 2, z: 2}",
        row="extends: [one.yaml, two.yaml]\nb: {z: 3}",
    )
    assert read_recipe(row) == {"a": 2, "b": {"x": 1, "y": 2, "z": 3}, "kept": [1]}


def test_lists_and_values_are_replaced_whole() -> None:
    assert merge({"a": [1, 2], "b": {"c": 1}}, {"a": [3], "b": 4}) == {"a": [3], "b": 4}
    assert merge({"b": 4}, {"b": {"c": 1}}) == {"b": {"c": 1}}


def test_parts_extend_others_relative_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner", part="extends: ../ground.yaml\nb: 1")
    row = write(tmp_path, ground="a: 1", row="extends: inner/part.yaml")
    assert read_recipe(row) == {"a": 1, "b": 1}


def test_one_part_may_be_extended_twice(tmp_path: Path) -> None:
    row = write(
        tmp_path, ground="a: 1", x="extends: ground.yaml", y="extends: ground.yaml", row="extends: [x.yaml, y.yaml]"
    )
    assert read_recipe(row) == {"a": 1}


def test_a_circle_is_refused(tmp_path: Path) -> None:
    row = write(tmp_path, other="extends: row.yaml", row="extends: other.yaml")
    with pytest.raises(InvalidInput, match=r"extends itself, by way of row\.yaml and other\.yaml"):
        read_recipe(row)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("- a", "must be a mapping"),
        ("", "mapping"),
        ("extends: 3", "`extends` must be the path of a recipe or a list of paths, not 3"),
        ("extends: [{a: 1}]", "a list of paths"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"row\.yaml.*{message}"):
        read_recipe(write(tmp_path, row=text))


def test_a_recipe_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    assert find_recipe("paper/large-reasoning") == RECIPES / "paper" / "large-reasoning.yaml"
    assert find_recipe(str(write(tmp_path, row="a: 1"))) == tmp_path / "row.yaml"


def test_an_unknown_name_is_refused_with_similar_names() -> None:
    with pytest.raises(InvalidInput, match=r"'paper/large-reasonin'; did you mean paper/large-reasoning"):
        find_recipe("paper/large-reasonin")
