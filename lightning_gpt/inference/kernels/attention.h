// Attention of new tokens to the blocks of their requests (PagedAttention; Kwon et al., 2023).
//
// Legend: KV key/value heads, D head width, P positions in a block (a multiple of 16), R query rows that share keys.
//
// Within a block and head, keys lie so that one number of sixteen keys is one vector: no sum runs across a vector.
//   float32   keys (D, P)            values (P, D)
//   bfloat16  keys (D / 2, P, 2)     values (P / 2, D, 2): what the processor's dot products take
//   int8      keys (D, P)            values (P, D), and a scale for each key and value
//   int4      keys (D / 2, P) bytes  values (P, D / 2) bytes: two numbers + 8 in a byte, the even one in the low half;
//             scales of groups of numbers: keys' (G, P), values' (P, G)
// Numbers and scales are those of nn/quantized_cache.py.
#pragma once

#include "vector.h"

enum Stored { STORED_F32, STORED_BF16, STORED_INT8, STORED_INT4 };

struct CacheShape {
  int kv_heads, size, width;  // KV, P, D

  static constexpr int GROUP = 32;  // numbers that share a scale in int4

  size_t bytes(Stored type) const {
    size_t numbers = (size_t)size * width;
    if (type == STORED_INT4) return numbers / 2;
    return type == STORED_F32 ? 4 * numbers : type == STORED_BF16 ? 2 * numbers : numbers;
  }
  size_t scales(Stored type) const {
    return type == STORED_INT8 ? size : type == STORED_INT4 ? (size_t)size * (width / GROUP) : 0;
  }
};

// One layer's keys or values.
struct Blocks {
  Stored type;
  uint8_t* data;
  float* scales;

  uint8_t* at(const CacheShape& shape, int block, int head) const {
    return data + ((size_t)block * shape.kv_heads + head) * shape.bytes(type);
  }
  float* scales_at(const CacheShape& shape, int block, int head) const {
    return scales + ((size_t)block * shape.kv_heads + head) * shape.scales(type);
  }
};

// ---- writing --------------------------------------------------------------------------------------------------------

// Numbers as whole multiples of their largest magnitude / most; returns the scale.
inline float round_to(const float* from, int count, int most, int* to) {
  float limit = 0;
  for (int i = 0; i < count; ++i) limit = std::fmax(limit, std::fabs(from[i]));
  float scale = limit / most, divisor = std::fmax(scale, 1.17549435e-38f);
  for (int i = 0; i < count; ++i) to[i] = (int)std::nearbyint(from[i] / divisor);
  return scale;
}

// One token's key (or value) of one head into its slot.
inline void write_slot(const Blocks& blocks, const CacheShape& shape, int block, int head, int slot, const float* from,
                       bool key) {
  const int D = shape.width, P = shape.size;
  uint8_t* to = blocks.at(shape, block, head);
  float* scales = blocks.scales_at(shape, block, head);
  if (blocks.type == STORED_F32) {
    for (int d = 0; d < D; ++d) ((float*)to)[key ? d * P + slot : slot * D + d] = from[d];
  } else if (blocks.type == STORED_BF16) {
    uint16_t rounded[LANES];
    for (int d = 0; d < D; d += LANES) {
      store(rounded, to_bf16(load<Floats>(from + d)));
      for (int i = 0; i < LANES; ++i) {
        int n = d + i;
        ((uint16_t*)to)[key ? (n / 2 * P + slot) * 2 + n % 2 : (slot / 2 * D + n) * 2 + slot % 2] = rounded[i];
      }
    }
  } else {
    const int group = blocks.type == STORED_INT8 ? D : shape.GROUP, groups = D / group;
    int rounded[512];
    for (int g = 0; g < groups; ++g) {
      float scale = round_to(from + g * group, group, blocks.type == STORED_INT8 ? 127 : 7, rounded);
      scales[key ? g * P + slot : slot * groups + g] = scale;
      for (int i = 0; i < group; ++i) {
        int n = g * group + i;
        if (blocks.type == STORED_INT8) {
          to[key ? n * P + slot : slot * D + n] = (uint8_t)(int8_t)rounded[i];
        } else if (i % 2 == 0) {
          to[key ? n / 2 * P + slot : slot * (D / 2) + n / 2] = (uint8_t)((rounded[i] + 8) | (rounded[i + 1] + 8) << 4);
        }
      }
    }
  }
}

// ---- reading --------------------------------------------------------------------------------------------------------

struct QueryRow {
  const float* query;     // D numbers, already multiplied by the scale
  const uint32_t* pairs;  // the same in bfloat16, for a bfloat16 cache
  float* out;             // D numbers
  int position;
  float slope;            // of ALiBi
  float sink;             // -inf = none
};

// What scores go through before the softmax.
struct Scores {
  int window;     // 0 = everything before
  float softcap;  // 0 = none
};

inline Floats low_half(UBytes bytes) {
  return __builtin_convertvector((Ints)(__builtin_convertvector(bytes, Words) & 15) - 8, Floats);
}

inline Floats high_half(UBytes bytes) {
  return __builtin_convertvector((Ints)(__builtin_convertvector(bytes, Words) >> 4) - 8, Floats);
}

// Products of R queries with the sixteen keys from `slot` on.
template <int R, Stored type>
inline void score_keys(const QueryRow* rows, const uint8_t* keys, const float* scales, const CacheShape& shape,
                       int slot, Floats* scores) {
  const int D = shape.width, P = shape.size;
  Floats total[R][2] = {};  // two sums, so that one is ready while the other is under way
  if (type == STORED_F32) {
    for (int d = 0; d < D; ++d) {
      Floats k = load<Floats>((const float*)keys + d * P + slot);
      for (int r = 0; r < R; ++r) total[r][d & 1] += rows[r].query[d] * k;
    }
  } else if (type == STORED_BF16) {
    for (int pair = 0; pair < D / 2; pair += 2)
      for (int half = 0; half < 2; ++half) {
        const uint8_t* k = keys + 4 * ((size_t)(pair + half) * P + slot);
        for (int r = 0; r < R; ++r) total[r][half] = dot_bf16(total[r][half], k, rows[r].pairs[pair + half]);
      }
  } else if (type == STORED_INT8) {
    for (int d = 0; d < D; ++d) {
      Floats k = __builtin_convertvector(load<Bytes>(keys + d * P + slot), Floats);
      for (int r = 0; r < R; ++r) total[r][d & 1] += rows[r].query[d] * k;
    }
    Floats scale = load<Floats>(scales + slot);
    for (int r = 0; r < R; ++r) total[r][0] *= scale, total[r][1] *= scale;
  } else {
    for (int g = 0; g < D / shape.GROUP; ++g) {
      Floats part[R] = {};
      for (int pair = g * shape.GROUP / 2; pair < (g + 1) * shape.GROUP / 2; ++pair) {
        UBytes both = load<UBytes>(keys + pair * P + slot);
        Floats low = low_half(both), high = high_half(both);
        for (int r = 0; r < R; ++r) part[r] += rows[r].query[2 * pair] * low + rows[r].query[2 * pair + 1] * high;
      }
      Floats scale = load<Floats>(scales + g * P + slot);
      for (int r = 0; r < R; ++r) total[r][0] += part[r] * scale;
    }
  }
  for (int r = 0; r < R; ++r) scores[r] = total[r][0] + total[r][1];
}

// Adds sixteen values from `slot` on, numbers 16 begin to 16 (begin + J) - 1 of each, with their weights. Of int4,
// vector j has the even numbers of a pair of vectors for even j and the odd ones for odd j.
template <int R, Stored type, int J>
inline void add_values(const float* const* weights, const uint8_t* values, const float* scales, const CacheShape& shape,
                       int slot, int begin, Floats (*y)[J]) {
  const int D = shape.width;
  if (type == STORED_BF16) {
    uint32_t pairs[R][LANES / 2];
    for (int r = 0; r < R; ++r) store(pairs[r], to_bf16(load<Floats>(weights[r])));
    for (int i = 0; i < LANES / 2; ++i)
      for (int j = 0; j < J; ++j) {
        const uint8_t* v = values + 4 * ((size_t)(slot / 2 + i) * D + LANES * (begin + j));
        for (int r = 0; r < R; ++r) y[r][j] = dot_bf16(y[r][j], v, pairs[r][i]);
      }
    return;
  }
  const int groups = D / shape.GROUP;
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < J; ++j) {
      Floats v;
      if (type == STORED_F32) {
        v = load<Floats>((const float*)values + (slot + i) * D + LANES * (begin + j));
      } else if (type == STORED_INT8) {
        v = __builtin_convertvector(load<Bytes>(values + (slot + i) * D + LANES * (begin + j)), Floats);
        v *= scales[slot + i];
      } else {
        const int start = (begin + j) / 2 * LANES;  // bytes: of thirty-two numbers
        UBytes both = load<UBytes>(values + (slot + i) * (D / 2) + start);
        v = (begin + j) % 2 ? high_half(both) : low_half(both);
        v *= scales[(slot + i) * groups + 2 * start / shape.GROUP];
      }
      for (int r = 0; r < R; ++r) y[r][j] += weights[r][i] * v;
    }
}

inline void join_pairs(const float* from, int width, float* to) {
  for (int start = 0; start < width; start += 32)
    for (int i = 0; i < LANES; ++i) {
      to[start + 2 * i] = from[start + i];
      to[start + 2 * i + 1] = from[start + LANES + i];
    }
}

// One request's keys and values of one head.
struct Texts {
  Blocks keys, values;
  CacheShape shape;
  int head;
  const int* table;

  // Where the chunk of sixteen from a position on lies.
  int block(int start) const { return table[start / shape.size]; }
  int slot(int start) const { return start % shape.size; }
};

template <int R, Stored type, int J>
inline void weigh_values(const Texts& text, const QueryRow* rows, const float* const* weights, int first, int last,
                         int begin, const float* inverse) {
  Floats y[R][J] = {};
  for (int start = first; start <= last; start += LANES) {
    const int block = text.block(start);
    const float* own[R];
    for (int r = 0; r < R; ++r) own[r] = weights[r] + start - first;
    add_values<R, type, J>(own, text.values.at(text.shape, block, text.head),
                           text.values.scales_at(text.shape, block, text.head), text.shape, text.slot(start), begin, y);
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < J; ++j) store(rows[r].out + LANES * (begin + j), y[r][j] * inverse[r]);
}

// Scores of sixteen keys from `start` on, as the softmax takes them.
inline Floats adjusted(Floats score, const QueryRow& row, int start, const Scores& rule) {
  const Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints distance = row.position - start - lanes;
  if (rule.softcap) score = rule.softcap * tanh_of(score / rule.softcap);
  if (row.slope) score -= row.slope * __builtin_convertvector(distance, Floats);
  Ints seen = distance >= 0;
  if (rule.window) seen &= distance < rule.window;
  return choose(seen, score, all(-INF));
}

// Weights in place of scores, and what is left to multiply by: 1 / their sum.
inline float softmax(float* scores, int count, float sink) {
  Floats most = all(sink), total{};
  for (int s = 0; s < count; s += LANES) most = maximum(most, load<Floats>(scores + s));
  const float peak = largest(most);
  for (int s = 0; s < count; s += LANES) {
    Floats weight = exponential(load<Floats>(scores + s) - peak);
    total += weight;
    store(scores + s, weight);
  }
  return 1.0f / (sum(total) + (sink == -INF ? 0.0f : std::exp(sink - peak)));
}

// First key that any of the rows sees, down to a multiple of sixteen.
inline int first_key(const QueryRow& earliest, const Scores& rule) {
  int first = rule.window ? earliest.position - rule.window + 1 : 0;
  return first < 0 ? 0 : first / LANES * LANES;
}

// R rows, in ascending order of position. `scores` holds R times the positions up to the last, rounded up to 16.
template <int R, Stored type>
void attend_rows(const Texts& text, const QueryRow* rows, const Scores& rule, float* scores) {
  const int D = text.shape.width, vectors = D / LANES, last = rows[R - 1].position;
  const int first = first_key(rows[0], rule);
  const int stride = last / LANES * LANES + LANES - first;
  const int chunk = (int)(text.shape.bytes(type) / (text.shape.size / LANES));  // bytes of sixteen keys
  for (int start = first; start <= last; start += LANES) {
    const int block = text.block(start), slot = text.slot(start);
    // Values are needed soon, and so are the next block's keys: blocks lie anywhere.
    const uint8_t* soon = text.values.at(text.shape, block, text.head) + slot / LANES * chunk;
    const int next = start + LANES <= last ? start + LANES : start;
    const uint8_t* then = text.keys.at(text.shape, text.block(next), text.head) + text.slot(next) / LANES * chunk;
    for (int line = 0; line < chunk; line += 64) {
      _mm_prefetch((const char*)soon + line, _MM_HINT_T0);
      _mm_prefetch((const char*)then + line, _MM_HINT_T0);
    }
    Floats found[R];
    score_keys<R, type>(rows, text.keys.at(text.shape, block, text.head),
                        text.keys.scales_at(text.shape, block, text.head), text.shape, slot, found);
    for (int r = 0; r < R; ++r) store(scores + r * stride + start - first, adjusted(found[r], rows[r], start, rule));
  }
  float inverse[R];
  const float* weights[R];
  for (int r = 0; r < R; ++r) {
    weights[r] = scores + r * stride;
    inverse[r] = softmax(scores + r * stride, stride, rows[r].sink);
  }
  int begin = 0;
  for (; begin + 4 <= vectors; begin += 4) weigh_values<R, type, 4>(text, rows, weights, first, last, begin, inverse);
  for (; begin < vectors; ++begin) weigh_values<R, type, 1>(text, rows, weights, first, last, begin, inverse);
  if (type == STORED_INT4)
    for (int r = 0; r < R; ++r) {
      float split[512];
      memcpy(split, rows[r].out, 4 * (size_t)D);
      join_pairs(split, D, rows[r].out);
    }
}

template <Stored type>
void attend_some(int count, const Texts& text, const QueryRow* rows, const Scores& rule, float* scores) {
  switch (count) {
    case 1: return attend_rows<1, type>(text, rows, rule, scores);
    case 2: return attend_rows<2, type>(text, rows, rule, scores);
    case 3: return attend_rows<3, type>(text, rows, rule, scores);
    default: return attend_rows<4, type>(text, rows, rule, scores);
  }
}

// One to four rows, in ascending order of position, in whatever type the cache has.
inline void attend(int count, const Texts& text, const QueryRow* rows, const Scores& rule, float* scores) {
  switch (text.keys.type) {
    case STORED_F32: return attend_some<STORED_F32>(count, text, rows, rule, scores);
    case STORED_BF16: return attend_some<STORED_BF16>(count, text, rows, rule, scores);
    case STORED_INT8: return attend_some<STORED_INT8>(count, text, rows, rule, scores);
    default: return attend_some<STORED_INT4>(count, text, rows, rule, scores);
  }
}
