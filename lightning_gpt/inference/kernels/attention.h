// Attention of new tokens to the blocks of their requests (PagedAttention; Kwon et al., 2023).
//
// Legend: H query heads, KV key/value heads, D head width, P positions in a block, R query rows that share keys.
#pragma once

#include "vector.h"

enum Stored { STORED_F32, STORED_BF16, STORED_INT8, STORED_INT4 };

// One layer's keys or values: (blocks, KV, P, D) in their type; INT8 with scales (blocks, KV, P), INT4 with low halves
// first, value + 8, and scales (blocks, KV, P, D / 32).
struct Blocks {
  Stored type;
  uint8_t* data;
  float* scales;
};

struct CacheShape {
  int kv_heads, size, width;  // KV, P, D

  int width_bytes(Stored type) const {
    return type == STORED_F32 ? 4 * width : type == STORED_BF16 ? 2 * width : type == STORED_INT8 ? width : width / 2;
  }
  int scales(Stored type) const { return type == STORED_INT8 ? 1 : type == STORED_INT4 ? width / 32 : 0; }
  size_t place(int block, int head, int slot) const { return ((size_t)block * kv_heads + head) * size + slot; }
};

// Sixteen numbers of one key or value. Of INT4, vector j has the even numbers of 32 for even j and the odd ones for odd
// j: queries are put into this order once and results back.
template <Stored type>
inline Floats part(const uint8_t* from, const float* scales, int j) {
  if (type == STORED_F32) return load<Floats>((const float*)from + LANES * j);
  if (type == STORED_BF16) return from_bf16((const uint16_t*)from + LANES * j);
  if (type == STORED_INT8) return __builtin_convertvector(load<Bytes>(from + LANES * j), Floats) * scales[0];
  Words both = __builtin_convertvector(load<UBytes>(from + LANES * (j / 2)), Words);
  Ints values = (Ints)(j % 2 ? both >> 4 : both & 15) - 8;
  return __builtin_convertvector(values, Floats) * scales[j / 2];
}

inline void split_pairs(const float* from, int width, float* to) {
  for (int start = 0; start < width; start += 32)
    for (int i = 0; i < LANES; ++i) to[start + i] = from[start + 2 * i], to[start + LANES + i] = from[start + 2 * i + 1];
}

inline void join_pairs(const float* from, int width, float* to) {
  for (int start = 0; start < width; start += 32)
    for (int i = 0; i < LANES; ++i) to[start + 2 * i] = from[start + i], to[start + 2 * i + 1] = from[start + LANES + i];
}

// One key or value into its place. `from` may be read only.
inline void write_place(const Blocks& blocks, const CacheShape& shape, size_t place, const float* from) {
  uint8_t* to = blocks.data + place * shape.width_bytes(blocks.type);
  int D = shape.width;
  if (blocks.type == STORED_F32) {
    memcpy(to, from, 4 * (size_t)D);
  } else if (blocks.type == STORED_BF16) {
    for (int d = 0; d < D; d += LANES) store((uint16_t*)to + d, to_bf16(load<Floats>(from + d)));
  } else if (blocks.type == STORED_INT8) {
    float limit = 0;
    for (int d = 0; d < D; ++d) limit = std::fmax(limit, std::fabs(from[d]));
    float inverse = limit > 0 ? 127.0f / limit : 0.0f;
    for (int d = 0; d < D; ++d) to[d] = (uint8_t)(int8_t)std::nearbyint(from[d] * inverse);
    blocks.scales[place] = limit / 127.0f;
  } else {
    for (int start = 0; start < D; start += 32) {
      float limit = 0;
      for (int d = start; d < start + 32; ++d) limit = std::fmax(limit, std::fabs(from[d]));
      float inverse = limit > 0 ? 7.0f / limit : 0.0f;
      for (int d = start; d < start + 32; d += 2) {
        int low = (int)std::nearbyint(from[d] * inverse) + 8, high = (int)std::nearbyint(from[d + 1] * inverse) + 8;
        to[d / 2] = (uint8_t)(low | high << 4);
      }
      blocks.scales[place * (D / 32) + start / 32] = limit / 7.0f;
    }
  }
}

// What scores go through before the softmax.
struct Scores {
  int window;     // 0 = everything before
  float softcap;  // 0 = none
};

struct QueryRow {
  const float* query;  // D numbers, already multiplied by the scale
  float* out;          // D numbers
  int position;
  float slope;         // of ALiBi
  float sink;          // -inf = none
};

// R rows of one key/value head against a request's keys. `scores` holds R times `keys`, rounded up to 16.
template <int R, Stored type>
void attend_rows(const QueryRow* rows, const Blocks& keys, const Blocks& values, const CacheShape& shape, int head,
                 const int* table, const Scores& rule, float* scores) {
  const int D = shape.width, P = shape.size, vectors = D / LANES;
  const int bytes = shape.width_bytes(type), scales = shape.scales(type);
  int last = rows[R - 1].position, first = rule.window ? rows[0].position - rule.window + 1 : 0;
  first = first < 0 ? 0 : first / LANES * LANES;
  const int stride = last / LANES * LANES + LANES - first;
  // Keys are walked in order: `slot` in block number `block` of the request's table.
  int block = first / P, slot = first % P;
  for (int start = first; start <= last; start += LANES) {
    Floats products[R][LANES] = {};
    int count = last + 1 - start < LANES ? last + 1 - start : LANES;
    for (int i = 0; i < count; ++i) {
      size_t place = shape.place(table[block], head, slot);
      const uint8_t* key = keys.data + place * bytes;
      // The value is needed soon, and so is the next block's key: blocks lie anywhere.
      const size_t ahead = start + i + P <= last ? shape.place(table[block + 1], head, slot) : place;
      for (int line = 0; line < bytes; line += 64) {
        _mm_prefetch((const char*)values.data + place * bytes + line, _MM_HINT_T0);
        _mm_prefetch((const char*)keys.data + ahead * bytes + line, _MM_HINT_T0);
      }
      Floats total[R] = {};
      for (int j = 0; j < vectors; ++j) {
        Floats k = part<type>(key, keys.scales + place * scales, j);
        for (int r = 0; r < R; ++r) total[r] += k * load<Floats>(rows[r].query + LANES * j);
      }
      for (int r = 0; r < R; ++r) products[r][i] = total[r];
      if (++slot == P) slot = 0, ++block;
    }
    const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (int r = 0; r < R; ++r) {
      Floats score = sums(products[r]);
      if (rule.softcap) score = rule.softcap * tanh_of(score / rule.softcap);
      Ints distance = rows[r].position - start - lanes;
      if (rows[r].slope) score -= rows[r].slope * __builtin_convertvector(distance, Floats);
      Ints seen = distance >= 0;
      if (rule.window) seen &= distance < rule.window;
      store(scores + r * stride + start - first, choose(seen, score, all(-INF)));
    }
  }
  float inverse[R];
  for (int r = 0; r < R; ++r) {
    float* own = scores + r * stride;
    Floats most = all(rows[r].sink);
    for (int s = 0; s < stride; s += LANES) most = maximum(most, load<Floats>(own + s));
    float peak = largest(most);
    Floats total{};
    for (int s = 0; s < stride; s += LANES) {
      Floats weight = exponential(load<Floats>(own + s) - peak);
      total += weight;
      store(own + s, weight);
    }
    inverse[r] = 1.0f / (sum(total) + (rows[r].sink == -INF ? 0.0f : std::exp(rows[r].sink - peak)));
  }
  for (int begin = 0; begin < vectors; begin += 4) {
    const int some = vectors - begin < 4 ? vectors - begin : 4;
    Floats y[R][4] = {};
    block = first / P, slot = first % P;
    for (int s = first; s <= last; ++s) {
      size_t place = shape.place(table[block], head, slot);
      if (++slot == P) slot = 0, ++block;
      const uint8_t* value = values.data + place * bytes;
      const float* scale = values.scales + place * scales;
      if (some == 4) {
        for (int j = 0; j < 4; ++j) {
          Floats v = part<type>(value, scale, begin + j);
          for (int r = 0; r < R; ++r) y[r][j] += scores[r * stride + s - first] * v;
        }
      } else {
        for (int j = 0; j < some; ++j) {
          Floats v = part<type>(value, scale, begin + j);
          for (int r = 0; r < R; ++r) y[r][j] += scores[r * stride + s - first] * v;
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < some; ++j) store(rows[r].out + LANES * (begin + j), y[r][j] * inverse[r]);
  }
}

template <Stored type>
void attend_some(int count, const QueryRow* rows, const Blocks& keys, const Blocks& values, const CacheShape& shape,
                 int head, const int* table, const Scores& rule, float* scores) {
  switch (count) {
    case 1: return attend_rows<1, type>(rows, keys, values, shape, head, table, rule, scores);
    case 2: return attend_rows<2, type>(rows, keys, values, shape, head, table, rule, scores);
    case 3: return attend_rows<3, type>(rows, keys, values, shape, head, table, rule, scores);
    default: return attend_rows<4, type>(rows, keys, values, shape, head, table, rule, scores);
  }
}

// One to four rows, in ascending order of position, in whatever type the cache has.
inline void attend(int count, const QueryRow* rows, const Blocks& keys, const Blocks& values, const CacheShape& shape,
                   int head, const int* table, const Scores& rule, float* scores) {
  switch (keys.type) {
    case STORED_F32: return attend_some<STORED_F32>(count, rows, keys, values, shape, head, table, rule, scores);
    case STORED_BF16: return attend_some<STORED_BF16>(count, rows, keys, values, shape, head, table, rule, scores);
    case STORED_INT8: return attend_some<STORED_INT8>(count, rows, keys, values, shape, head, table, rule, scores);
    default: return attend_some<STORED_INT4>(count, rows, keys, values, shape, head, table, rule, scores);
  }
}
