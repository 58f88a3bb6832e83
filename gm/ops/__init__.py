"""What the networks are built of, as the backend computes it fastest; each equals the native operator it stands for.

MindSpore's CPU backend is quick with matrix products, convolutions and the addition of a bias. It is slow with
normalisations, sums along an axis, broadcasts and transposes, and keeps an index of 8 bytes an element of the last two.
So on the CPU what is slow is said in terms of what is quick; on Ascend the native operators are the fast ones. Which of
the two it is, the constructors ask the backend. Normalisations ask once more when they run: in PyNative mode a native
operator, though slow, is done before twenty quick ones are launched.
"""

from gm.ops.attention import attention
from gm.ops.gelu import gelu
from gm.ops.linear import convolution, projection
from gm.ops.norm import group_norm, layer_norm, softmax

__all__ = ["attention", "convolution", "gelu", "group_norm", "layer_norm", "projection", "softmax"]
