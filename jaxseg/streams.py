"""Named random streams: the draws of a seed depend only on its id, the name of the stream and the step.

They never depend on how many seeds run in the same program, on the number of devices, or on interruptions.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

STREAMS = ("init", "order", "subset")


def hash_name(name: str) -> int:
    """Return a 32-bit number for a name, the same on every machine; Python's `hash` differs between processes."""
    return zlib.crc32(name.encode())


def host_rng(*words: int | str) -> np.random.Generator:
    """Return a NumPy generator for draws on the host that depend only on a seed and on their purpose.

    >>> bool(host_rng(0, "splits").random() == host_rng(0, "subset").random())
    False

    Args:
        *words: Seeds, names and indices that identify this draw, in a fixed order. Names are hashed.
    """
    return np.random.default_rng([hash_name(word) if isinstance(word, str) else word for word in words])


def fold_in_name(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Return a key of its own for every name, the same on every machine and in every process."""
    return jax.random.fold_in(key, hash_name(name) & 0x7FFFFFFF)


def stream_key(stream_id: int | jax.Array, stream: str) -> Key[Array, ""]:
    """Return the root key of one random stream.

    threefry is named explicitly: with the `rbg` implementation, which users may set as JAX's default, the numbers drawn
    from a key depend on how many keys are mapped together.
    """
    return fold_in_name(jax.random.key(stream_id, impl="threefry2x32"), stream)


def step_key(root: Key[Array, ""], step: int | jax.Array, purpose: str) -> Key[Array, ""]:
    """Return the key for one purpose of one training step of the run with this root key."""
    return fold_in_name(jax.random.fold_in(root, step), purpose)


def stream_id(seed: int, stream: str, *, vary: Sequence[str], base_seed: int) -> int:
    """Return the id that feeds a stream: the seed's own if the study varies this stream, otherwise the base seed."""
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}; streams are {STREAMS}")
    return seed if stream in vary else base_seed


def jit_draws(draw: Callable[..., Any], *, static_argnums: Sequence[int] = ()) -> Any:
    """Return `jax.jit` of a function that draws many numbers and runs a few times, such as that of initial weights.

    On a CPU it is compiled with few of LLVM's optimizations. All of them take 9 s for the initial weights of a small
    U-Net, few take 1 s; it runs in a moment either way, and the numbers are the same to the bit (docs/performance.md).
    """
    few = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(draw, static_argnums=static_argnums, compiler_options=few)
