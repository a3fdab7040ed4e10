// The tile registers of AMX: eight, of up to sixteen rows of 64 bytes, multiplied by each other.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define HAS_TILES 1
#endif

// Asks Linux for the tile registers; false where there are none.
inline bool tiles_allowed() {
#ifdef HAS_TILES
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

struct TileConfig {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig(std::initializer_list<int> heights, std::initializer_list<int> widths) {
    std::copy(heights.begin(), heights.end(), rows);
    std::copy(widths.begin(), widths.end(), row_bytes);
  }
};

// Eight tiles of sixteen rows of 64 bytes.
inline void begin_tiles(bool tiles) {
#ifdef HAS_TILES
  static const TileConfig config({16, 16, 16, 16, 16, 16, 16, 16}, {64, 64, 64, 64, 64, 64, 64, 64});
  if (tiles) _tile_loadconfig(&config);
#endif
}

inline void end_tiles(bool tiles) {
#ifdef HAS_TILES
  if (tiles) _tile_release();
#endif
}
