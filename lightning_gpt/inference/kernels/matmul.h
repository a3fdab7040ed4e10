// y = x W^T + b in float32, bfloat16, int8 and int4.
//
// Legend as in weights.h. Every output adds its products in the same order whatever M is: a request's logits do not
// depend on what is computed beside it.
#pragma once

#include <type_traits>

#include "weights.h"

constexpr int AHEAD = 2048;  // bytes of each panel that are asked for before they are needed

// ---- one step of R rows by a quad -----------------------------------------------------------------------------------

// x is offset by 128 to be unsigned, which the sums of the weights take off again in the end.
inline Ints dot_int8(Ints sum, const uint8_t* w, uint32_t four) {
#ifdef __AVX512VNNI__
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four ^ 0x80808080u), _mm512_loadu_si512(w));
#else
  Ints weights = load<Ints>(w);
  for (int i = 0; i < 4; ++i) {
    int x = (int)((four >> (8 * i)) & 255) ^ 128;
    sum += ((weights << (24 - 8 * i)) >> 24) * x;
  }
  return sum;
#endif
}

// Sixteen pairs of whole numbers from W8's or W4's bytes, as bfloat16: exact, since they are below 256.
template <Kind kind>
inline void unpack_pair(const uint8_t* from, int pair, uint8_t* to) {
#ifdef __AVX512BW__
  if (kind == W4) {  // a table look-up: -8 to 7 as bfloat16
    const __m512i table = _mm512_castsi256_si512(_mm256_setr_epi16(
        (short)0xc100, (short)0xc0e0, (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040, (short)0xc000,
        (short)0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0));
    Words both = __builtin_convertvector(load<UBytes>(from + 16 * pair), Words);
    Words nibbles = (both | (both << 12)) & 0x000f000fu;
    store(to, (Words)_mm512_permutexvar_epi16((__m512i)nibbles, table));
    return;
  }
#endif
  Ints values[2];
  if (kind == W8) {
    Words both = __builtin_convertvector(load<Halves>(from + 32 * pair), Words);
    values[0] = ((Ints)both << 24) >> 24, values[1] = ((Ints)both << 16) >> 24;
  } else {
    Words both = __builtin_convertvector(load<UBytes>(from + 16 * pair), Words);
    values[0] = (Ints)(both & 15) - 8, values[1] = (Ints)(both >> 4) - 8;
  }
  Words low = to_bits(__builtin_convertvector(values[0], Floats));
  Words high = to_bits(__builtin_convertvector(values[1], Floats));
  store(to, (low >> 16) | (high & 0xffff0000u));
}

inline void unpack_step(const Matrix& w, const uint8_t* from, uint8_t* to) {
  for (int pair = 0; pair < 16; ++pair) {
    if (w.kind == W8) unpack_pair<W8>(from, pair, to + 64 * pair);
    else unpack_pair<W4>(from, pair, to + 64 * pair);
  }
}

// ---- R rows by a quad: the sums of all steps ------------------------------------------------------------------------

template <int R>
void sum_f32(const Matrix& w, int quad, const Rows& x, int m, Floats (*sums)[4]) {
  const float *panels[4], *rows[R];
  for (int p = 0; p < 4; ++p) panels[p] = (const float*)w.panel(4 * quad + p);
  for (int r = 0; r < R; ++r) rows[r] = (const float*)(x.data + (m + r) * x.stride);
  Floats total[R][4] = {};
  for (int k = 0; k < w.K; ++k)
    for (int p = 0; p < 4; ++p) {
      Floats weight = load<Floats>(panels[p] + LANES * k);
      for (int r = 0; r < R; ++r) total[r][p] += weight * rows[r][k];
    }
  memcpy(sums, total, sizeof total);
}

template <int R>
void sum_bf16(const Matrix& w, int quad, const Rows& x, int m, Floats (*sums)[4]) {
  const uint8_t* panels[4];
  const uint32_t* rows[R];
  for (int p = 0; p < 4; ++p) panels[p] = w.panel(4 * quad + p);
  for (int r = 0; r < R; ++r) rows[r] = (const uint32_t*)(x.data + (m + r) * x.stride);
  Floats total[R][4] = {};
  for (int pair = 0; pair < 16 * w.steps; ++pair)
    for (int p = 0; p < 4; ++p)
      for (int r = 0; r < R; ++r) total[r][p] = dot_bf16(total[r][p], panels[p] + 64 * (size_t)pair, rows[r][pair]);
  memcpy(sums, total, sizeof total);
}

template <int R>
void sum_int8(const Matrix& w, int quad, const Rows& x, int m, Ints (*sums)[4]) {
  const uint8_t* panels[4];
  const uint32_t* rows[R];
  for (int p = 0; p < 4; ++p) panels[p] = w.panel(4 * quad + p);
  for (int r = 0; r < R; ++r) rows[r] = (const uint32_t*)(x.data + (m + r) * x.stride);
  Ints total[R][4] = {};
  for (int four = 0; four < 16 * w.steps; ++four)
    for (int p = 0; p < 4; ++p)
      for (int r = 0; r < R; ++r) total[r][p] = dot_int8(total[r][p], panels[p] + 64 * (size_t)four, rows[r][four]);
  for (int p = 0; p < 4; ++p)
    for (int r = 0; r < R; ++r) total[r][p] -= 128 * load<Ints>(w.sums + LANES * (4 * quad + p));
  memcpy(sums, total, sizeof total);
}

// Groups are summed alone and then scaled.
template <int R, Kind kind>
void sum_grouped(const Matrix& w, int quad, const Rows& x, int m, Floats (*sums)[4]) {
  const uint32_t* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = (const uint32_t*)(x.data + (m + r) * x.stride);
  Floats total[R][4] = {};
  alignas(64) uint8_t weights[64];
  for (int p = 0; p < 4; ++p) {
    const uint8_t* panel = w.panel(4 * quad + p);
    const float* scale = w.scale + (size_t)LANES * w.groups * (4 * quad + p);
    for (int step = 0; step < w.steps;) {
      Floats part[R][2] = {};
      int end = step + w.group_steps < w.steps ? step + w.group_steps : w.steps;
      const Floats factor = load<Floats>(scale + LANES * (step / w.group_steps));
      for (; step < end; ++step)
        for (int pair = 0; pair < 16; ++pair) {
          unpack_pair<kind>(panel + (size_t)panel_bytes(kind) * step, pair, weights);
          for (int r = 0; r < R; ++r)
            part[r][pair & 1] = dot_bf16(part[r][pair & 1], weights, rows[r][16 * step + pair]);
        }
      for (int r = 0; r < R; ++r) total[r][p] += factor * (part[r][0] + part[r][1]);
    }
  }
  memcpy(sums, total, sizeof total);
}

#ifdef HAS_TILES
// Sixteen rows by a quad in the tile registers: 0 to 3 hold the sums, 4 holds x, 5 to 7 weights in turn.
template <class Sum, bool whole_numbers>
void sum_tiles(const Matrix& w, int quad, const Rows& x, int m, Sum (*sums)[4]) {
  const uint8_t *a = x.data + m * x.stride, *b = w.panel(4 * quad);
  size_t next = (size_t)w.steps * 1024;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < w.steps; ++step, a += 64, b += 1024) {
    // One core alone does not have enough loads under way to use the memory's speed.
    for (int p = 0; p < 4; ++p)
      for (int line = 0; line < 1024; line += 64) _mm_prefetch((const char*)b + p * next + AHEAD + line, _MM_HINT_T0);
    _tile_loadd(4, a, x.stride);
    _tile_loadd(5, b, 64);
    _tile_loadd(6, b + next, 64);
    _tile_loadd(7, b + 2 * next, 64);
    if (whole_numbers) {
      _tile_dpbssd(0, 4, 5);
      _tile_loadd(5, b + 3 * next, 64);
      _tile_dpbssd(1, 4, 6);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 4, 5);
    } else {
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(5, b + 3 * next, 64);
      _tile_dpbf16ps(1, 4, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 4, 5);
    }
  }
  _tile_stored(0, &sums[0][0], 256);
  _tile_stored(1, &sums[0][1], 256);
  _tile_stored(2, &sums[0][2], 256);
  _tile_stored(3, &sums[0][3], 256);
}

// Thirty-two rows by two panels: each tile that is loaded is used twice, which long prompts need.
template <class Sum, bool whole_numbers>
void sum_more_tiles(const Matrix& w, int panel, const Rows& x, int m, Sum (*sums)[2]) {
  const uint8_t *a = x.data + m * x.stride, *b = w.panel(panel);
  size_t below = TILE_ROWS * x.stride, next = (size_t)w.steps * 1024;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < w.steps; ++step, a += 64, b += 1024) {
    _tile_loadd(4, a, x.stride);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + next, 64);
    _tile_loadd(5, a + below, x.stride);
    if (whole_numbers) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, &sums[0][0], 128);
  _tile_stored(1, &sums[0][1], 128);
  _tile_stored(2, &sums[TILE_ROWS][0], 128);
  _tile_stored(3, &sums[TILE_ROWS][1], 128);
}

inline void sum_grouped_tiles(const Matrix& w, int quad, const Rows& x, int m, Floats (*sums)[4]) {
  alignas(64) uint8_t weights[1024];
  alignas(64) float part[TILE_ROWS][LANES];
  for (int p = 0; p < 4; ++p) {
    const uint8_t* panel = w.panel(4 * quad + p);
    const float* scale = w.scale + (size_t)LANES * w.groups * (4 * quad + p);
    for (int r = 0; r < TILE_ROWS; ++r) sums[r][p] = Floats{};
    for (int step = 0; step < w.steps;) {
      const Floats factor = load<Floats>(scale + LANES * (step / w.group_steps));
      int end = step + w.group_steps < w.steps ? step + w.group_steps : w.steps;
      _tile_zero(0);
      for (; step < end; ++step) {
        unpack_step(w, panel + (size_t)panel_bytes(w.kind) * step, weights);
        _tile_loadd(4, x.data + m * x.stride + 64 * step, x.stride);
        _tile_loadd(5, weights, 64);
        _tile_dpbf16ps(0, 4, 5);
      }
      _tile_stored(0, part, 64);
      for (int r = 0; r < TILE_ROWS; ++r) sums[r][p] += factor * load<Floats>(part[r]);
    }
  }
}
#endif

// ---- whole products -------------------------------------------------------------------------------------------------

// What is done with the sums of one row by two panels: pair p has outputs 32 p to 32 p + 31.
template <class Use, class Sum>
inline void finish(const Matrix& w, int pair, const Rows& x, int m, const Sum* sums, Use use) {
  Floats y[2];
  for (int p = 0; p < 2; ++p) {
    int panel = 2 * pair + p;
    if constexpr (std::is_same<Sum, Ints>::value)
      y[p] = __builtin_convertvector(sums[p], Floats) * load<Floats>(w.scale + LANES * panel) * x.scale[m];
    else
      y[p] = sums[p];
    if (w.bias) y[p] += load<Floats>(w.bias + LANES * panel);
  }
  use(m, pair, y);
}

// R rows by a quad, the first `count` of them wanted.
template <int R, class Sum, class Use>
inline void rows_by_quad(const Matrix& w, int quad, const Rows& x, int m, int count, Use use) {
  Sum total[R][4];
  if constexpr (std::is_same<Sum, Ints>::value) {
#ifdef HAS_TILES
    if constexpr (R == TILE_ROWS) sum_tiles<Ints, true>(w, quad, x, m, total);
    else
#endif
      sum_int8<R>(w, quad, x, m, total);
  }
#ifdef HAS_TILES
  else if (R == TILE_ROWS && w.kind == BF16) sum_tiles<Floats, false>(w, quad, x, m, total);
  else if (R == TILE_ROWS && w.kind != F32) sum_grouped_tiles(w, quad, x, m, total);
#endif
  else if (w.kind == F32) sum_f32<R>(w, quad, x, m, total);
  else if (w.kind == BF16) sum_bf16<R>(w, quad, x, m, total);
  else if (w.kind == W8) sum_grouped<R, W8>(w, quad, x, m, total);
  else sum_grouped<R, W4>(w, quad, x, m, total);
  for (int r = 0; r < count; ++r)
    for (int p = 0; p < 2; ++p) finish(w, 2 * quad + p, x, m + r, total[r] + 2 * p, use);
}

// All M rows by one quad.
template <class Sum, class Use>
inline void all_by_quad(const Matrix& w, int quad, const Rows& x, int M, bool tiles, Use use) {
  int m = 0;
#ifdef HAS_TILES
  if (tiles && w.kind != F32) {
    if (M >= 2 * TILE_ROWS && (w.kind == BF16 || w.kind == W8A8)) {
      Sum total[2 * TILE_ROWS][2];
      int end = M / (2 * TILE_ROWS) * (2 * TILE_ROWS);
      for (int pair = 2 * quad; pair < 2 * quad + 2; ++pair)
        for (m = 0; m < end; m += 2 * TILE_ROWS) {
          sum_more_tiles<Sum, std::is_same<Sum, Ints>::value>(w, 2 * pair, x, m, total);
          for (int r = 0; r < 2 * TILE_ROWS; ++r) finish(w, pair, x, m + r, total[r], use);
        }
    }
    for (; m < M; m += TILE_ROWS) rows_by_quad<TILE_ROWS, Sum>(w, quad, x, m, std::min(M - m, TILE_ROWS), use);
    return;
  }
#endif
  for (; m + 4 <= M; m += 4) rows_by_quad<4, Sum>(w, quad, x, m, 4, use);
  for (; m + 2 <= M; m += 2) rows_by_quad<2, Sum>(w, quad, x, m, 2, use);
  for (; m < M; ++m) rows_by_quad<1, Sum>(w, quad, x, m, 1, use);
}

// y = x W^T + b, handed to `use(row, pair, y[2])`. Called by all threads of a parallel region: each takes some quads.
template <class Use>
void multiply(const Matrix& w, const Rows& x, int M, bool tiles, Use use) {
#pragma omp for schedule(static)
  for (int quad = 0; quad < w.quads; ++quad) {
    if (w.kind == W8A8) all_by_quad<Ints>(w, quad, x, M, tiles, use);
    else all_by_quad<Floats>(w, quad, x, M, tiles, use);
  }
}
