"""Calls of the fused kernels on meshes of eight devices: each on what it has, with one all-reduce for the bias's gradient.

The kernels are replaced by arithmetic that treats batch entries and heads as they do; what is under test is how their calls are
divided. This file is also the script that a process with eight CPU devices runs.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

CASES = [
    "auto",
    "auto with the mesh set",
    "explicit",
    "explicit with the bias sharded",
    "explicit, batch alone, the bias's gradient summed later",
    "auto, nothing placed",
    "explicit, nothing placed",
    "shard_map",
    "shard_map unchecked",
]

# Two heads of queries share one of keys, whose heads are sharded alike; or all share one, which no device can have a part of; or
# those that share one are on two devices (with Auto axes, JAX cannot name such a sharding). Additional keys and a mask, too.
GROUPED = [f"{kind}, {heads}" for kind in ("auto", "explicit") for heads in ("2 key heads", "1 key head")]
GROUPED += ["explicit, 2 key heads of 4"]

# What is sharded of mapped tokens [V, B, ...].
MAPPED = [
    f"vmap, {kind}, {sharded}"
    for kind in ("auto", "explicit")
    for sharded in ("replicated", "mapped axis", "batch", "both", "heads")
]


# The sum of drpb over the batch; where its type is replicated over sharded heads, also its gathering. Under vmap every entry has
# a drpb of its own, so tokens that are not sharded by the batch need none.
COLLECTIVES = {case: ["all-gather", "all-reduce"] if case == "explicit" else ["all-reduce"] for case in CASES}
COLLECTIVES |= {case: [] for case in CASES if case.endswith("nothing placed")}
COLLECTIVES |= {case: ["all-gather", "all-reduce"] for case in GROUPED} | {"auto, 2 key heads": ["all-reduce"]}
COLLECTIVES["explicit, 2 key heads of 4"] = ["all-gather"]
COLLECTIVES |= {case: ["all-reduce"] if case.endswith(("batch", "both")) else [] for case in MAPPED}


def test_meshes_change_nothing_and_cost_one_sum():
    """All cases in one process: starting it and the expected results are most of the time."""
    more = {"JAX_NUM_CPU_DEVICES": "8", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    command = [sys.executable, "-W", "error", str(pathlib.Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | more, check=False)
    assert done.returncode == 0, done.stderr
    reports = json.loads(done.stdout)
    assert {case: report["backward"] for case, report in reports.items()} == COLLECTIVES
    gathering = [case for case in GROUPED if not case.endswith("2 key heads")]
    assert [case for case, report in reports.items() if report["forward"]] == gathering
    errors = {case: max(report["errors"]) for case, report in reports.items()}
    assert all(error < 1e-5 for error in errors.values()), errors


def main():
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import natjax_kernels.triton.op as op
    from natjax_kernels import neighborhood_attention
    from natjax_kernels.partitioning import join_heads, split_heads

    def shared(group, q, *keys):
        """Joins the heads of queries, and repeats those of keys for all that share one."""
        return join_heads(q, 2, group), *(jnp.repeat(x, group, axis=2) for x in keys)

    def forward(launch, group, q, k, v, table, hidden, places):
        q, k, v = shared(group, q, k, v)
        table = join_heads(table, 1, group)
        v = v if hidden is None else v + jnp.maximum(hidden, -1)[..., None, None]
        bias = jnp.sum(jnp.maximum(table.astype(jnp.float32), 0), (0, 2, 3))[:, None]  # [N, 1]
        rows = (split_heads(jnp.sum(x, -1).swapaxes(1, 2), 1, group) for x in (q * k, q * v))
        return split_heads(q * k + v * bias, 2, group), *rows

    def backward(
        queries, keys, group, bias, q, k, v, do, out, maximum, log, table, transposed_table, d_lse, hidden, places
    ):
        q, k, v = shared(group, q, k, v)
        do, out = (join_heads(x, 2, group) for x in (do, out))
        table, *rows = (join_heads(x, 1, group) for x in (table, maximum, log))
        lse = sum(rows).swapaxes(1, 2)[..., None]
        d_table = jnp.einsum("bsnd,bsnd->n", do, v)[:, None, None] * jnp.ones_like(table, jnp.float32)
        d_keys = (x.reshape(*x.shape[:2], -1, group, x.shape[-1]).sum(axis=3) for x in (do * q, do + out))
        return split_heads(do * k * lse, 2, group), *d_keys, split_heads(d_table, 1, group)

    op._run, op._run_backward = forward, backward
    shape = (16, 9, 8, 4, 16)
    keys = jax.random.split(jax.random.key(0), 5)
    *tokens, rpb = (jax.random.normal(key, s) for key, s in zip(keys, [*[shape] * 4, (4, 5, 5)], strict=True))
    query, key, value, d_out = tokens

    def attend(query, key, value, rpb):
        return neighborhood_attention(query, key, value, rpb=rpb, kernel_size=3, implementation="triton")

    def gradients(query, key, value, rpb, d_out):
        out, pull = jax.vjp(attend, query, key, value, rpb)
        return out, *pull(d_out)

    arguments = (query, key, value, rpb, d_out)
    expected = jax.jit(gradients)(*arguments)

    def collectives(program):
        names = re.findall(
            r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(", program.as_text()
        )
        return sorted(set(names))

    def report(attend, gradients, arguments, expected=expected):
        program = jax.jit(gradients).lower(*arguments).compile()
        got = program(*arguments)
        pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(got, expected, strict=True)]
        errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs]
        alone = jax.jit(attend).lower(*arguments[:4]).compile()
        return {"errors": errors, "backward": collectives(program), "forward": collectives(alone)}

    def on(mesh, rpb_spec):
        tokens = NamedSharding(mesh, P("data", None, None, "model", None))
        shardings = (tokens, tokens, tokens, NamedSharding(mesh, rpb_spec), tokens)
        return [jax.device_put(x, s) for x, s in zip(arguments, shardings, strict=True)]

    def summed_later(query, key, value, rpb, d_out):
        rpb = jax.sharding.reshard(rpb, P(reduced={"data", "model"}))
        *results, d_rpb = gradients(query, key, value, rpb, d_out)
        assert jax.typeof(d_rpb).sharding.spec.unreduced == {"data", "model"}
        return *results, jax.sharding.reshard(d_rpb, P())

    auto, explicit = (
        jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2) for kind in (AxisType.Auto, AxisType.Explicit)
    )
    reports = {"auto": report(attend, gradients, on(auto, P()))}
    with jax.set_mesh(auto):
        reports["auto with the mesh set"] = report(attend, gradients, on(auto, P()))
    with jax.set_mesh(explicit):
        reports["explicit"] = report(attend, gradients, on(explicit, P()))
        reports["explicit with the bias sharded"] = report(attend, gradients, on(explicit, P("model")))
        images = P(("data", "model"))
        placed = [jax.device_put(x, P() if x is rpb else images) for x in arguments]
        reports["explicit, batch alone, the bias's gradient summed later"] = report(attend, summed_later, placed)
    for kind, mesh in (("auto", auto), ("explicit", explicit)):
        with jax.set_mesh(mesh):
            reports[f"{kind}, nothing placed"] = report(attend, gradients, arguments)
    data, whole = P("data"), P()
    line = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for name, check in (("shard_map", True), ("shard_map unchecked", False)):
        local = {"mesh": line, "check_vma": check}
        out = jax.shard_map(attend, in_specs=(data, data, data, whole), out_specs=data, **local)

        def all_of_them(*args, check=check):
            results = gradients(*args)
            # Unchecked, JAX does not know that drpb has to be summed over the shards.
            return results if check else (*results[:-1], jax.lax.psum(results[-1], "data"))

        specs = {"in_specs": (data, data, data, whole, data), "out_specs": (*[data] * 4, whole)}
        reports[name] = report(out, jax.shard_map(all_of_them, **specs, **local), arguments)

    mask = jax.random.bernoulli(keys[0], 0.9, shape[:3])

    def attend_masked(query, key, value, rpb):
        return neighborhood_attention(
            query,
            key,
            value,
            rpb=rpb,
            key_mask=jnp.broadcast_to(mask, key.shape[:3]),
            additional_keys=key[:, 0, :3],
            additional_values=value[:, 1, :3],
            kernel_size=3,
            implementation="triton",
        )

    def gradients_masked(query, key, value, rpb, d_out):
        out, pull = jax.vjp(attend_masked, query, key, value, rpb)
        return out, *pull(d_out)

    by_both, by_heads = P("data", None, None, "model"), P(None, None, None, "data")
    grouped = {
        "2 key heads": (by_both, by_both),
        "1 key head": (by_both, P("data")),
        "2 key heads of 4": (by_heads, P()),
    }
    for name, (of_queries, of_keys) in grouped.items():
        heads = int(name[0])
        few = [query, key[..., :heads, :], value[..., :heads, :], rpb, d_out]
        right = jax.jit(gradients_masked)(*few)
        for kind, mesh in (("auto", auto), ("explicit", explicit)):
            if f"{kind}, {name}" not in GROUPED:
                continue
            specs = (of_queries, of_keys, of_keys, P(), of_queries)
            with jax.set_mesh(mesh):
                put = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(few, specs, strict=True)]
                reports[f"{kind}, {name}"] = report(attend_masked, gradients_masked, put, right)

    # Forward the axis goes into the batch; backward every entry has a gradient of the bias, and they are worked through.
    def each(query, key, value, rpb, d_out):
        return jax.vmap(gradients, in_axes=(0, 0, 0, None, 0))(query, key, value, rpb, d_out)

    def each_forward(query, key, value, rpb):
        return jax.vmap(attend, in_axes=(0, 0, 0, None))(query, key, value, rpb)

    stacks = [x if x is rpb else jnp.stack([x * (i + 1) for i in range(4)]) for x in arguments]
    expected_of_each = jax.jit(each)(*stacks)
    places = {
        "replicated": P(),
        "mapped axis": P("data"),
        "batch": P(None, "data"),
        "both": P("data", "model"),
        "heads": P("data", None, None, None, "model"),
    }
    for kind, mesh in (("auto", auto), ("explicit", explicit)):
        for sharded, spec in places.items():
            of_rpb = P("model") if sharded == "heads" else P()
            with jax.set_mesh(mesh):
                put = [jax.device_put(x, NamedSharding(mesh, of_rpb if x is rpb else spec)) for x in stacks]
                reports[f"vmap, {kind}, {sharded}"] = report(each_forward, each, put, expected_of_each)
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
