"""`infer_vectors` on the layers of Flax, Equinox and Haiku, and beside the rules by name."""

from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import pytest
from flax import nnx
from infer_networks import (
    BLOCK,
    KEY,
    Block,
    Case,
    EqxAttention,
    Named,
    NnxEinsum,
    NnxNet,
    NnxStack,
    Scanned,
    Tied,
    Vmapped,
    equinox,
    eqx_rnn,
    eqx_stack,
    haiku,
    hk_rnn,
    linen,
    nnx_,
    stacked,
)
from vector_helpers import shape

import p2t_jax as p2t
from p2t_jax._vectors import named_leaves, vector_axes
from p2t_jax._vectors.match import axes_of

IMAGE = shape(1, 6, 6, 2)
CASES: dict[str, Callable[[], Case]] = {
    "linen Dense": lambda: linen(Named(lambda: nn.Dense(3)), {"Dense_0/kernel": (0,)}, shape(2, 4)),
    "linen DenseGeneral": lambda: linen(
        nn.DenseGeneral(3, axis=(-2, -1)), {"kernel": (0, 1)}, shape(2, 4, 5)
    ),
    "linen DenseGeneral, batched": lambda: linen(
        nn.DenseGeneral(3, axis=-1, batch_dims=(0,)), {"kernel": (1,)}, shape(2, 4, 5)
    ),
    "linen Einsum": lambda: linen(
        nn.Einsum((5, 4, 3), "bi,eio->beo"), {"kernel": (1,)}, shape(2, 4)
    ),
    "linen Conv": lambda: linen(
        Named(lambda: nn.Conv(3, (2, 2), (2, 2))), {"Conv_0/kernel": (0, 1, 2)}, IMAGE
    ),
    "linen Conv, dilated, circular": lambda: linen(
        Named(lambda: nn.Conv(3, (2, 2), padding="CIRCULAR", kernel_dilation=2)),
        {"Conv_0/kernel": (0, 1, 2)},
        IMAGE,
    ),
    "linen Conv, depthwise": lambda: linen(
        Named(lambda: nn.Conv(4, (2, 2), feature_group_count=2)),
        {"Conv_0/kernel": (0, 1, 2)},
        IMAGE,
    ),
    "linen ConvTranspose": lambda: linen(
        nn.ConvTranspose(3, (2, 2), (2, 2)), {"kernel": (0, 1, 2)}, IMAGE
    ),
    "linen ConvTranspose, flipped": lambda: linen(
        nn.ConvTranspose(3, (2, 2), transpose_kernel=True), {"kernel": (0, 1, 3)}, IMAGE
    ),
    "linen ConvLocal": lambda: linen(
        Named(lambda: nn.ConvLocal(3, (2, 2), padding="VALID")),
        {"ConvLocal_0/kernel": (2,)},
        IMAGE,
    ),
    "linen norms": lambda: linen(
        nn.Sequential([nn.LayerNorm(), nn.GroupNorm(2), nn.RMSNorm(), nn.InstanceNorm()]), {}, IMAGE
    ),
    "linen BatchNorm": lambda: linen(nn.BatchNorm(), {}, IMAGE, use_running_average=False),
    "linen WeightNorm": lambda: linen(
        nn.WeightNorm(nn.Dense(3)), {"layer_instance/kernel": (0,)}, shape(2, 4)
    ),
    "linen SpectralNorm": lambda: linen(
        nn.SpectralNorm(nn.Dense(3)),
        {"layer_instance/kernel": (0,)},
        shape(2, 4),
        update_stats=True,
    ),
    "linen attention": lambda: linen(
        Named(lambda: nn.MultiHeadDotProductAttention(2, normalize_qk=True)),
        {
            f"MultiHeadDotProductAttention_0/{name}/kernel": (0, 1) if name == "out" else (0,)
            for name in ("query", "key", "value", "out")
        },
        shape(1, 3, 4),
    ),
    "linen block": lambda: linen(Block(), BLOCK, shape(1, 5, 4), None),
    "linen scan": lambda: linen(Scanned(0), stacked(BLOCK, 0), shape(1, 5, 4)),
    "linen scan, along 1": lambda: linen(Scanned(1), stacked(BLOCK, 1), shape(1, 5, 4)),
    "linen scan, remat": lambda: linen(Scanned(0, True), stacked(BLOCK, 0), shape(1, 5, 4)),
    "linen vmap": lambda: linen(Vmapped(0), stacked(BLOCK, 0), shape(1, 5, 4)),
    "linen vmap, along 1": lambda: linen(Vmapped(1), stacked(BLOCK, 1), shape(1, 5, 4)),
    "linen LSTM": lambda: linen(
        nn.RNN(nn.OptimizedLSTMCell(3)),
        {f"cell/{a}{b}/kernel": (0,) for a in "ih" for b in "ifgo"},
        shape(2, 5, 4),
    ),
    "linen GRU": lambda: linen(
        nn.RNN(nn.GRUCell(3)),
        {f"cell/{a}{b}/kernel": (0,) for a in "ih" for b in "rzn"},
        shape(2, 5, 4),
    ),
    "linen ConvLSTM": lambda: linen(
        nn.RNN(nn.ConvLSTMCell(3, (2, 2))),
        {"cell/ih/kernel": (0, 1, 2), "cell/hh/kernel": (0, 1, 2)},
        shape(1, 3, 6, 6, 2),
    ),
    "linen Embed": lambda: linen(nn.Embed(7, 4), {}, shape(3, dtype="int32")),
    "nnx net": lambda: nnx_(
        NnxNet,
        {
            "conv/kernel": (0, 1, 2),
            "lora/kernel": (0,),
            "lora/lora/lora_a": (0,),
            "lora/lora/lora_b": (0,),
            "value": (0,),
        },
        IMAGE,
    ),
    "nnx attention": lambda: nnx_(
        lambda rngs: nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs),
        {
            f"{name}/kernel": (0, 1) if name == "out" else (0,)
            for name in ("query", "key", "value", "out")
        },
        shape(1, 3, 4),
    ),
    "nnx Einsum": lambda: nnx_(NnxEinsum, {"einsum/kernel": (1,)}, shape(1, 3, 4)),
    "nnx LSTM": lambda: nnx_(
        lambda rngs: nnx.RNN(nnx.LSTMCell(4, 3, rngs=rngs)),
        {
            f"cell/{a}{b}/kernel": (0,)
            for a in "ih"
            for b in ("i", "f_" if a == "i" else "f", "g", "o")
        },
        shape(2, 5, 4),
    ),
    "nnx GRU": lambda: nnx_(
        lambda rngs: nnx.RNN(nnx.GRUCell(4, 3, rngs=rngs)),
        {"cell/dense_i/kernel": (0,), "cell/dense_h/kernel": (0,)},
        shape(2, 5, 4),
    ),
    "nnx stack": lambda: nnx_(NnxStack, {"layers/kernel": (1,)}, shape(2, 4)),
    "nnx ConvTranspose": lambda: nnx_(
        lambda rngs: nnx.ConvTranspose(2, 3, (2, 2), transpose_kernel=True, rngs=rngs),
        {"kernel": (0, 1, 3)},
        IMAGE,
    ),
    "equinox MLP": lambda: equinox(
        eqx.nn.MLP(4, 3, 5, 2, key=KEY), {f"layers/{i}/weight": (1,) for i in range(3)}, shape(4)
    ),
    "equinox Conv": lambda: equinox(
        eqx.nn.Conv2d(2, 4, 2, groups=2, key=KEY), {"weight": (1, 2, 3)}, shape(2, 6, 6)
    ),
    "equinox ConvTranspose": lambda: equinox(
        eqx.nn.ConvTranspose2d(2, 4, 2, 2, key=KEY), {"weight": (1, 2, 3)}, shape(2, 6, 6)
    ),
    "equinox norms": lambda: equinox(
        eqx.nn.Sequential([eqx.nn.LayerNorm((4, 5)), eqx.nn.RMSNorm((4, 5))]),
        {},
        shape(4, 5),
    ),
    "equinox WeightNorm": lambda: equinox(
        eqx.nn.WeightNorm(eqx.nn.Linear(4, 3, key=KEY)), {"layer/weight": (1,)}, shape(4)
    ),
    "equinox attention": lambda: equinox(
        eqx.nn.MultiheadAttention(2, 4, key=KEY),
        {f"{n}_proj/weight": (1,) for n in ("query", "key", "value", "output")},
        *[shape(5, 4)] * 3,
    ),
    "equinox parameters query, key, value": lambda: equinox(
        EqxAttention(*jnp.ones((3, 4, 3))),
        {"query": (0,), "key": (0,), "value": (0,)},
        shape(5, 4),
    ),
    "equinox recurrent": eqx_rnn,
    "equinox stack": eqx_stack,
    "equinox Embedding": lambda: equinox(eqx.nn.Embedding(7, 4, key=KEY), {}, shape(dtype="int32")),
    "haiku MLP": lambda: haiku(
        lambda x: hk.nets.MLP([5, 3])(x),
        {"mlp/~/linear_0/w": (0,), "mlp/~/linear_1/w": (0,)},
        shape(2, 4),
    ),
    "haiku convolutions": lambda: haiku(
        lambda x: hk.Conv2DTranspose(3, 2)(hk.DepthwiseConv2D(2, 2)(hk.Conv2D(4, 2)(x))),
        {
            "conv2_d/w": (0, 1, 2),
            "depthwise_conv2_d/w": (0, 1, 2),
            "conv2_d_transpose/w": (0, 1, 3),
        },
        IMAGE,
    ),
    "haiku recurrent": lambda: haiku(
        hk_rnn, {"lstm/linear/w": (0,), "gru/w_i": (0,), "gru/w_h": (0,)}, shape(5, 4)
    ),
    "haiku attention": lambda: haiku(
        lambda x: hk.MultiHeadAttention(2, 3, w_init=hk.initializers.Constant(1))(x, x, x),
        {f"multi_head_attention/{n}/w": (0,) for n in ("query", "key", "value", "linear")},
        shape(5, 4),
    ),
    "haiku layer_stack": lambda: haiku(
        lambda x: hk.layer_stack(3)(lambda x: jnp.tanh(hk.Linear(4)(x)))(x),
        {"__layer_stack_no_per_layer/linear/w": (1,)},
        shape(2, 4),
    ),
    "haiku Embed": lambda: haiku(lambda i: hk.Embed(7, 4)(i), {}, shape(3, dtype="int32")),
    "haiku Embed, one-hot": lambda: haiku(
        lambda i: hk.Embed(7, 4, lookup_style="ONE_HOT")(i), {}, shape(3, dtype="int32")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_layers(name):
    case = CASES[name]()
    axes = p2t.infer_vectors(case.fn, case.params, *case.inputs)
    leaves = named_leaves(case.params)
    resolved = vector_axes(axes, case.params)  # as laperm and sgperm do
    found = {"/".join(path): a for (path, _), a in zip(leaves, resolved, strict=True) if a}
    assert found == case.expected

    for (path, leaf), inferred in zip(leaves, resolved, strict=True):
        try:
            by_name = axes_of(case.rule, path, leaf)
        except ValueError:
            continue  # It asks.
        assert by_name == inferred, path


def test_a_tied_embedding_is_asked_for():
    case = linen(Tied(), {}, shape(3, dtype="int32"))
    with pytest.raises(
        ValueError, match=r"Embed_0/embedding[^|]*contracted along axes \(1,\), and"
    ):
        p2t.infer_vectors(case.fn, case.params, *case.inputs)
    axes = p2t.infer_vectors(case.fn, case.params, *case.inputs, otherwise="flax")
    assert axes["Embed_0"] == {"embedding": None}
    assert axes["Dense_0"] == {"kernel": (0,), "bias": None}
