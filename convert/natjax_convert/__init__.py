"""PyTorch checkpoints of NAT and DiNAT to Flax parameters and back, without PyTorch."""

from natjax_convert.checkpoint import Checkpoint, find_config
from natjax_convert.convert import Report, convert
from natjax_convert.inference import infer_config
from natjax_convert.params import entries, from_flax, to_flax
from natjax_convert.pieces import Parameter
from natjax_convert.reader import read_state_dict
from natjax_convert.rpb import resize_rpb
from natjax_convert.shapes import count_parameters, parameters
from natjax_convert.state_dict import LazyTensor

__all__ = [
    "Checkpoint",
    "LazyTensor",
    "Parameter",
    "Report",
    "convert",
    "count_parameters",
    "entries",
    "find_config",
    "from_flax",
    "infer_config",
    "parameters",
    "read_state_dict",
    "resize_rpb",
    "to_flax",
]
