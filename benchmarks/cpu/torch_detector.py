"""Mask R-CNN in PyTorch, as somebody would put it together today: torchvision's over NAT by masked attention (masked.py)."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from benchmarks.cpu.masked import MaskedNat
from natjax.benchmarking.models import boxes_within
from natjax.configuration.detection import BOX_SIDE, MASK_SIDE

CANDIDATES = 1000  # of an image, whose scores are high enough for the last suppression


class Trunk(nn.Module):
    """MaskedNat's levels, normalised, under a feature pyramid with a fifth map."""

    def __init__(self, config, image_size: int):
        super().__init__()
        backbone = config.backbone_config
        self.nat = MaskedNat(backbone.replace(num_labels=1), image_size)
        self.norms = nn.ModuleList(map(nn.LayerNorm, backbone.level_dims))
        self.pyramid = FeaturePyramidNetwork(list(backbone.level_dims), config.fpn_channels, LastLevelMaxPool())
        self.out_channels = config.fpn_channels
        del self.nat.norm, self.nat.head

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [norm(y).permute(0, 3, 1, 2) for norm, y in zip(self.norms, self.nat.features(x), strict=True)]
        return self.pyramid({str(level): y for level, y in enumerate(maps)})


class MaskedMaskRcnn(nn.Module):
    """The detector of a natjax.MaskRcnnConfig for square images of one size, with its numbers of proposals and samples."""

    def __init__(self, config, image_size: int):
        super().__init__()
        anchors = [(int(config.anchor_scale * stride),) for stride in config.strides]
        levels = [str(level) for level in range(len(config.backbone_config.level_dims))]
        self.net = MaskRCNN(
            Trunk(config, image_size),
            num_classes=config.num_labels + 1,
            min_size=image_size,
            max_size=image_size,
            image_mean=(0.0,) * 3,
            image_std=(1.0,) * 3,
            rpn_anchor_generator=AnchorGenerator(anchors, (tuple(config.anchor_ratios),) * len(anchors)),
            rpn_pre_nms_top_n_train=config.train_rpn_pre_nms,
            rpn_pre_nms_top_n_test=config.rpn_pre_nms,
            rpn_post_nms_top_n_train=config.train_rpn_post_nms,
            rpn_post_nms_top_n_test=config.rpn_post_nms,
            box_roi_pool=MultiScaleRoIAlign(levels, BOX_SIDE, sampling_ratio=0),
            mask_roi_pool=MultiScaleRoIAlign(levels, MASK_SIDE, sampling_ratio=0),
            box_detections_per_img=config.max_detections,
            _skip_resize=True,
        )
        self.net.transform.postprocess = lambda detections, *_: detections  # natjax leaves masks at 28 x 28, too
        boxes = torch.from_numpy(boxes_within(image_size))
        self.objects = {
            "boxes": boxes,
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "masks": torch.ones(len(boxes), image_size, image_size, dtype=torch.uint8),
        }

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]] | dict[str, torch.Tensor]:
        """Returns detections in [B, C, H, W]; in training the losses."""
        return self.net(list(images), [self.objects] * len(images) if self.training else None)

    def find_as_trained(self, image: torch.Tensor) -> None:
        """Sets the threshold of scores so that as many pass as of a trained model: of random weights it is all or none."""
        scores, head = [], self.net.roi_heads
        hook = head.box_predictor.register_forward_hook(lambda *call: scores.append(call[-1][0].softmax(-1)[:, 1:]))
        self(image[None])
        hook.remove()
        head.score_thresh = float(scores[0].flatten().topk(CANDIDATES).values[-1])
