"""How fast a model or the op is on this device: compiled programs, and the time they take.

    program = natjax.benchmarking.inference(natjax.get_config("nat_tiny"), batch=8, side=224)
    seconds = natjax.benchmarking.measure(program, seconds=10)

Weights are random and images noise: neither changes the time. The training step is `natjax_train`'s own. The op
has `natjax.benchmarking.op`, and what a problem of it asks for `natjax.benchmarking.costs`.
"""

from natjax.benchmarking.models import inference, random_model, training
from natjax.benchmarking.programs import Program, in_turn, measure

__all__ = ["Program", "in_turn", "inference", "measure", "random_model", "training"]
