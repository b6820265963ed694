// Functions of whole vectors, over any of the instruction sets in simd_*.h.
#pragma once

namespace mneme::kernels {
namespace {

// e^x to about one unit in the last place; x is clamped to [-87.3, 88.3].
template <typename S>
inline typename S::F Exp(typename S::F x) {
  x = S::Min(S::Max(x, S::Set(-87.3f)), S::Set(88.3f));
  // x = n ln 2 + r with |r| <= ln 2 / 2; ln 2 in two parts, so that r is exact.
  const auto n = S::ToIntNearest(S::Mul(x, S::Set(1.44269504f)));
  const auto nf = S::ToFloat(n);
  auto r = S::Fma(nf, S::Set(-0.693359375f), x);
  r = S::Fma(nf, S::Set(2.12194440e-4f), r);
  // e^r = 1 + r + r^2 p(r): a minimax polynomial of degree 5.
  auto p = S::Set(1.9875691500e-4f);
  p = S::Fma(p, r, S::Set(1.3981999507e-3f));
  p = S::Fma(p, r, S::Set(8.3334519073e-3f));
  p = S::Fma(p, r, S::Set(4.1665795894e-2f));
  p = S::Fma(p, r, S::Set(1.6666665459e-1f));
  p = S::Fma(p, r, S::Set(5.0000001201e-1f));
  const auto e = S::Fma(S::Mul(r, r), p, S::Add(r, S::Set(1.0f)));
  return S::Mul(e, S::AsFloat(S::template ShiftLeft<23>(S::AddInt(n, S::SetInt(127)))));
}

// gate / (1 + e^-gate) * up.
template <typename S>
inline typename S::F SiluMul(typename S::F gate, typename S::F up) {
  const auto one = S::Set(1.0f);
  return S::Mul(S::Div(gate, S::Add(one, Exp<S>(S::Sub(S::Set(0.0f), gate)))), up);
}

}  // namespace
}  // namespace mneme::kernels
