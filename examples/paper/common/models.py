"""The networks of Section 5, at Kaiming's scale (He et al., 2015)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

he_normal = nn.initializers.he_normal()
he_uniform = nn.initializers.he_uniform()


def normal_bias(fan_in):
    """The initializer of the biases of neurons with `fan_in` inputs: variance 2 / fan_in."""
    return nn.initializers.normal((2 / fan_in) ** 0.5)


def uniform_bias(fan_in):
    """As `normal_bias`, but uniform."""
    limit = (6 / fan_in) ** 0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


class MLP(nn.Module):
    """Dense layers with ReLU between them; images are flattened.

    Attributes:
        features: The neurons of every layer.
        kernel_init: The initializer of the weights.
        bias_init: Gives the initializer of the biases for a number of inputs, like `normal_bias`.
        use_bias: Whether there are biases.
        logit_scale: What the output is multiplied by: the inverse temperature of the softmax.
    """

    features: tuple[int, ...]
    kernel_init: Any = he_normal
    bias_init: Callable[[int], Any] = normal_bias
    use_bias: bool = True
    logit_scale: float = 1.0

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        for i, features in enumerate(self.features):
            x = nn.relu(x) if i else x
            x = nn.Dense(
                features,
                use_bias=self.use_bias,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init(x.shape[-1]),
            )(x)
        return self.logit_scale * x


class ResNet20(nn.Module):
    """He et al. (2016) for CIFAR-10: three stages of three blocks; 269,722 trainable parameters.

    Where the shape changes, the shortcut takes every other pixel and pads with zero channels, as
    the original does for CIFAR (its option A). Wants `mutable=["batch_stats"]` in training.
    """

    @nn.compact
    def __call__(self, x, train=False):
        def conv_norm(x, features, stride=1):
            x = nn.Conv(features, (3, 3), stride, padding=1, use_bias=False, kernel_init=he_normal)(
                x
            )
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(conv_norm(x, 16))
        for features in (16, 32, 64):
            for block in range(3):
                stride = 2 if features > 16 and block == 0 else 1
                y = nn.relu(conv_norm(x, features, stride))
                y = conv_norm(y, features)
                more = features - x.shape[-1]
                shortcut = x[:, ::stride, ::stride]
                shortcut = jnp.pad(shortcut, [(0, 0)] * 3 + [(more // 2, more // 2)])
                x = nn.relu(y + shortcut)
        x = x.mean(axis=(1, 2))
        return nn.Dense(10, kernel_init=he_normal, bias_init=normal_bias(x.shape[-1]))(x)


class VGG(nn.Module):
    """Section 5.2.2: six convolutions and a dense layer; 307,498 trainable parameters.

    Attributes:
        dropout: What part of its output is dropped after each pooling; (0.2, 0.3, 0.4) is the
            paper's for Adam. Wants `rngs={"dropout": key}` in training.
    """

    dropout: tuple[float, ...] = (0.0, 0.0, 0.0)

    @nn.compact
    def __call__(self, x, train=False):
        for features, rate in zip((32, 64, 128), self.dropout, strict=True):
            for _ in range(2):
                bias_init = normal_bias(9 * x.shape[-1])
                x = nn.Conv(features, (3, 3), kernel_init=he_normal, bias_init=bias_init)(x)
                x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.Dropout(rate, deterministic=not train)(x)
        x = x.reshape(len(x), -1)
        return nn.Dense(10, kernel_init=he_normal, bias_init=normal_bias(x.shape[-1]))(x)


class Block(nn.Module):
    """A block of a transformer; layers are normalized before they are used.

    Attributes:
        heads: The attention heads.
    """

    heads: int

    @nn.compact
    def __call__(self, x, _):
        width = x.shape[-1]
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.Dense(2 * width)(nn.LayerNorm()(x))
        return x + nn.Dense(width)(nn.gelu(y)), None


class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al., 2021); 105,418 parameters on 28 x 28 pixels.

    The blocks are one stack of parameters, which `nn.scan` runs through. There is no class token:
    the tokens are averaged.

    Attributes:
        patch: The side of a patch in pixels.
        width: The features of a token.
        blocks: The number of blocks.
        heads: The attention heads of a block.
    """

    patch: int = 7
    width: int = 64
    blocks: int = 3
    heads: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        n, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(n, rows, self.patch, columns, self.patch, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * columns, -1)
        x = nn.Dense(self.width)(x)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        stack = nn.scan(Block, length=self.blocks, **lift)
        x, _ = stack(self.heads, name="blocks")(x, None)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))
