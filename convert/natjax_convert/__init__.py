"""PyTorch checkpoints of NAT and DiNAT to Flax parameters and back, without PyTorch."""

from natjax_convert.convert import Report, convert, find_config
from natjax_convert.flax_params import from_flax, infer_config, to_flax
from natjax_convert.mapping import entries
from natjax_convert.rpb import resize_rpb
from natjax_convert.tensors import LazyTensor, read_state_dict

__all__ = [
    "LazyTensor",
    "Report",
    "convert",
    "entries",
    "find_config",
    "from_flax",
    "infer_config",
    "read_state_dict",
    "resize_rpb",
    "to_flax",
]
