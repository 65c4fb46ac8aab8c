"""Bytes that the op moves on TPUs that are not here: `python tests/deviceless/tpu.py` (minutes) makes a table of docs/scaling.md.

Attention of NAT-Tiny's levels at batch 128 and 224 pixels in bfloat16, on one chip. The floor is every array once: query, key,
value and output, and with gradients these again, the output's gradient and three more.
"""

import argparse

from deviceless import TPUS, check_apart

PASSES = {"forward": ("op, forward, level {}", 4), "with gradients": ("op, level {}", 12)}


def floor_bytes(level: int, arrays: int) -> int:
    """Returns the bytes of so many arrays of tokens at a level, 1 to 4."""
    side, channels = 112 >> level, 32 << level
    return arrays * 2 * 128 * side**2 * channels


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=TPUS, action="append", help="default: all")
    kinds = parser.parse_args().kind or [*TPUS]
    print(f"| level | pass | floor, MB | {' | '.join(f'{kind}, MB' for kind in kinds)} |")
    print("|---|---|--:|" + "--:|" * len(kinds))
    for level in range(1, 5):
        for name, (check, arrays) in PASSES.items():
            floor = floor_bytes(level, arrays)
            moved = [check_apart(check.format(level), kind)["hbm_bytes"] for kind in kinds]
            cells = [f"{n / 1e6:.0f} ({n / floor:.1f} x)" for n in moved]
            print(f"| {level} | {name} | {floor / 1e6:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
