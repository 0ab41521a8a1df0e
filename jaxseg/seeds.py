"""The run axis: the one place that maps single-seed functions over runs and devices."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg import trees
from jaxseg.settings.schema import Strategy
from jaxseg.types import StepLoop, UserError

STRATEGIES = typing.get_args(Strategy)


@dataclasses.dataclass(frozen=True)
class SeedPlan:
    """Layout of the run axis: the devices that it spans, and how the runs on one device are mapped.

    `vmap` batches the runs of a device into one set of operations; `loop` runs them one after another inside the
    compiled program. Under `loop`, a run gives the same bits alone or among others on the same number of devices. XLA
    may arrange the programs for one device and for several differently, which can change the last bit; it does not
    change the training of the U-Net (tests/test_train.py).
    """

    devices: tuple[jax.Device, ...]
    strategy: str

    @property
    def platform(self) -> str:
        """The platform of the devices, such as `cpu`, `gpu` or `tpu`."""
        return self.devices[0].platform

    @property
    def mesh(self) -> Mesh:
        """A 1-D mesh of the devices; a single device also forms a mesh."""
        # Axes are Auto: inside the map nothing is sharded, and Explicit axes would put shardings into its types.
        return jax.make_mesh((len(self.devices),), ("seed",), axis_types=(AxisType.Auto,), devices=self.devices)

    def padded(self, num_runs: int) -> int:
        """Return the size of the run axis, rounded up to a multiple of the number of devices."""
        return -(-num_runs // len(self.devices)) * len(self.devices)


def strategy_for(platform: str) -> str:
    """Return the strategy that `auto` means on a platform: a convolution batched over weights is slow on CPU."""
    return "loop" if platform == "cpu" else "vmap"


def make_plan(num_runs: int, *, strategy: str = "auto", devices: int | None = None) -> SeedPlan:
    """Choose devices and strategy for a number of runs.

    Args:
        num_runs: Number of runs mapped together; no more devices are used than there are runs.
        strategy: `vmap`, `loop`, or `auto`, which is `strategy_for` the platform of the devices.
        devices: Number of local devices to use; None for all.

    Raises:
        UserError: There are fewer devices than asked for, or the strategy is unknown.
    """
    available = jax.local_devices()
    if devices is not None and not 1 <= devices <= len(available):
        raise UserError(
            f"runtime.devices = {devices}, but this machine offers {len(available)} "
            f"{available[0].platform} device(s); use a number from 1 to {len(available)}, or 'auto'"
        )
    if strategy == "auto":
        strategy = strategy_for(available[0].platform)
    if strategy not in STRATEGIES:
        raise UserError(f"runtime.seed_map = {strategy!r}; allowed: 'auto', {', '.join(map(repr, STRATEGIES))}")
    available = sorted(available, key=lambda device: device.id)
    return SeedPlan(tuple(available[: min(devices or len(available), num_runs)]), strategy)


def map_seeds(
    fn: Callable[..., Any], *, plan: SeedPlan, shared: Sequence[int] = (), donate: Sequence[int] = ()
) -> Callable[..., Any]:
    """Map a single-seed function over the run axis, as one compiled program over all devices of the plan.

    The program is `jit(shard_map(inner))`: each device gets its share of the runs and maps them by the plan's
    strategy, with no communication between devices.

    Args:
        fn: Function of single-seed arguments that returns a tree of arrays.
        plan: Devices and strategy.
        shared: Positions of arguments that all runs share; they have no run axis and are not copied per run.
        donate: Positions of arguments whose memory the result may reuse.

    Returns:
        A function of the same arguments. All but the shared ones have a leading run axis whose size is a multiple of
        the number of devices (see `put`), and so have the results.
    """
    common_positions = frozenset(shared)

    def one_run(mapped: tuple[Any, ...], common: tuple[Any, ...]) -> Any:
        mapped_args, common_args = iter(mapped), iter(common)
        count = len(mapped) + len(common)
        return fn(*(next(common_args) if index in common_positions else next(mapped_args) for index in range(count)))

    def inner(*args: Any) -> Any:
        mapped = tuple(arg for index, arg in enumerate(args) if index not in common_positions)
        common = tuple(arg for index, arg in enumerate(args) if index in common_positions)
        return _each(lambda *own: one_run(own, common), plan)(*mapped)

    return _spread(inner, getattr(fn, "__name__", "mapped"), plan, common_positions, donate)


def map_steps(
    loop: StepLoop, *, plan: SeedPlan, donate: Sequence[int] = (), name: str = "steps"
) -> Callable[[Any, Any, Any, Any, Any, Any], Any]:
    """Map a training loop whose steps begin with a computation common to all runs over the run axis.

    The loop over steps is outside, and the map over runs inside it: a device computes `loop.common` once per step, for
    the first of its runs. The caller guarantees that it would be the same for any other run.

    Args:
        loop: Single-seed parts of the loop.
        plan: Devices and strategy.
        donate: Positions of arguments whose memory the result may reuse.
        name: Name of the program in profiles.

    Returns:
        `mapped(state, run, cohort, frozen, start, stop)`, as `train.make_train_chunk` mapped by `map_seeds` with all
        but the first two arguments shared.
    """

    def inner(state: Any, run: Any, cohort: Any, frozen: Any, start: jax.Array, stop: jax.Array) -> Any:
        def body(index: jax.Array, carry: Any) -> Any:
            first_carry, first_run = jax.tree.map(lambda leaf: leaf[0], (carry, run))
            found = loop.common(index - start, first_carry, first_run, cohort, frozen)
            return _each(lambda carry, run: loop.own(carry, run, found, cohort, frozen), plan)(carry, run)

        carry = lax.fori_loop(start, stop, body, _each(loop.begin, plan)(state))
        return _each(lambda carry: loop.finish(carry, stop - start), plan)(carry)

    return _spread(inner, name, plan, frozenset((2, 3, 4, 5)), donate)


def _each(fn: Callable[..., Any], plan: SeedPlan) -> Callable[..., Any]:
    """A function of arrays of several runs, by the plan's strategy."""
    if plan.strategy == "vmap":
        return jax.vmap(fn)
    return lambda *args: lax.map(lambda own: fn(*own), args)


def _spread(
    inner: Callable[..., Any], name: str, plan: SeedPlan, common: frozenset[int], donate: Sequence[int]
) -> Callable[..., Any]:
    """One program that gives each device of the plan its share of the runs, and all of the common arguments."""

    def outer(*args: Any) -> Any:
        in_specs = tuple(PartitionSpec() if index in common else PartitionSpec("seed") for index in range(len(args)))
        return jax.shard_map(
            inner, mesh=plan.mesh, in_specs=in_specs, out_specs=PartitionSpec("seed"), check_vma=False
        )(*args)

    outer.__name__ = name  # what compile logs and profiles call the program
    return jax.jit(outer, donate_argnums=tuple(donate))


def put(tree: Any, plan: SeedPlan) -> Any:
    """Place run-axis-first arrays on the plan's devices, repeating the last run to fill the axis.

    Processors share their memory with the host, which then cuts the arrays: JAX would compile a program for each shape.
    """
    if not jax.tree.leaves(tree):
        return tree
    if plan.platform == "cpu":
        tree = jax.tree.map(lambda leaf: leaf if trees.is_key(leaf) else np.asarray(leaf), tree)
    num_runs = trees.length(tree)
    index = np.minimum(np.arange(plan.padded(num_runs)), num_runs - 1)
    padded = tree if len(index) == num_runs else trees.take(tree, index)
    return jax.device_put(padded, NamedSharding(plan.mesh, PartitionSpec("seed")))


def replicate(tree: Any, plan: SeedPlan) -> Any:
    """Place arrays that all runs share on every device of the plan, once each."""
    return jax.device_put(tree, NamedSharding(plan.mesh, PartitionSpec()))


def fetch(tree: Any, num_runs: int) -> Any:
    """Copy run-axis-first arrays to the host as NumPy arrays, without the runs that only pad the axis."""

    def to_host(leaf: jax.Array) -> np.ndarray:
        data = jax.random.key_data(leaf) if trees.is_key(leaf) else leaf
        return np.asarray(data)[:num_runs]

    return jax.tree.map(to_host, tree)


def across_hosts(tree: Any, plan: SeedPlan) -> Any:
    """Join the run-axis-first arrays of all hosts without moving data; checkpoints save the result.

    Every host passes its own rows. All hosts have equally many rows and devices.
    """
    if jax.process_count() == 1:
        return tree
    used = len(plan.devices)
    by_host: dict[int, list[jax.Device]] = {}
    for device in sorted(jax.devices(), key=lambda device: (device.process_index, device.id)):
        by_host.setdefault(device.process_index, []).append(device)
    devices = [device for host in sorted(by_host) for device in by_host[host][:used]]
    everywhere = NamedSharding(Mesh(np.array(devices), ("seed",)), PartitionSpec("seed"))
    here = NamedSharding(plan.mesh, PartitionSpec("seed"))

    def join(leaf: jax.Array) -> jax.Array:
        shards = [shard.data for shard in jax.device_put(leaf, here).addressable_shards]
        shape = (len(by_host) * leaf.shape[0], *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, everywhere, shards)

    return jax.tree.map(join, tree)
