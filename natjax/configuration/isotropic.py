"""Configurations of isotropic models (arXiv 2209.15001, section 4.3), one level of patches: NAT-iso, DiNAT-iso and ViT-rpb."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from natjax.configuration.checks import MAX_SIZE, expect_int
from natjax.configuration.nat import NatConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NatIsotropicConfig(NatConfig):
    """Architecture and head of NAT-iso or, with dilations, DiNAT-iso: the fields of `NatConfig`. Defaults: NAT-iso-Small.

    `patch_size` may be any, and so may the size of images: zeros at the bottom and right pad them to a multiple of it.
    transformers has no such models: config.json is natjax's own.
    """

    model_types: ClassVar[tuple[str, ...]] = ("nat_isotropic", "dinat_isotropic")
    overlapping: ClassVar[bool] = False

    patch_size: int = 16
    embed_dim: int = 384
    depths: tuple[int, ...] = (12,)
    num_heads: tuple[int, ...] = (12,)
    mlp_ratio: float = 4.0

    __hash__ = NatConfig.__hash__

    @property
    def model_type(self) -> str:
        """natjax's name of the architecture: "nat_isotropic", or "dinat_isotropic" where there are dilations."""
        return "nat_isotropic" if self.dilations is None else "dinat_isotropic"

    def _check_patches(self) -> None:
        expect_int("patch_size", self.patch_size, minimum=1, maximum=MAX_SIZE)

    def _check_levels(self) -> None:
        super()._check_levels()
        if self.num_levels != 1:
            raise ValueError(f"depths must have one level, as the model is isotropic; got {self.depths}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitRpbConfig(NatIsotropicConfig):
    """Architecture and head of ViT-rpb, whose window is the whole map: it takes images of `image_size`.

    Attributes:
        kernel_size: side of the map in patches, even or odd: `image_size // patch_size`, which it follows.
        image_size: side of the images in pixels, a multiple of `patch_size`.
    """

    model_types: ClassVar[tuple[str, ...]] = ("vitrpb",)

    kernel_size: int = None  # ty: ignore[invalid-assignment]
    image_size: int = 224

    __hash__ = NatConfig.__hash__

    def __post_init__(self):
        for name in ("patch_size", "image_size"):
            expect_int(name, getattr(self, name), minimum=1, maximum=MAX_SIZE)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size, {self.patch_size}; got {self.image_size}.")
        if self.kernel_size is None:
            self._set(kernel_size=self.image_size // self.patch_size)
        super().__post_init__()

    @property
    def model_type(self) -> str:
        """natjax's name of the architecture, "vitrpb"."""
        return "vitrpb"

    def check_image_size(self, height: int, width: int, *, mixed: bool = False) -> None:
        """Checks that the model takes batches of this size in pixels, of images of mixed sizes where so.

        Raises:
            ValueError: it does not, as their map is not the window; the message says what to do.
        """
        if mixed:
            raise ValueError(
                "A ViT-rpb takes no pixel_mask, as its images all have one size: resize them to "
                f"{self.image_size} x {self.image_size} pixels."
            )
        if any(-(-side // self.patch_size) != self.kernel_size for side in (height, width)):
            raise ValueError(
                f"This ViT-rpb takes images of {self.image_size} x {self.image_size} pixels, as its window is its whole map of "
                f"{self.kernel_size} x {self.kernel_size} patches; got {height} x {width}. Resize the images, or load the model "
                "with from_pretrained(..., image_size=N, resize_biases=True), which interpolates its biases."
            )

    def _following(self, changes: Mapping[str, Any]) -> Iterable[str]:
        yield from super()._following(changes)
        yield "kernel_size"

    def _check_kernel_size(self) -> None:
        if self.kernel_size != self.image_size // self.patch_size:
            raise ValueError(
                f"kernel_size must be image_size // patch_size = {self.image_size // self.patch_size}, the whole map; got "
                f"{self.kernel_size}. Change image_size, which it follows."
            )
        if self.dilations is not None:
            raise ValueError(f"dilations must be None, as the window is the whole map; got {self.dilations}.")
