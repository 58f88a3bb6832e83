"""gm/ops/ascend.py, through stand-ins for the kernels that the CPU lacks."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

from gm.ops import ascend
from tests.ops import stand_ins as kernels
from tests.ops.stand_ins import StandIns
from tests.reference.inputs import normal

pytestmark = pytest.mark.reference


@pytest.mark.parametrize(
    ("width", "taken"),
    [
        *((16, True), (64, True), (512, True), (20, False), (8, False), (528, False)),
        *((40, False), (80, True), (160, True)),  # the levels of Stable Diffusion 1
    ],
)
def test_the_flash_attention_kernel_takes_multiples_of_16_up_to_512(width: int, taken: bool) -> None:
    assert ascend.takes_heads(width) == taken
    assert ascend.can_attend(width, ms.bfloat16) == taken
    assert not ascend.can_attend(width, ms.float32)


@pytest.mark.parametrize(("width", "padded"), [(1, 16), (16, 16), (20, 32), (40, 48), (500, 512), (513, 513)])
def test_heads_are_padded_to_the_next_width_that_the_kernel_takes(width: int, padded: int) -> None:
    assert ascend.head_width(width) == padded


def test_linear() -> None:
    """The operator has a CPU kernel."""
    x, weight, bias = normal(1, 6, 5), normal(2, 8, 5), normal(3, 8)
    y = ascend.linear(Tensor(x), Tensor(weight), Tensor(bias)).asnumpy()
    np.testing.assert_allclose(y, x @ weight.T + bias, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_its_gradient_in_x(stride: int, stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ascend.Convolution(1, stride)
    monkeypatch.setattr(cell, "convolution_grad", kernels.convolution_grad)
    x, weight, bias = normal(1, 2, 3, 6, 8), normal(2, 4, 3, 3, 3), normal(3, 4)
    torch_x = torch.from_numpy(x).requires_grad_()
    expected = torch.nn.functional.conv2d(torch_x, torch.from_numpy(weight), torch.from_numpy(bias), stride, 1)
    dout = normal(4, *expected.shape)
    expected.backward(torch.from_numpy(dout))
    arguments = Tensor(x), Tensor(weight), Tensor(bias)
    out = cell.construct(*arguments)
    np.testing.assert_allclose(out.asnumpy(), expected.detach().numpy(), atol=1e-5)
    dx, dweight, dbias = cell.bprop(*arguments, out, Tensor(dout))
    np.testing.assert_allclose(dx.asnumpy(), torch_x.grad.numpy(), atol=1e-5)
    assert dweight is None  # frozen: the kernel is told not to compute them
    assert dbias is None


def test_convolution_asks_the_kernel_for_no_gradient_of_frozen_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = ascend.Convolution(1, 1)
    masks = []
    monkeypatch.setattr(cell, "convolution_grad", lambda *arguments: masks.append(arguments[-1]) or (None,))
    cell.bprop(*[Tensor(normal(k, 1, 1, 3, 3)) for k in range(5)])
    assert masks == [(1, 0, 0)]


def test_group_norm_weights_have_the_dtype_that_needs_no_cast() -> None:
    assert [ascend.group_norm_weight_dtype(dtype) for dtype in (ms.float32, ms.float16, ms.bfloat16)] == [
        *(ms.float32, ms.float16, ms.float32)
    ]
