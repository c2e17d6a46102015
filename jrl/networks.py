"""Networks: flax NNX modules made into pure functions on plain dicts of parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jrl.distributions import Categorical, Distribution, Normal
from jrl.types import Array, Bool, Key, Params, PyTree, Scalar

__all__ = [
    "ActorCritic",
    "Network",
    "RecurrentActorCritic",
    "actor_critic",
    "check_dtype",
    "functional",
    "unroll",
    "widen",
]


class Network(NamedTuple):
    """A pair of pure functions, and the memory of a recurrent network.

    `init(key) -> params`; `apply(params, carry, observation, reset) -> (output, carry)` on any
    leading axes; `carry(batch) -> carry` makes the first memory, `()` where there is none.
    `reset` marks observations that begin an episode: the memory is cleared before them.
    """

    init: Callable[[Key], Params]
    apply: Callable[..., tuple[Any, PyTree]]
    carry: Callable[[int], PyTree] = lambda batch: ()

    @property
    def recurrent(self) -> bool:
        """Whether the network remembers anything."""
        return bool(jax.tree.leaves(self.carry(1)))


def check_dtype(name: str) -> None:
    """Raises ValueError unless a network can compute in the dtype of that name."""
    if name not in ("float32", "bfloat16"):
        raise ValueError(f"config.compute_dtype must be float32 or bfloat16, got {name!r}")


def functional(make: Callable[[nnx.Rngs], nnx.Module]):
    """Splits a module once into `init(key) -> params` and `apply(params, *args)`.

    The parameters are a plain nested dict, the structure is merged back at trace time, and
    nothing but jax's own transformations is needed. Raises ValueError if the module holds
    state that is not `nnx.Param`: keys, caches and memories are arguments and results.

    >>> init, apply = functional(lambda rngs: nnx.Linear(2, 3, rngs=rngs))
    >>> apply(init(jax.random.key(0)), jnp.ones(2)).shape
    (3,)
    """
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)

    def init(key):
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)), nnx.Param)[1])

    def apply(params, *args):
        return nnx.merge(graph, params)(*args)

    return init, apply


def _orthogonal(scale: float):
    """Orthogonal initialisation that is safe under `vmap`.

    On a CPU a batched QR decomposition waits in one of XLA's threads for the others to share its
    work. Two of them at once on two cores wait for ever (seen with jaxlib 0.10.2), so a
    population's matrices are decomposed one by one.
    """
    initializer = nnx.initializers.orthogonal(scale)

    def initialize(key, shape, dtype=jnp.float32):
        return jax.custom_batching.sequential_vmap(lambda k: initializer(k, shape, dtype))(key)

    return initialize


def _dense(
    inputs: int, outputs: int, scale: float, rngs: nnx.Rngs, bias: bool = True, make=_orthogonal
):
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=make(scale), rngs=rngs)


def _normc(scale: float):
    """Gaussian initialisation with every column scaled to one length, as openai/baselines does."""

    def initialize(key, shape, dtype=jnp.float32):
        x = jax.random.normal(key, shape, dtype)
        return scale * x / jnp.linalg.norm(x, axis=0, keepdims=True)

    return initialize


INITIALIZERS = {"orthogonal": (_orthogonal, math.sqrt(2)), "normc": (_normc, 1.0)}
"""Names of initialisers, and what the hidden layers are scaled by."""


class MLP(nnx.Module):
    """Dense layers with an activation between them."""

    def __init__(
        self, sizes: Sequence[int], out_scale: float, activation, rngs: nnx.Rngs, initializer: str
    ):
        make, hidden = INITIALIZERS[initializer]
        scales = [hidden] * (len(sizes) - 2) + [out_scale]
        pairs = zip(sizes[:-1], sizes[1:], scales, strict=True)
        self.layers = nnx.List([_dense(i, o, scale, rngs, make=make) for i, o, scale in pairs])
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """Maps [..., inputs] to float32 [..., outputs], computing in the parameters' dtype."""
        x = x.astype(self.layers[0].kernel[...].dtype)
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x).astype(jnp.float32)


class Head(nnx.Module):
    """Turns the outputs of a network into a distribution over the actions of a space."""

    def __init__(self, action_space):
        self.discrete = hasattr(action_space, "n")
        if not self.discrete and len(action_space.shape) != 1:
            raise ValueError(
                f"actions of shape {action_space.shape}: continuous ones must be a vector (n,)"
            )
        self.size = action_space.n if self.discrete else action_space.shape[0]
        if not self.discrete:
            self.log_std = nnx.Param(jnp.zeros(self.size))

    def __call__(self, x: Array) -> Distribution:
        """Maps [..., size] to a distribution; the Gaussian's std does not depend on the state."""
        if self.discrete:
            return Categorical(x)
        log_std = self.log_std[...].astype(jnp.float32)
        return Normal(x, jnp.broadcast_to(log_std, x.shape))


class Encoder(nnx.Module):
    """Flattens an observation into a vector: one-hot for discrete ones, floats otherwise."""

    def __init__(self, observation_space):
        self.categories = getattr(observation_space, "n", 0)
        self.rank = len(observation_space.shape)
        self.size = self.categories or math.prod(observation_space.shape)

    def __call__(self, observation: Array) -> Array:
        """Maps [..., *shape] to [..., size]."""
        if self.categories:
            return jax.nn.one_hot(observation, self.categories)
        lead = observation.shape[: observation.ndim - self.rank]
        return observation.reshape(*lead, self.size).astype(jnp.float32)


class ActorCritic(nnx.Module):
    """Policy and state value in two networks that share nothing."""

    def __init__(
        self, observation_space, action_space, hidden, activation, initializer, rngs: nnx.Rngs
    ):
        self.encoder = Encoder(observation_space)
        self.head = Head(action_space)
        sizes = (self.encoder.size, *hidden)
        self.policy = MLP((*sizes, self.head.size), 0.01, activation, rngs, initializer)
        self.value = MLP((*sizes, 1), 1.0, activation, rngs, initializer)

    def __call__(self, carry: PyTree, observation: Array, reset: Bool[Array, "*batch"]):
        """Returns ((distribution, value), carry)."""
        x = self.encoder(observation)
        return (self.head(self.policy(x)), self.value(x)[..., 0]), carry


class RecurrentActorCritic(nnx.Module):
    """A gated recurrent unit below two networks, one for the policy and one for the value."""

    def __init__(
        self,
        observation_space,
        action_space,
        hidden,
        activation,
        initializer,
        memory: int,
        rngs: nnx.Rngs,
    ):
        self.encoder = Encoder(observation_space)
        self.head = Head(action_space)
        self.embed = _dense(self.encoder.size, memory, math.sqrt(2), rngs)
        # Without a bias on the hidden side: one bias per gate is all that is identifiable.
        self.inputs = _dense(memory, 3 * memory, 1.0, rngs)
        self.hidden = _dense(memory, 3 * memory, 1.0, rngs, bias=False)
        self.activation = activation
        self.policy = MLP((memory, *hidden, self.head.size), 0.01, activation, rngs, initializer)
        self.value = MLP((memory, *hidden, 1), 1.0, activation, rngs, initializer)

    def __call__(self, carry: Array, observation: Array, reset: Bool[Array, "*batch"]):
        """Advances the memory by one observation; returns ((distribution, value), carry).

            h <- (1 - z) n + z h,  n = tanh(W x + r U h)

        Source: Cho et al. 2014, https://arxiv.org/abs/1406.1078, in the variant of cuDNN.
        """
        dtype = self.embed.kernel[...].dtype
        carry = jnp.where(jnp.expand_dims(reset, -1), 0.0, carry).astype(dtype)
        x = self.encoder(observation).astype(dtype)
        x = self.inputs(self.activation(self.embed(x)))
        xr, xz, xn = jnp.split(x, 3, -1)
        hr, hz, hn = jnp.split(self.hidden(carry), 3, -1)
        update = jax.nn.sigmoid(xz + hz)
        candidate = jnp.tanh(xn + jax.nn.sigmoid(xr + hr) * hn)
        carry = ((1 - update) * candidate + update * carry).astype(jnp.float32)
        return (self.head(self.policy(carry)), self.value(carry)[..., 0]), carry


def actor_critic(
    observation_space,
    action_space,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = jnp.tanh,
    memory: int = 0,
    initializer: str = "orthogonal",
) -> Network:
    """Makes the network of the on-policy algorithms; `memory` > 0 gives it a GRU of that size.

    The output is (distribution over actions, state value [...]). Hidden layers begin orthogonal
    with gain sqrt 2, or ("normc", as openai/baselines' ppo1) Gaussian with the weights of each
    unit scaled to length 1; the policy's last layer is scaled to 0.01, the value's to 1. Raises
    ValueError for another `initializer`.

    >>> from jrl.envs.spaces import Box, Discrete
    >>> network = actor_critic(Box(-1.0, 1.0, (3,)), Discrete(2))
    >>> params = network.init(jax.random.key(0))
    >>> (policy, value), carry = network.apply(params, (), jnp.ones((5, 3)), jnp.zeros(5, bool))
    >>> policy.logits.shape, value.shape
    ((5, 2), (5,))
    """
    if initializer not in INITIALIZERS:
        names = ", ".join(INITIALIZERS)
        raise ValueError(f"initializer must be one of {names}, got {initializer!r}")
    sizes = (observation_space, action_space, hidden, activation, initializer)
    if not memory:
        return Network(*functional(lambda rngs: ActorCritic(*sizes, rngs)))
    init, apply = functional(lambda rngs: RecurrentActorCritic(*sizes, memory, rngs))
    return Network(init, apply, lambda batch: jnp.zeros((batch, memory)))


def widen(params: Params, log_std: Scalar) -> Params:
    """Adds to the logarithm of a Gaussian policy's standard deviation; leaves the rest alone."""

    def one(path, x):
        return x + log_std if jax.tree_util.keystr(path[-1:], simple=True) == "log_std" else x

    return jax.tree_util.tree_map_with_path(one, params)


def unroll(network: Network, params: Params, carry: PyTree, observation: Array, reset: Array):
    """Applies a network along the leading (time) axis.

    Returns the outputs [T, ...] and the memories after each step [T, ...]. A network without
    memory sees all steps at once.
    """
    if not network.recurrent:
        return network.apply(params, carry, observation, reset)

    def body(carry, x):
        output, carry = network.apply(params, carry, *x)
        return carry, (output, carry)

    return jax.lax.scan(body, carry, (observation, reset))[1]
