"""A forecast on a globe whose longitudes are split over devices. docs/scaling.md says what travels between them.

    JAX_NUM_CPU_DEVICES=8 python examples/weather.py                  # on eight pretended devices of a CPU
    python examples/weather.py --grid 181 360 --steps 300             # on those of a machine

The grid is periodic along longitude: windows wrap around, and so do the halos, from the last device to the first. The weather is
made up, so that the right forecast is known: waves that winds carry east or west, by other distances at every latitude, and that
fade. The model is a small one of the op alone; it is trained on the mesh, and then forecasts on one device what it forecasts on
all of them.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import natjax

CHANNELS, HEADS, KERNEL, LAYERS = 32, 4, 7, 2
BATCH, WAVES = 4, 12


def weather(seed: int, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns random weather and that of the next day, [B, latitude, longitude, 1] each."""
    latitudes, longitudes = grid
    rng = np.random.default_rng(seed)
    north = np.linspace(-np.pi / 2, np.pi / 2, latitudes)
    waves = np.arange(longitudes // 2 + 1)  # around the globe
    shape = BATCH, latitudes, WAVES + 1
    spectrum = np.zeros((BATCH, latitudes, len(waves)), complex)
    amplitudes = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    for _ in range(latitudes // 8):  # neighbouring latitudes have similar weather
        amplitudes[:, 1:-1] = (amplitudes[:, :-2] + 2 * amplitudes[:, 1:-1] + amplitudes[:, 2:]) / 4
    spectrum[:, :, : WAVES + 1] = amplitudes
    wind = 2.5 * np.cos(3 * north)[:, None]  # points of the grid that weather travels in a day, to the east
    change = np.exp(-2j * np.pi * waves * wind / longitudes - 0.002 * waves**2)
    today, tomorrow = (np.fft.irfft(x, longitudes)[..., None] for x in (spectrum, spectrum * change))
    return (today / today.std()).astype(np.float32), (tomorrow / today.std()).astype(np.float32)


def parameters(seed: int) -> dict:
    """Returns the model's parameters."""
    keys = iter(jax.random.split(jax.random.key(seed), 2 + 4 * LAYERS))

    def random(*shape: int, inputs: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) * inputs**-0.5

    def layer() -> dict:
        return {
            "qkv": random(3, CHANNELS, HEADS, CHANNELS // HEADS, inputs=CHANNELS),
            "rpb": jnp.zeros((HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1)),
            "out": random(HEADS, CHANNELS // HEADS, CHANNELS, inputs=CHANNELS),
            "up": random(CHANNELS, 4 * CHANNELS, inputs=CHANNELS),
            "down": random(4 * CHANNELS, CHANNELS, inputs=4 * CHANNELS),
        }

    return {
        "embed": random(3, CHANNELS, inputs=3),
        "layers": [layer() for _ in range(LAYERS)],
        "head": jnp.zeros(CHANNELS),
    }


def forecast(params: dict, today: jax.Array) -> jax.Array:
    """Returns the weather of the next day, [B, latitude, longitude, 1]."""
    north = jnp.linspace(-jnp.pi / 2, jnp.pi / 2, today.shape[1])[:, None, None]
    # The weather and where it is; of one shape and sharding, whatever that of the weather.
    x = jnp.concatenate([today, jnp.sin(north) + 0 * today, jnp.cos(3 * north) + 0 * today], axis=-1) @ params["embed"]
    for layer in params["layers"]:
        q, k, v = (jnp.einsum("byxc,cnd->byxnd", norm(x), w) for w in layer["qkv"])
        seen = natjax.neighborhood_attention(q, k, v, kernel_size=KERNEL, periodic=(False, True), rpb=layer["rpb"])
        x += jnp.einsum("byxnd,ndc->byxc", seen, layer["out"])
        x += jax.nn.gelu(norm(x) @ layer["up"]) @ layer["down"]
    return today + (x @ params["head"])[..., None]


def norm(x: jax.Array) -> jax.Array:
    """Returns tokens of mean 0 and variance 1."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-5)


def error(params: dict, today: jax.Array, tomorrow: jax.Array) -> jax.Array:
    """Returns the mean squared error of a forecast."""
    return jnp.mean((forecast(params, today) - tomorrow) ** 2)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Trains and forecasts as the command line asks, and returns what it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=(24, 64), metavar=("LATITUDES", "LONGITUDES"))
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args(arguments)
    grid = tuple(options.grid)

    mesh = jax.make_mesh((jax.device_count(),), ("longitude",))
    along_longitude, everywhere = (NamedSharding(mesh, spec) for spec in (P(None, None, "longitude"), P()))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, options.steps))
    params = jax.device_put(parameters(0), everywhere)
    state = jax.device_put(optimizer.init(params), everywhere)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, today, tomorrow):
        loss, gradients = jax.value_and_grad(error)(params, today, tomorrow)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    for i in range(options.steps):
        params, state, loss = step(params, state, *jax.device_put(weather(i, grid), along_longitude))
        if i % 20 == 0:
            print(f"step {i}: error {loss:.4f}")

    today, tomorrow = weather(options.steps, grid)  # which training has not seen
    predict = jax.jit(forecast)
    predicted, turned = (
        predict(params, jax.device_put(x, along_longitude)) for x in (today, np.roll(today, 5, axis=2))
    )
    alone = predict(jax.device_get(params), today)
    results = {
        "error of no change": float(np.mean((today - tomorrow) ** 2)),
        "error of the forecast": float(np.mean((predicted - tomorrow) ** 2)),
        "largest difference from one device": float(np.abs(np.asarray(predicted) - alone).max()),
        "largest difference on a turned globe": float(np.abs(np.roll(predicted, 5, axis=2) - turned).max()),
    }
    print(f"longitudes on each of {mesh.size} devices: {predicted.addressable_shards[0].data.shape[2]}")
    for name, value in results.items():
        print(f"{name}: {value:.2g}")
    return results


if __name__ == "__main__":
    main()
