// Sixteen floats at a time, for any processor that GCC's vector extensions reach.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <limits>

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes __attribute__((vector_size(16)));
typedef uint8_t UBytes __attribute__((vector_size(16)));

constexpr int LANES = 16;
constexpr float INF = std::numeric_limits<float>::infinity();

template <class Vector, class Source>
inline Vector load(const Source* from) {
  Vector v;
  memcpy(&v, from, sizeof v);
  return v;
}

template <class Vector, class Target>
inline void store(Target* to, Vector v) {
  memcpy(to, &v, sizeof v);
}

inline Floats all(float x) { return Floats{} + x; }

inline Floats from_bits(Words bits) { return load<Floats>(&bits); }

inline Words to_bits(Floats x) { return load<Words>(&x); }

// bfloat16 is the upper half of a float.
inline Floats from_bf16(const uint16_t* from) {
  return from_bits(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// Rounds to the nearest, ties to even, as PyTorch does. NaN stays NaN.
inline Halves to_bf16(Floats x) {
  Words bits = to_bits(x);
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words nan = (Words)(x != x);
  return __builtin_convertvector((nan & 0x7fc0) | (~nan & rounded), Halves);
}

inline float sum(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += x[i];
  return total;
#endif
}

inline float largest(Floats x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#else
  float most = x[0];
  for (int i = 1; i < LANES; ++i) most = x[i] > most ? x[i] : most;
  return most;
#endif
}

inline Floats choose(Ints mask, Floats yes, Floats no) { return mask ? yes : no; }

inline Floats maximum(Floats a, Floats b) { return choose(a > b, a, b); }

inline Floats absolute(Floats x) { return from_bits(to_bits(x) & 0x7fffffffu); }

// e^x to about 2 units in the last place; 0 far below, finite far above.
inline Floats exponential(Floats x) {
  x = choose(x < -87.3f, all(-87.4f), choose(x > 88.3f, all(88.3f), x));
  Floats rounded = x * 1.44269504088896341f + 12582912.0f;  // the nearest whole number, by the float's own rounding
  Ints power = (Ints)to_bits(rounded) - 0x4b400000;
  Floats whole = rounded - 12582912.0f;
  Floats rest = x - whole * 0.693145751953125f - whole * 1.42860682030941723212e-6f;
  Floats y = all(1.9875691500e-4f);
  y = y * rest + 1.3981999507e-3f;
  y = y * rest + 8.3334519073e-3f;
  y = y * rest + 4.1665795894e-2f;
  y = y * rest + 1.6666665459e-1f;
  y = y * rest + 5.0000001201e-1f;
  y = y * rest * rest + rest + 1.0f;
  y = y * from_bits((Words)(power + 127) << 23);
  return choose(x < -87.3f, Floats{}, y);
}

inline Floats tanh_of(Floats x) {
  Floats e = exponential(-2.0f * absolute(x));
  Floats y = (1.0f - e) / (1.0f + e);
  // Near zero the difference loses digits: x - x^3 / 3 + 2 x^5 / 15 there.
  Floats square = x * x;
  Floats near = absolute(x) * (1.0f - square * (0.33333333f - square * 0.13333333f));
  y = choose(absolute(x) < 0.05f, near, y);
  return from_bits(to_bits(y) | (to_bits(x) & 0x80000000u));
}

// Error function: erf(x) (Abramowitz & Stegun, 7.1.26, error below 1.5e-7).
inline Floats error_function(Floats x) {
  Floats a = absolute(x);
  Floats t = 1.0f / (1.0f + 0.3275911f * a);
  Floats y = all(1.061405429f);
  y = y * t - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  y = 1.0f - y * t * exponential(-(a * a));
  return from_bits(to_bits(y) | (to_bits(x) & 0x80000000u));
}

// sum + the products of sixteen pairs of bfloat16 in `w` with one pair.
inline Floats dot_bf16(Floats sum, const uint8_t* w, uint32_t pair) {
#ifdef __AVX512BF16__
  return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(w), (__m512bh)_mm512_set1_epi32(pair));
#else
  Words both = load<Words>(w);
  float low, high;
  uint32_t l = pair << 16, h = pair & 0xffff0000u;
  memcpy(&low, &l, 4), memcpy(&high, &h, 4);
  sum += from_bits(both << 16) * low;
  return sum + from_bits(both & 0xffff0000u) * high;
#endif
}
