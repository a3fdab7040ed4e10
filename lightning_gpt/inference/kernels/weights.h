// Weights packed once for a processor's dot products, and rows of x in the form that they take.
//
// Legend: M rows of x, N outputs, K inputs. Sixteen outputs are a panel, four panels a quad.
#pragma once

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>

#include "tiles.h"
#include "vector.h"

enum Kind {
  F32,   // float32 by float32
  BF16,  // bfloat16 by bfloat16, sums in float32
  W8A8,  // int8 by int8 rounded per row, sums in int32
  W8,    // int8 with a scale per group, by bfloat16
  W4,    // int4 with a scale per group, by bfloat16
};

constexpr int QUAD = 4 * LANES;
constexpr int TILE_ROWS = 16;

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Memory that begins at a page and lies in large pages where the system has them: weights are read from end to end.
inline void* big_memory(size_t bytes) {
  constexpr size_t LARGE = 1 << 21;
  void* memory = nullptr;
  size_t size = (bytes + LARGE - 1) / LARGE * LARGE;
  if (bytes < LARGE) size = (bytes + 63) / 64 * 64;
  if (posix_memalign(&memory, bytes < LARGE ? 64 : LARGE, size ? size : 64)) return nullptr;
  if (bytes >= LARGE) madvise(memory, size, MADV_HUGEPAGE);
  memset(memory, 0, size);
  return memory;
}

// How many numbers of x one step along K takes, and the bytes of a panel's weights in it.
inline int step_of(Kind kind) { return kind == F32 ? 1 : kind == W8A8 ? 64 : 32; }

inline int panel_bytes(Kind kind) {
  switch (kind) {
    case F32: return 64;
    case BF16: return 1024;
    case W8A8: return 1024;
    case W8: return 512;
    default: return 256;
  }
}

// Packed weights. A panel's step holds, for BF16, k pairs by outputs by 2; for W8A8, k fours by outputs by 4: what the
// processor's dot products take. W8 and W4 have BF16's order in a byte and in half a byte.
struct Matrix {
  Kind kind = F32;
  int N = 0, K = 0, quads = 0, steps = 0, group_steps = 0, groups = 0;
  uint8_t* data = nullptr;
  float* scale = nullptr;   // (panels, groups, 16); none for F32 and BF16
  float* bias = nullptr;    // (panels, 16)
  int32_t* sums = nullptr;  // (panels, 16), of a W8A8 row's weights

  ~Matrix() { free(data), free(scale), free(bias), free(sums); }

  const uint8_t* panel(int p) const { return data + (size_t)p * steps * panel_bytes(kind); }
};

inline int number_bytes(Kind kind) { return kind == F32 ? 4 : kind == W8A8 ? 1 : 2; }

// From one prepared row to the next: an odd number of cache lines, or the rows of a tile would fall into few of the
// first-level cache's sets.
inline size_t row_bytes(Kind kind, int K) {
  size_t lines = (size_t)round_up(K, 64) * number_bytes(kind) / 64;
  return 64 * (lines | 1);
}

// Rows of x in the form that a kind of weights takes; what is behind K stays zero.
struct Rows {
  uint8_t* data = nullptr;  // a multiple of 16 rows: tiles read whole
  float* scale = nullptr;   // of each row, for W8A8
  size_t stride = 0;
};

// One row into its form. x has K numbers and, behind, zeros up to a multiple of 16.
inline void prepare_row(Kind kind, const float* x, int K, uint8_t* to, float* scale) {
  int whole = round_up(K, LANES);
  if (kind == F32) {
    memcpy(to, x, 4 * (size_t)K);
  } else if (kind == W8A8) {
    Floats most{};
    for (int k = 0; k < whole; k += LANES) most = maximum(most, absolute(load<Floats>(x + k)));
    float limit = largest(most);
    *scale = limit / 127.0f;
    float inverse = limit > 0 ? 127.0f / limit : 0.0f;
    for (int k = 0; k < whole; k += LANES) {
      // Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even.
      Floats rounded = load<Floats>(x + k) * inverse + 12582912.0f;
      store(to + k, __builtin_convertvector((Ints)to_bits(rounded) - 0x4b400000, Bytes));
    }
  } else {
    for (int k = 0; k < whole; k += LANES) store((uint16_t*)to + k, to_bf16(load<Floats>(x + k)));
  }
}

// Weights as PyTorch has them, packed. Outputs are taken in the order of `rows` (-1 = a row of zeros), quads * 64 of
// them. Source: F32 and BF16 (N, K) of their type; W8A8 and W8 int8 (N, K); W4 uint8 (N, K / 2), value + 8, low half
// first; scale (N, groups) float32.
inline void pack(Matrix& w, Kind kind, int N, int K, int group, const void* source, const float* scale,
                 const float* bias, const int* rows, int count) {
  w.kind = kind, w.N = N, w.K = K, w.quads = count / QUAD;
  int step = step_of(kind);
  w.steps = (K + step - 1) / step;
  w.group_steps = kind == W8 || kind == W4 ? (group + step - 1) / step : w.steps;
  w.groups = kind == W8A8 ? 1 : (w.steps + w.group_steps - 1) / w.group_steps;
  w.data = (uint8_t*)big_memory((size_t)count / LANES * w.steps * panel_bytes(kind));
  if (kind > BF16) w.scale = (float*)big_memory((size_t)count * w.groups * 4);
  if (kind == W8A8) w.sums = (int32_t*)big_memory((size_t)count * 4);
  if (bias) w.bias = (float*)big_memory((size_t)count * 4);
  int per = kind == W8A8 ? 4 : 2;  // numbers of K that stand together
  // A panel at a time: sixteen outputs share the lines that are written.
#pragma omp parallel for schedule(static)
  for (int p = 0; p < count / LANES; ++p) {
    uint8_t* panel = w.data + (size_t)p * w.steps * panel_bytes(kind);
    for (int lane = 0; lane < LANES; ++lane) {
      const int i = p * LANES + lane, n = rows[i];
      if (n < 0) continue;
      if (w.scale)
        for (int g = 0; g < w.groups; ++g)
          w.scale[((size_t)p * w.groups + g) * LANES + lane] = scale[(size_t)n * w.groups + g];
      if (bias) w.bias[i] = bias[n];
      for (int k = 0; w.sums && k < K; ++k) w.sums[i] += ((const int8_t*)source)[(size_t)n * K + k];
    }
    if (kind == W4) {
      for (int k = 0; k < 16 * w.steps; ++k)
        for (int lane = 0; lane < LANES; ++lane) {
          const int n = rows[p * LANES + lane];  // zero is written as 8
          panel[16 * k + lane] = n >= 0 && 2 * k < K ? ((const uint8_t*)source)[(size_t)n * K / 2 + k] : 0x88;
        }
      continue;
    }
    for (int k = 0; k < K; ++k)
      for (int lane = 0; lane < LANES; ++lane) {
        const int n = rows[p * LANES + lane];
        if (n < 0) continue;
        const size_t from = (size_t)n * K + k, to = (size_t)(k / per) * LANES * per + lane * per + k % per;
        if (kind == F32) ((float*)panel)[LANES * k + lane] = ((const float*)source)[from];
        else if (kind == BF16) ((uint16_t*)panel)[to] = ((const uint16_t*)source)[from];
        else panel[to] = ((const uint8_t*)source)[from];
      }
  }
}
