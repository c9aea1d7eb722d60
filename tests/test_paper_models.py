"""The paper's networks: their size, their initial weights, and that LAPerm permutes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import few_values
import p2t_jax as p2t
from common import models

pytestmark = pytest.mark.slow
NETWORKS = {
    "mlp": (models.MLP((500, 300, 10)), (28, 28, 1)),
    "resnet": (models.ResNet20(), (32, 32, 3)),
    "vgg": (models.VGG(dropout=(0.2, 0.3, 0.4)), (32, 32, 3)),
}


@functools.cache
def variables(name):
    model, shape = NETWORKS[name]
    return initialize(model, jnp.zeros((1, *shape)))


def initialize(model, x):
    key = jax.random.key(0, impl="rbg")  # compiles several times faster than the default
    return jax.jit(model.init)(key, x)


def shapes(name):
    model, shape = NETWORKS[name]
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))


def named_leaves(tree):
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def fan_in(path, params):
    """The inputs of the neurons of the layer that has the leaf at `path`."""
    for name in path[:-1]:
        params = params[name]
    return int(np.prod(params["kernel"].shape[:-1]))


@pytest.mark.parametrize(
    ("name", "count"), [("mlp", 545_810), ("resnet", 269_722), ("vgg", 307_498)]
)
def test_number_of_trainable_parameters(name, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(name)["params"])) == count


def test_resnet20_has_20_layers():
    kernels = [leaf for path, leaf in named_leaves(shapes("resnet")) if path[-1] == "kernel"]
    assert len(kernels) == 20
    assert [k.shape[-1] for k in kernels].count(64) == 6


def test_vgg_has_7_layers():
    kernels = {path[-2]: leaf.shape for path, leaf in named_leaves(shapes("vgg")["params"])
               if path[-1] == "kernel"}  # fmt: skip
    assert [kernels[f"Conv_{i}"][-1] for i in range(6)] == [32, 32, 64, 64, 128, 128]
    assert kernels["Dense_0"] == (4 * 4 * 128, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_weight_vectors_are_those_of_the_rule_and_of_the_network_itself(name):
    model, shape = NETWORKS[name]
    variables = shapes(name)
    params = variables.pop("params")
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    seen = p2t.infer_vectors(
        lambda params, x, others: model.apply({"params": params, **others}, x),
        params, images, variables,
    )  # fmt: skip
    flat = jax.tree.leaves(seen, is_leaf=lambda node: node is None or isinstance(node, tuple))
    for (path, leaf), axes in zip(named_leaves(params), flat, strict=True):
        assert axes == (tuple(range(leaf.ndim - 1)) if path[-1] == "kernel" else None), path
        rule = p2t.flax_vectors(path, leaf)
        assert ((rule,) if isinstance(rule, int) else rule) == axes, path


@pytest.mark.parametrize("name", NETWORKS)
def test_kaimings_normal_weights_and_biases(name):
    params = variables(name)["params"]
    biases = []
    for path, leaf in named_leaves(params):
        if path[-1] == "kernel":
            scaled = np.ravel(leaf) * np.sqrt(fan_in(path, params) / 2)
            tolerance = 4 / np.sqrt(scaled.size)
            assert abs(scaled.mean()) < tolerance
            assert abs(scaled.std() - 1) < tolerance
            assert (np.abs(scaled) < 0.6745).mean() == pytest.approx(0.5, abs=0.06 + tolerance)
        elif path[-1] == "bias" and "BatchNorm" not in path[-2]:
            biases.append(np.asarray(leaf) * np.sqrt(fan_in(path, params) / 2))
    biases = np.concatenate(biases)
    assert abs(biases.mean()) < 4 / np.sqrt(biases.size)
    assert abs(biases.std() - 1) < 4 / np.sqrt(2 * biases.size)


def test_kaimings_uniform_weights_and_biases():
    model = models.MLP((400, 100), models.he_uniform, models.uniform_bias)
    params = initialize(model, jnp.zeros((1, 49)))["params"]
    for path, leaf in named_leaves(params):
        limit = np.sqrt(6 / fan_in(path, params))
        assert 0.95 * limit < np.abs(np.asarray(leaf)).max() <= limit
        assert np.std(np.asarray(leaf)) == pytest.approx(limit / np.sqrt(3), rel=0.15)


def test_mlp_without_biases():
    x = jnp.zeros((1, 4))
    params = initialize(models.MLP((3, 2), use_bias=False), x)["params"]
    assert {path[-1] for path, _ in named_leaves(params)} == {"kernel"}


def test_mlp_is_relu_between_layers_only():
    model = models.MLP((6, 5, 4))
    x = jax.random.normal(jax.random.key(1), (3, 2, 2, 1))
    params = initialize(model, x)["params"]
    expected = np.asarray(x).reshape(3, 4)
    for i in range(3):
        layer = params[f"Dense_{i}"]
        expected = np.maximum(expected, 0) if i else expected
        expected = expected @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_training_permutes_the_kernels(name):
    """A few steps of LAPerm over Adam, on random images."""
    model, shape = NETWORKS[name]
    initial = variables(name)
    tx = p2t.laperm(optax.adam(1e-3), 10)
    images = jax.random.normal(jax.random.key(1), (4, *shape))
    labels = jnp.arange(4)

    @jax.jit
    def step(params, statistics, state, key):
        def loss(params):
            logits, mutated = model.apply(
                {"params": params, "batch_stats": statistics},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (mutated.get("batch_stats", {}), logits)

        grads, (statistics, logits) = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), statistics, state, logits

    params, statistics = initial["params"], initial.get("batch_stats", {})
    state = jax.jit(tx.init)(params)
    for key in jax.random.split(jax.random.key(2, impl="rbg"), 11):
        params, statistics, state, logits = step(params, statistics, state, key)
        assert logits.shape == (4, 10)
        assert np.isfinite(logits).all()

    final = jax.jit(p2t.permuted_params)(state, params)
    assert p2t.is_permutation(final, initial["params"])
    for (path, before), (_, after) in zip(
        named_leaves(initial["params"]), named_leaves(final), strict=True
    ):
        assert not np.array_equal(before, after), path
    for (path, before), (_, after) in zip(
        named_leaves(initial.get("batch_stats", {})), named_leaves(statistics), strict=True
    ):
        assert not np.array_equal(before, after), path
    assert (name == "resnet") == bool(jax.tree.leaves(statistics))


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_evaluation_is_image_by_image_and_repeatable(name):
    """Neither dropout nor the statistics of a batch."""
    model, shape = NETWORKS[name]
    images = jax.random.normal(jax.random.key(3), (4, *shape))
    apply = jax.jit(functools.partial(model.apply, variables(name)))
    logits = apply(images)
    assert logits.shape == (4, 10)
    np.testing.assert_allclose(apply(images[::-1]), logits[::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(images.at[1:].set(9.0))[0], logits[0], rtol=1e-4, atol=1e-5)


def test_dropout_only_where_asked():
    images, params, dropping = jnp.ones((4, 32, 32, 3)), variables("vgg"), NETWORKS["vgg"][0]

    @jax.jit
    def all_logits(keys):
        one, other = (
            dropping.apply(params, images, train=True, rngs={"dropout": key}) for key in keys
        )
        return dropping.apply(params, images), models.VGG().apply(params, images, True), one, other

    keys = jax.random.split(jax.random.key(0, impl="rbg"), 2)
    evaluated, without, one, other = all_logits(keys)
    np.testing.assert_allclose(evaluated, without, rtol=1e-5)
    assert (one != other).any()
    assert (one != evaluated).any()


def test_a_vision_transformer_is_a_stack_of_blocks_whose_weight_vectors_are_found():
    model, images = models.ViT(), jax.ShapeDtypeStruct((2, 28, 28, 1), "float32")
    params = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 105_418
    found = p2t.infer_vectors(model.apply, params, images)["params"]
    assert found["positions"] is None
    assert found["Dense_0"] == {"kernel": (0,), "bias": None}
    blocks = found["blocks"]
    assert blocks["Dense_0"]["kernel"] == blocks["Dense_1"]["kernel"] == (1,)  # 0: the blocks
    attention = blocks["MultiHeadDotProductAttention_0"]
    assert [attention[name]["kernel"] for name in ("query", "key", "value", "out")] == [
        (1,), (1,), (1,), (1, 2),
    ]  # fmt: skip


def test_a_vision_transformer_without_positions_does_not_know_where_patches_are():
    model = models.ViT(width=8, blocks=1, heads=2)
    image = jax.random.normal(jax.random.key(1), (1, 28, 28, 1))
    params = initialize(model, image)["params"]
    swapped = image.at[:, 0:7, 21:28].set(image[:, 14:21, 7:14])
    swapped = swapped.at[:, 14:21, 7:14].set(image[:, 0:7, 21:28])

    def logits(images, params):
        return model.apply({"params": params}, images)

    assert not np.allclose(logits(swapped, params), logits(image, params), rtol=1e-4)
    params["positions"] = jnp.zeros_like(params["positions"])
    np.testing.assert_allclose(logits(swapped, params), logits(image, params), rtol=1e-4, atol=1e-6)


# Networks of few values


def test_binary_and_ternary_weights_are_those_of_the_literature():
    w = jnp.array([[1.0, 4.0], [-3.0, -1.0], [-5.0, 0.5]])
    np.testing.assert_allclose(
        few_values.binary(w, 0), [[3, 5.5 / 3], [-3, -5.5 / 3], [-3, 5.5 / 3]]
    )
    np.testing.assert_allclose(few_values.ternary(w, 0), [[0, 4.0], [-4, 0], [-4, 0]])
    np.testing.assert_array_equal(few_values.ternary(jnp.zeros((3, 2)), 0), 0)


def test_a_straight_through_network_computes_with_quantized_weights_and_trains_free_ones():
    class Linear:
        def apply(self, variables, x):
            return x @ variables["params"]["kernel"]

    vectors, w = {"kernel": (0,)}, jnp.array([[1.0], [-3.0]])
    network = few_values.StraightThrough(Linear(), few_values.binary, vectors)

    def out(w):
        return network.apply({"params": {"kernel": w}}, jnp.array([[5.0, 7.0]])).sum()

    assert out(w) == 5 * 2 - 7 * 2
    assert jax.grad(out)(w).ravel().tolist() == [5.0, 7.0]


@pytest.mark.parametrize(("values", "bits"), [(2, 1), (3, 2), (16, 4)])
def test_bits_a_parameter_are_those_of_codes(values, bits):
    params = {"kernel": jnp.zeros((32, 8)), "bias": jnp.zeros(8)}
    params = p2t.reinitialize(0, params, p2t.initializers.kaiming(values=values))
    coded = p2t.codes.to_codes(params, bits=bits)
    size = coded["kernel"].codes.nbytes + coded["kernel"].values.nbytes + params["bias"].nbytes
    vectors = {"kernel": (0,), "bias": None}
    counted = few_values.bits_per_weight(f"LAPerm, {values} values", params, vectors)
    assert counted == pytest.approx(8 * size / (32 * 8 + 8), abs=1e-4)
