"""The recipes of `natjax train --recipe`: a file for each family, which says its command, expected figure and time."""

from __future__ import annotations

import os

from natjax.text import did_you_mean
from natjax_train.recipe import Recipe
from natjax_train.recipes import detection, digits, earth, finetune, imagenet, upernet

RECIPES: dict[str, Recipe] = (
    imagenet.RECIPES | finetune.RECIPES | upernet.RECIPES | detection.RECIPES | digits.RECIPES | earth.RECIPES
)


def find_recipe(name: str) -> Recipe:
    """Returns a preset, or the recipe in a JSON file.

    Raises:
        ValueError: there is no such preset or file, or the file holds no recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    if os.path.isfile(name):
        with open(name, encoding="utf-8") as file:
            try:
                return Recipe.from_json(file.read())
            except ValueError as error:
                raise ValueError(f"{name} is no recipe: {error}") from error
    hint = did_you_mean(name, RECIPES, cutoff=0.5)
    raise ValueError(f"There is no recipe or file named {name!r}.{hint} There are: {', '.join(RECIPES)}.")
