"""The direction of imports: between areas only downwards, and between files never in a circle.

Imports inside functions count as well; those for type checkers alone do not.
"""

import ast
import graphlib
import pathlib

import pytest

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {"natjax": ".", "natjax_kernels": "kernels", "natjax_convert": "convert", "natjax_train": "train"}

# Which files an area is, by the longest prefix of their module's name, and which areas it may import beside itself.
AREAS = {
    "natjax_kernels": (),
    "natjax": ("natjax_kernels",),  # errors, files, configuration, images: what all others stand on
    "natjax.nn": ("natjax", "natjax_kernels"),
    "natjax.losses": ("natjax", "natjax.nn"),
    "natjax.detection": ("natjax", "natjax.nn", "natjax.segmentation"),
    "natjax.models": (
        "natjax",
        "natjax.nn",
        "natjax.losses",
        "natjax.detection",
        "natjax.pretrained",
        "natjax_kernels",
    ),
    "natjax_convert": ("natjax",),
    "natjax.linen": ("natjax", "natjax.models"),
    "natjax.pretrained": ("natjax", "natjax.nn", "natjax_convert"),
    "natjax.exporting": (
        "natjax",
        "natjax.models",
        "natjax.pretrained",
        "natjax_convert",
        "natjax_kernels",
    ),
    "natjax.flops": ("natjax", "natjax_convert"),
    "natjax.segmentation": ("natjax", "natjax.nn", "natjax_kernels"),
    "natjax.pipelines": (
        "natjax",
        "natjax.detection",
        "natjax.segmentation",
        "natjax.exporting",
        "natjax.nn",
        "natjax.models",
        "natjax.pretrained",
        "natjax_convert",
        "natjax_kernels",
    ),
    "natjax_train": (
        "natjax",
        "natjax.nn",
        "natjax.losses",
        "natjax.detection",
        "natjax.models",
        "natjax.detection",
        "natjax.segmentation",
        "natjax_convert",
        "natjax_kernels",
    ),
    "natjax.benchmarking": ("natjax", "natjax.nn", "natjax.models", "natjax.flops", "natjax_train", "natjax_kernels"),
    "natjax.explorer": ("natjax", "natjax.nn", "natjax.models", "natjax_kernels"),
    "natjax.demo": ("natjax", "natjax.nn", "natjax.models", "natjax.pretrained", "natjax_convert", "natjax_kernels"),
}
ANYTHING = ("natjax.cli", "natjax.__main__")


def test_imports_point_down():
    wrong = [
        f"{module} imports {imported}"
        for module, found in imports().items()
        for imported in found
        if not module.startswith(ANYTHING) and area(imported) not in (area(module), *AREAS[area(module)])
    ]
    assert not wrong


def test_no_import_goes_in_a_circle():
    graphlib.TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def area(module: str) -> str:
    """Returns the area of a module; the command line's modules, which no other area may import, are areas of their own."""
    return max((name for name in (*AREAS, *ANYTHING) if f"{module}.".startswith(f"{name}.")), key=len)


def imports() -> dict[str, set[str]]:
    """Returns what every module imports of natjax's modules."""
    files = {
        ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__"): path
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*.py")
    }
    return {module: set(imported_by(path, files)) - {module} for module, path in files.items()}


def imported_by(path: pathlib.Path, modules):
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                submodule = f"{node.module}.{name.name}"
                if submodule in modules:
                    yield submodule
                elif node.module in modules:
                    yield node.module
