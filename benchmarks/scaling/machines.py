"""Machines: published rates, and what an exchange or a sum over devices takes at them."""

from __future__ import annotations

import dataclasses

DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclasses.dataclass(frozen=True)
class Machine:
    """Rates of a device.

    Attributes:
        name: of the device.
        flops: dense bfloat16 operations a second.
        memory: bytes a second.
        near: devices that are linked directly.
        link: bytes a second that a device sends them in one direction along one axis of the mesh.
        latency: seconds that an exchange takes beside its bytes.
        far_link: the same between groups of `near` devices; None where there is only one.
        far_latency: the same.
    """

    name: str
    flops: float
    memory: float
    near: int
    link: float
    latency: float
    far_link: float | None = None
    far_latency: float = 0.0

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of devices that can be linked."""
        return tuple(n for n in DEVICES if n <= self.near or self.far_link is not None)

    def send(self, messages: int, size: float, devices: int) -> float:
        """Returns the seconds of messages one after another, `size` bytes in all in the fuller direction."""
        if devices <= self.near:
            return messages * self.latency + size / self.link
        assert self.far_link is not None
        return messages * self.far_latency + size / self.far_link  # the slowest pair is of two groups

    def sum(self, size: float, devices: int) -> float:
        """Returns the seconds of a sum of `size` bytes over all devices: within groups, then between them."""
        near = min(devices, self.near)
        seconds = (self.latency + size / self.link) * (near - 1) / near  # both directions of a ring
        if devices > near:
            assert self.far_link is not None
            seconds += self.far_latency + 2 * size / near / self.far_link
        return seconds


MACHINES = (
    Machine("H200", 989e12, 4.8e12, near=8, link=225e9, latency=10e-6, far_link=50e9, far_latency=20e-6),
    Machine("TPU v5e", 197e12, 819e9, near=256, link=50e9, latency=2e-6),
)
