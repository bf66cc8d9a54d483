"""Kernels on NumPy arrays, in place, compared with NumPy's own."""

import numpy as np

import engine


def main() -> None:
    context = engine.Context(threads=2)
    rng = np.random.default_rng(1)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    a, b, bias = draw(37, 21), draw(21, 13), draw(13)
    product = context.gemm(a, b, bias=bias)
    np.testing.assert_allclose(product, a @ b + bias, rtol=1e-4, atol=1e-4)
    out = np.zeros((37, 13), np.float32)
    assert context.gemm(a, b, out=out) is out, "results go to where they are wanted"

    heads, d = 4, 8
    qkv = draw(2, 50, 3 * heads * d)
    q, k, v = qkv.reshape(2, 50, 3, heads, d).transpose(2, 0, 3, 1, 4)
    scores = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(d))
    expected = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(2, 50, -1)
    np.testing.assert_allclose(context.attention(qkv, heads), expected, rtol=1e-4, atol=1e-5)

    x, gamma, beta = draw(5, 64), draw(64), draw(64)
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(
        context.layernorm(x, gamma, beta), normal * gamma + beta, rtol=1e-4, atol=1e-5
    )

    x, gain = draw(3, 40, 6), draw(21, 6, 2)
    spectrum = np.fft.rfft(x, axis=1) * (gain[..., 0] + 1j * gain[..., 1])
    np.testing.assert_allclose(
        context.spectral(x, gain), np.fft.irfft(spectrum, 40, axis=1), rtol=1e-4, atol=1e-4
    )

    try:
        context.gemm(a, a)
    except engine.Error as error:
        print("refused:", error)
    else:
        raise SystemExit("shapes that do not fit were taken")


if __name__ == "__main__":
    main()
