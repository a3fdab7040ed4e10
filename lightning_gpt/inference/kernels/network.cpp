// A GPT's forward pass for steps of an inference engine. See inference/native_network.py.
//
// All threads run the whole step; every `omp for` ends when all are there.
#include "network.h"

struct Tile { int32_t span, row, count; };

struct Network {
  Shape shape;
  bool tiles = tiles_allowed();
  const float* vectors[NETWORK_VECTORS] = {};
  std::vector<Layer> layers;
  Matrix head;
  Buffer stream, first_stream, normed, qkv, first_value, attended, rounded, hidden, branch;
  Buffer prepared[4], scales[4], scores;
  std::vector<Tile> work;

  explicit Network(const Shape& s) : shape(s), layers(s.layers) {}

  bool attention_tiles(const Step& step) const {
    return tiles && step.stored == STORED_BF16 && shape.head_size % 32 == 0 && shape.head_size <= 256;
  }

  Rows rows(int which, const Matrix& w, int count) {
    count = round_up(count, TILE_ROWS);
    size_t stride = row_bytes(w.kind, w.K);
    return {prepared[which].get<uint8_t>(count * stride), scales[which].get<float>(count), stride};
  }
};

// What is behind K in a prepared row must be zero; rows of other products may have stood there.
static void prepare(const Matrix& w, const Rows& rows, int n, const float* x) {
  uint8_t* to = rows.data + n * rows.stride;
  size_t used = (size_t)number_bytes(w.kind) * w.K;
  memset(to + used, 0, rows.stride - used);
  prepare_row(w.kind, x, w.K, to, rows.scale + n);
}

static void embed(const Network& net, const Step& step, int n, float* x) {
  const int C = net.shape.width, id = step.ids[n];
  const int own = step.embed_rows ? step.embed_rows[n] : -1;
  for (int i = 0; i < C; i += LANES) {
    Floats v = own >= 0 ? load<Floats>(step.embeds + (size_t)own * C + i)
               : net.shape.embedding_bf16 ? from_bf16((const uint16_t*)net.vectors[EMBEDDING] + (size_t)id * C + i)
                                          : load<Floats>(net.vectors[EMBEDDING] + (size_t)id * C + i);
    v *= net.shape.embedding_multiplier;
    if (net.vectors[POSITION]) v += load<Floats>(net.vectors[POSITION] + (size_t)step.positions[n] * C + i);
    store(x + i, v);
  }
}

// Queries normalised, turned and scaled in place, and in bfloat16 beside; keys and values into the cache.
static void place_token(const Network& net, const Layer& layer, const Step& step, int n, int index, float* qkv,
                        uint16_t* rounded, float* first_value, const Blocks& keys, const Blocks& values,
                        const CacheShape& cache, int block) {
  const Shape& s = net.shape;
  const int D = s.head_size, position = step.positions[n];
  float *k = qkv + s.heads * D, *v = k + s.kv_heads * D;
  if (s.value_skip) {
    if (index == 0) memcpy(first_value, v, 4 * (size_t)s.kv_heads * D);
    else
      for (int i = 0; i < s.kv_heads * D; ++i) v[i] += layer.vectors[VALUE_MIX][0] * (first_value[i] - v[i]);
  }
  for (int h = 0; h < s.heads + s.kv_heads; ++h) {
    float* x = qkv + h * D;
    const float* gain = layer.vectors[h < s.heads ? QUERY_GAIN : KEY_GAIN];
    if (s.qk_norm) normalize(1, s.norm_eps, gain, nullptr, x, D, x);
    if (s.rotary) {
      size_t at = (size_t)position * s.rotary;
      turn(x, s.rotary, net.vectors[COSINE] + at, net.vectors[SINE] + at);
    }
    if (h < s.heads) {
      for (int d = 0; d < D; d += LANES) {
        Floats q = load<Floats>(x + d) * s.scale;
        store(x + d, q);
        store(rounded + h * D + d, to_bf16(q));
      }
    }
  }
  for (int h = 0; h < s.kv_heads; ++h) {
    write_slot(keys, cache, block, h, position % cache.size, k + h * D, true);
    write_slot(values, cache, block, h, position % cache.size, v + h * D, false);
  }
}

static void attend_tile(const Network& net, const Layer& layer, const Step& step, const Tile& tile, int head,
                        const float* qkv, int qkv_stride, const uint16_t* rounded, float* attended, const Blocks& keys,
                        const Blocks& values, const CacheShape& cache, float* scores) {
  const Shape& s = net.shape;
  const int D = s.head_size, group = s.heads / s.kv_heads;
  const int32_t* span = step.span_of + 3 * tile.span;
  QueryRow rows[TILE_ROWS];
  for (int i = 0; i < tile.count; ++i) {
    int token = (tile.row + i) / group, h = head * group + (tile.row + i) % group, n = span[0] + token;
    size_t place = ((size_t)n * s.heads + h) * D;
    rows[i] = {qkv + (size_t)n * qkv_stride + h * D, (const uint32_t*)(rounded + place), attended + place,
               span[2] + token, net.vectors[SLOPES] ? net.vectors[SLOPES][h] : 0.0f,
               layer.vectors[SINKS] ? layer.vectors[SINKS][h] : -INF};
  }
  Texts text = {keys, values, cache, head, step.tables + (size_t)tile.span * step.table_length};
#ifdef HAS_TILES
  if (net.attention_tiles(step)) return attend_tiles(tile.count, text, rows, {layer.window, s.softcap}, scores);
#endif
  attend(tile.count, text, rows, {layer.window, s.softcap}, scores);
}

static void forward(Network& net, const Step& step) {
  const Shape& s = net.shape;
  const int N = step.tokens, C = s.width, D = s.head_size, A = s.heads * D, group = s.heads / s.kv_heads;
  const int Q = net.layers[0].matrices[QKV].quads * QUAD, F = round_up(s.hidden, QUAD), KV = s.kv_heads;
  const bool pre = s.norm_place == 0, post = s.norm_place == 1, sandwich = s.norm_place == 2;
  const bool attention_tiles = net.attention_tiles(step);
  const int some = attention_tiles ? TILE_ROWS : 4;  // rows that share keys
  net.work.clear();
  int longest = 0;
  for (int i = 0; i < step.spans; ++i) {
    const int32_t* span = step.span_of + 3 * i;
    longest = std::max(longest, span[2] + span[1]);
    const int rows = span[1] * group;
    for (int row = 0; row < rows; row += some) net.work.push_back({i, row, std::min(some, rows - row)});
  }
  const int stride = some * 3 / 2 * (longest + 2 * LANES);
  float *x = net.stream.get<float>((size_t)N * C), *qkv = net.qkv.get<float>((size_t)N * Q);
  uint16_t* rounded = net.rounded.get<uint16_t>((size_t)N * A);
  float *attended = net.attended.get<float>((size_t)N * A), *branch = net.branch.get<float>((size_t)N * C);
  float *hidden = net.hidden.get<float>((size_t)N * F), *normed = net.normed.get<float>((size_t)step.threads * C);
  float *first = s.value_skip ? net.first_value.get<float>((size_t)N * KV * D) : nullptr;
  float *scores = net.scores.get<float>((size_t)step.threads * stride);
  bool input_skip = net.layers[0].vectors[INPUT_MIX] != nullptr;
  float* x0 = input_skip ? net.first_stream.get<float>((size_t)N * C) : nullptr;
  const int items = (int)net.work.size() * KV;

#pragma omp parallel num_threads(step.threads)
  {
    const bool tiles = net.tiles;
    begin_tiles(tiles);
    float* own = normed + (size_t)omp_get_thread_num() * C;
    float* own_scores = scores + (size_t)omp_get_thread_num() * stride;
#pragma omp for schedule(static)
    for (int n = 0; n < N; ++n) {
      embed(net, step, n, x + (size_t)n * C);
      if (input_skip) memcpy(x0 + (size_t)n * C, x + (size_t)n * C, 4 * (size_t)C);
    }
    for (int index = 0; index < step.layers; ++index) {
      Layer& layer = net.layers[index];
      const float* const* v = layer.vectors;
      const Matrix &wqkv = layer.matrices[QKV], &wout = layer.matrices[OUT], &wup = layer.matrices[UP];
      const Matrix& wdown = layer.matrices[DOWN];
      const CacheShape cache = {KV, step.block_size, D};
      void* const* stored = step.cache + 4 * index;
      const Blocks keys = {step.stored, (uint8_t*)stored[0], (float*)stored[2]};
      const Blocks values = {step.stored, (uint8_t*)stored[1], (float*)stored[3]};
      Rows in, up, out, down;
#pragma omp critical
      {
        in = net.rows(0, wqkv, N), up = net.rows(1, wup, N), out = net.rows(2, wout, N), down = net.rows(3, wdown, N);
      }
      auto norm = [&](const float* gain, const float* bias, const float* from, float* to) {
        normalize(s.norm, s.norm_eps, gain, bias, from, C, to);
      };
      auto add = [&](int n, int pair, const Floats* y) {  // to the stream, or to where it is normalised before
        float* to = (sandwich ? branch : x) + (size_t)n * C;
        for (int p = 0; p < 2; ++p) {
          int c = (2 * pair + p) * LANES;
          if (c >= C) return;
          store(to + c, sandwich ? y[p] : load<Floats>(to + c) + s.residual_multiplier * y[p]);
        }
      };
      auto settle = [&](int n, int gain) {  // what a branch's sum still needs
        float* to = x + (size_t)n * C;
        if (post) norm(v[gain], v[gain + 1], to, to);
        if (!sandwich) return;
        norm(v[gain + 2], v[gain + 3], branch + (size_t)n * C, own);
        for (int i = 0; i < C; i += LANES)
          store(to + i, load<Floats>(to + i) + s.residual_multiplier * load<Floats>(own + i));
      };
      auto read = [&](const Matrix& w, const Rows& rows, int n, int gain) {  // a branch's input
        const float* from = x + (size_t)n * C;
        if (!post) norm(v[gain], v[gain + 1], from, own), from = own;
        prepare(w, rows, n, from);
      };
#pragma omp for schedule(static)
      for (int n = 0; n < N; ++n) {
        float* to = x + (size_t)n * C;
        if (input_skip)
          for (int i = 0; i < C; i += LANES)
            store(to + i, v[INPUT_MIX][0] * load<Floats>(to + i) +
                              v[INPUT_MIX][1] * load<Floats>(x0 + (size_t)n * C + i));
        read(wqkv, in, n, ATTENTION_GAIN);
        if (s.parallel) read(wup, up, n, FORWARD_GAIN);
      }
      multiply(wqkv, in, N, tiles, [&](int n, int pair, const Floats* y) {
        memcpy(qkv + (size_t)n * Q + pair * 2 * LANES, y, 8 * LANES);
      });
#pragma omp for schedule(static)
      for (int i = 0; i < step.spans; ++i) {
        const int32_t* span = step.span_of + 3 * i;
        for (int n = span[0]; n < span[0] + span[1]; ++n)
          place_token(net, layer, step, n, index, qkv + (size_t)n * Q, rounded + (size_t)n * A,
                      first + (size_t)n * KV * D, keys, values, cache,
                      step.tables[(size_t)i * step.table_length + step.positions[n] / cache.size]);
      }
#ifdef HAS_TILES
      if (attention_tiles) begin_attention_tiles();
#endif
#pragma omp for schedule(dynamic)
      for (int item = 0; item < items; ++item)
        attend_tile(net, layer, step, net.work[item / KV], item % KV, qkv, Q, rounded, attended, keys, values, cache,
                    own_scores);
      if (attention_tiles) begin_tiles(tiles);
#pragma omp for schedule(static)
      for (int n = 0; n < N; ++n) prepare(wout, out, n, attended + (size_t)n * A);
      multiply(wout, out, N, tiles, add);
      if (!s.parallel) {
#pragma omp for schedule(static)
        for (int n = 0; n < N; ++n) {
          settle(n, ATTENTION_GAIN);
          read(wup, up, n, FORWARD_GAIN);
        }
      }
      multiply(wup, up, N, tiles, [&](int n, int pair, const Floats* y) {
        float* to = hidden + (size_t)n * F;
        if (s.gated) {  // panels are gate and up in turn
          if (pair * LANES < F) store(to + pair * LANES, activate(s.activation, y[0]) * y[1]);
        } else {
          store(to + 2 * pair * LANES, activate(s.activation, y[0]));
          store(to + (2 * pair + 1) * LANES, activate(s.activation, y[1]));
        }
      });
#pragma omp for schedule(static)
      for (int n = 0; n < N; ++n) prepare(wdown, down, n, hidden + (size_t)n * F);
      multiply(wdown, down, N, tiles, add);
      if (!pre) {
#pragma omp for schedule(static)
        for (int n = 0; n < N; ++n) settle(n, FORWARD_GAIN);
      }
    }
    Rows last;
#pragma omp critical
    last = net.rows(0, net.head, step.wanted);
#pragma omp for schedule(static)
    for (int i = 0; i < step.wanted; ++i) {
      const float* from = x + (size_t)step.wanted_rows[i] * C;
      if (!post) {
        normalize(s.norm, s.norm_eps, net.vectors[FINAL_GAIN], net.vectors[FINAL_BIAS], from, C, own);
        from = own;
      }
      prepare(net.head, last, i, from);
    }
    multiply(net.head, last, step.wanted, tiles, [&](int i, int pair, const Floats* y) {
      for (int p = 0; p < 2; ++p) {
        int begin = (2 * pair + p) * LANES, count = std::min(LANES, s.vocab - begin);
        if (count <= 0) return;
        Floats logits = s.logit_softcap ? s.logit_softcap * tanh_of(y[p] / s.logit_softcap) : y[p];
        memcpy(step.logits + (size_t)i * s.vocab + begin, &logits, 4 * count);
      }
    });
    end_tiles(tiles);
  }
}

extern "C" {

Network* network_new(const Shape* shape) { return new Network(*shape); }

void network_free(Network* net) { delete net; }

int network_uses_tiles(const Network* net) { return net->tiles; }

// Before weights are set: computes without the tile registers.
void network_without_tiles(Network* net) { net->tiles = false; }

// layer -1: of the network. The memory must outlive the network.
void network_vector(Network* net, int layer, int slot, const float* data) {
  (layer < 0 ? net->vectors[slot] : net->layers[layer].vectors[slot]) = data;
}

void network_window(Network* net, int layer, int window) { net->layers[layer].window = window; }

// layer -1: the head. Everything is copied.
void network_matrix(Network* net, int layer, int slot, int kind, int N, int K, int group, const void* weight,
                    const float* scale, const float* bias, const int* rows, int count) {
  Matrix& matrix = layer < 0 ? net->head : net->layers[layer].matrices[slot];
  pack(matrix, (Kind)kind, N, K, group, weight, scale, bias, rows, count);
}

void network_forward(Network* net, const Step* step) { forward(*net, *step); }
}
