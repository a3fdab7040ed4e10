// The same attention in tile registers (AMX), for bfloat16 caches: up to sixteen rows at once.
//
// A row's sums do not depend on the rows beside it, so one row alone gives the same as among sixteen.
#pragma once

#include "attention.h"
#include "tiles.h"

#ifdef HAS_TILES

// 0 to 3: sums. 4: queries, 5: keys. 6: values of sixteen tokens, two to a row, 7: their weights.
inline void begin_attention_tiles() {
  static const TileConfig config({16, 16, 16, 16, 16, 16, 8, 16}, {64, 64, 64, 64, 64, 64, 64, 32});
  _tile_loadconfig(&config);
}

// The most rows that share keys.
constexpr int ATTENTION_ROWS = 16;

// 1 to 16 rows, in ascending order of position; D a multiple of 32. `scores` holds 24 times the positions up to the
// last, rounded up to 16.
inline void attend_tiles(int count, const Texts& text, const QueryRow* rows, const Scores& rule, float* scores) {
  const int D = text.shape.width, P = text.shape.size, last = rows[count - 1].position;
  const int first = first_key(rows[0], rule), stride = last / LANES * LANES + LANES - first;
  alignas(64) uint16_t queries[8][ATTENTION_ROWS][32];
  for (int part = 0; part < D / 32; ++part)
    for (int r = 0; r < ATTENTION_ROWS; ++r) {
      if (r < count) memcpy(queries[part][r], rows[r].pairs + 16 * part, 64);
      else memset(queries[part][r], 0, 64);
    }
  for (int start = first; start <= last; start += LANES) {
    const uint8_t* keys = text.keys.at(text.shape, text.block(start), text.head) + 4 * text.slot(start);
    const char* soon = (const char*)text.values.at(text.shape, text.block(start), text.head) + 2 * text.slot(start) * D;
    for (int line = 0; line < 32 * D; line += 64) _mm_prefetch(soon + line, _MM_HINT_T0);
    _tile_zero(0);
    for (int part = 0; part < D / 32; ++part) {
      _tile_loadd(4, queries[part], 64);
      _tile_loadd(5, keys + (size_t)part * 64 * P, 4 * P);
      _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, scores + start - first, 4 * stride);
  }
  uint16_t* weights = (uint16_t*)(scores + ATTENTION_ROWS * stride);
  float inverse[ATTENTION_ROWS];
  for (int r = 0; r < ATTENTION_ROWS; ++r) {
    float* own = scores + r * stride;
    if (r >= count) {
      memset(weights + r * stride, 0, 2 * (size_t)stride);
      continue;
    }
    for (int s = 0; s < stride; s += LANES) store(own + s, adjusted(load<Floats>(own + s), rows[r], first + s, rule));
    inverse[r] = softmax(own, stride, rows[r].sink);
    for (int s = 0; s < stride; s += LANES) store(weights + r * stride + s, to_bf16(load<Floats>(own + s)));
  }
  alignas(64) float sums[ATTENTION_ROWS][4][LANES];
  for (int begin = 0; begin < D / LANES; begin += 4) {
    const int some = D / LANES - begin < 4 ? D / LANES - begin : 4;  // 2 or 4
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int start = first; start <= last; start += LANES) {
      const uint8_t* values = text.values.at(text.shape, text.block(start), text.head);
      values += 2 * text.slot(start) * D + 64 * begin;
      _tile_loadd(7, weights + start - first, 2 * stride);
      _tile_loadd(6, values, 4 * D);
      _tile_dpbf16ps(0, 7, 6);
      _tile_loadd(6, values + 64, 4 * D);
      _tile_dpbf16ps(1, 7, 6);
      if (some == 2) continue;
      _tile_loadd(6, values + 128, 4 * D);
      _tile_dpbf16ps(2, 7, 6);
      _tile_loadd(6, values + 192, 4 * D);
      _tile_dpbf16ps(3, 7, 6);
    }
    _tile_stored(0, sums[0][0], 256);
    _tile_stored(1, sums[0][1], 256);
    _tile_stored(2, sums[0][2], 256);
    _tile_stored(3, sums[0][3], 256);
    for (int r = 0; r < count; ++r)
      for (int j = 0; j < some; ++j) store(rows[r].out + LANES * (begin + j), load<Floats>(sums[r][j]) * inverse[r]);
  }
}

#endif
