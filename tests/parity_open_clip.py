"""OpenCLIP in an environment with the CPU build of torch: `from parity_open_clip import ...`."""

import torch

# torchvision's C++ library wants CUDA and is skipped; these two operators are all that is missed.
_library = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip  # noqa: E402

__all__ = ["open_clip", "torch"]
