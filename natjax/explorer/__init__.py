"""The attention explorer: one self-contained web page that shows what every token of an image attends to, in every layer.

    pipe = natjax.pipeline("image-feature-extraction", "nat_tiny")
    Path("explorer.html").write_text(make_page(pipe.model, pipe.processor, "photo.jpg"), encoding="utf-8")

`natjax.explorer.layers` computes the weights of all layers, `natjax.explorer.page` packs them into the page. Its files,
explorer.html, explorer.js and explorer.css, lie beside this one. It asks no server for anything.
"""

from natjax.explorer.page import make_page

__all__ = ["make_page"]
