// A network's parts as they are computed: vectors stay where PyTorch has them, matrices are packed.
#pragma once

#include <vector>

#include "attention_tiles.h"
#include "matmul.h"

// The order of fields and slots is that of native_network.py.
struct Shape {
  int32_t layers, heads, kv_heads, head_size, width, hidden, vocab, rotary;
  int32_t norm;         // 0 layernorm, 1 rmsnorm
  int32_t norm_place;   // 0 pre, 1 post, 2 sandwich
  int32_t activation;   // 0 relu, 1 gelu, 2 gelu_tanh, 3 relu2, 4 silu
  int32_t gated, parallel, qk_norm, value_skip, embedding_bf16;
  float norm_eps, scale, softcap, logit_softcap, embedding_multiplier, residual_multiplier;
};

enum NetworkVector { EMBEDDING, POSITION, COSINE, SINE, SLOPES, FINAL_GAIN, FINAL_BIAS, NETWORK_VECTORS };

enum LayerVector {
  ATTENTION_GAIN, ATTENTION_BIAS, ATTENTION_OUT_GAIN, ATTENTION_OUT_BIAS,
  FORWARD_GAIN, FORWARD_BIAS, FORWARD_OUT_GAIN, FORWARD_OUT_BIAS,
  QUERY_GAIN, KEY_GAIN, SINKS, VALUE_MIX, INPUT_MIX, LAYER_VECTORS
};

enum LayerMatrix { QKV, OUT, UP, DOWN, LAYER_MATRICES };

struct Layer {
  const float* vectors[LAYER_VECTORS] = {};
  Matrix matrices[LAYER_MATRICES];
  int window = 0;
};

// One step of the engine (inference/runner.py).
struct Step {
  int32_t tokens, spans, table_length, wanted, layers, threads;
  const int32_t *ids, *positions;
  const int32_t* span_of;            // (spans, 3): start, count, past
  const int32_t* tables;             // (spans, table_length)
  const int32_t* wanted_rows;
  const int32_t* embed_rows;         // of each token, -1 = its own embedding; null = none
  const float* embeds;
  float* logits;                     // (wanted, vocab)
  Stored stored;
  int32_t block_size;
  void* const* cache;                // of each layer: keys, values, key scales, value scales
};

// Memory that grows and is not copied.
struct Buffer {
  void* data = nullptr;
  size_t size = 0;

  ~Buffer() { free(data); }

  template <class T>
  T* get(size_t count) {
    if (count * sizeof(T) > size) {
      free(data);
      size = count * sizeof(T);
      data = big_memory(size);
    }
    return (T*)data;
  }
};

inline Floats activate(int kind, Floats x) {
  switch (kind) {
    case 0: return maximum(x, Floats{});
    case 1: return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f));
    case 2: return 0.5f * x * (1.0f + tanh_of(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case 3: { Floats positive = maximum(x, Floats{}); return positive * positive; }
    default: return x / (1.0f + exponential(-x));
  }
}

// LayerNorm or RMSNorm of one row, n a multiple of 16; gain and bias may be null.
inline void normalize(int kind, float eps, const float* gain, const float* bias, const float* x, int n, float* y) {
  Floats mean{}, square{};
  if (kind == 0) {
    for (int i = 0; i < n; i += LANES) mean += load<Floats>(x + i);
    mean = all(sum(mean) / n);
  }
  for (int i = 0; i < n; i += LANES) {
    Floats centered = load<Floats>(x + i) - mean;
    square += centered * centered;
  }
  float inverse = 1.0f / std::sqrt(sum(square) / n + eps);
  for (int i = 0; i < n; i += LANES) {
    Floats v = (load<Floats>(x + i) - mean) * inverse;
    if (gain) v *= load<Floats>(gain + i);
    if (bias) v += load<Floats>(bias + i);
    store(y + i, v);
  }
}

// Rotary positions in half-split order; the sines of the first half are negative (nn/positions.py).
inline void turn(float* x, int size, const float* cosine, const float* sine) {
  int half = size / 2, i = 0;
  for (; i + LANES <= half; i += LANES) {
    Floats a = load<Floats>(x + i), b = load<Floats>(x + half + i);
    store(x + i, a * load<Floats>(cosine + i) + b * load<Floats>(sine + i));
    store(x + half + i, b * load<Floats>(cosine + half + i) + a * load<Floats>(sine + half + i));
  }
  for (; i < half; ++i) {
    float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] + b * sine[i];
    x[half + i] = b * cosine[half + i] + a * sine[half + i];
  }
}
