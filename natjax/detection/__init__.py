"""Object detection: what detectors compute beside their layers, as pure functions of arrays of fixed shape.

    boxes, anchors    overlaps, the coding of boxes as offsets, the boxes that a region proposal network starts from
    nms               which of many boxes stay
    roi_align         the features of boxes
    masks             what a mask head learns from, and masks of whole images
    matching, losses  what boxes learn from ground truth
    lists             work on what is valid

and what is done with what they find, on images of any size:

    padding           what sides of images are filled up to
    inference         prepared images to detections in pixels of the original ones
    pictures, coco    detections as pictures and as COCO's results

A box is x1, y1, x2, y2 in pixels of the network's input, float32. Lists are padded to a fixed length, with flags of what is
valid, so that all of it runs under `jax.jit`.
"""
