// Attention of the vision tower in bfloat16, for processors with AVX-512 BF16: every patch of a frame attends to all
// patches of that frame.
//
// The queries, keys and values of all heads come as one matrix, as the projection gives them, with the two numbers that a
// rotation turns side by side. `pack_rows` turns queries and keys, multiplies the queries by the scale, and lays all three out
// as the products want them; `attend_rows` goes over the keys in blocks and carries the softmax along: the largest score so
// far, the sum of the exponentials and the weighted values, which are scaled down where a larger score comes. Scores and
// sums are float32; what is multiplied is rounded to bfloat16, as everything between the layers is.
//
// A row's result does not depend on which thread computes it, nor on other rows.

#include <immintrin.h>
#include <stdint.h>

#include "lanes.h"
#include "threads.h"

namespace {

constexpr int kKeys = 64;        // keys of a block: four registers of scores for each row
constexpr int kColumns = kKeys / kLanes;
constexpr int kRowsInCache = 48;  // rows that share a block of keys while it is in the first-level cache
constexpr int kMostVectors = 8;  // registers of a head: 128 numbers

// One frame, or a run of consecutive frames of one size.
struct Task {
  const uint16_t* qkv;   // [rows, 3, heads, width], bfloat16
  const float* turns;    // [rows, width / 2, 2]: cosine and sine
  uint32_t* packed;      // `packed_words` words for each frame and head
  uint16_t* out;         // [rows, heads, width], bfloat16
  int64_t frames;
  int64_t size;          // rows of a frame
  int64_t heads;
  int64_t width;         // numbers of a head, even
  float scale;           // of the scores, times log2(e)
};

// Rows of a block: as many as there are registers for, with one register for each column of scores or values.
constexpr int rows_of(int vectors) { return vectors <= 4 ? 6 : vectors <= 6 ? 4 : 3; }

// Offsets of the parts of one frame and head, in words of two bfloat16 numbers.
struct Layout {
  int64_t pairs;    // of numbers in a row
  int64_t vectors;  // registers of a row of values
  int64_t queries;  // words; rows are filled up so that every block of rows is whole
  int64_t keys;     // words
  int64_t values;   // words

  Layout(int64_t size, int64_t width) : pairs(width / 2), vectors(up(width, kLanes) / kLanes) {
    queries = up(size, kRowsInCache) * pairs;
    keys = up(size, kKeys) * pairs;
    values = up(size, kKeys) / 2 * vectors * kLanes;
  }
  int64_t words() const { return up(queries + keys + values, 16); }
};

// Sixteen pairs, each turned by its angle and rounded: the words as the products want them.
inline __m512i turn(__m512i pairs, __m512 even_turns, __m512 odd_turns, float scale) {
  // The first number of each pair is in the lower half of its word.
  const __m512 re = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  const __m512 im = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xffff0000u))));
  __m512 turned_re = _mm512_fmsub_ps(re, even_turns, _mm512_mul_ps(im, odd_turns));
  __m512 turned_im = _mm512_fmadd_ps(re, odd_turns, _mm512_mul_ps(im, even_turns));
  const __m512 by = _mm512_set1_ps(scale);
  turned_re = _mm512_mul_ps(turned_re, by);
  turned_im = _mm512_mul_ps(turned_im, by);
  const __m256i low = (__m256i)_mm512_cvtneps_pbh(turned_re);
  const __m256i high = (__m256i)_mm512_cvtneps_pbh(turned_im);
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// Sixteen rows become sixteen columns.
inline void transpose(__m512i (&rows)[kLanes]) {
  __m512i other[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm512_unpacklo_epi64(other[i + j], other[i + j + 2]);
      rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(other[i + j], other[i + j + 2]);
    }
  // Here rows[4 i + j] holds, for the rows 4 i to 4 i + 3, the columns j, j + 4, j + 8 and j + 12.
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0x88), b = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(rows[j], rows[4 + j], 0xdd), d = _mm512_shuffle_i32x4(rows[8 + j], rows[12 + j], 0xdd);
    other[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    other[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    other[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    other[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int i = 0; i < kLanes; ++i) rows[i] = other[i];
}

// The queries, keys and values of one frame and head, in the `kKeys` rows from `first` on.
void pack_rows(const Task& task, int64_t frame, int64_t head, int64_t first) {
  const Layout layout(task.size, task.width);
  uint32_t* queries = task.packed + (frame * task.heads + head) * layout.words();
  uint32_t* keys = queries + layout.queries + first * layout.pairs;
  uint32_t* values = queries + layout.queries + layout.keys + first / 2 * layout.vectors * kLanes;
  const int64_t stride = 3 * task.heads * task.width;
  const uint16_t* numbers = task.qkv + frame * task.size * stride + head * task.width;
  const float* turns = task.turns + frame * task.size * task.width;
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  for (int64_t some = 0; some < kKeys; some += kLanes) {
    for (int64_t pair = 0; pair < layout.pairs; pair += kLanes) {
      const int64_t left = layout.pairs - pair;
      const __mmask16 mask = lanes(left);
      __m512i turned[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t row = first + some + i;
        if (row >= task.size) {
          turned[i] = _mm512_setzero_si512();
          continue;
        }
        const float* angle = turns + row * task.width + 2 * pair;
        const __m512 low = _mm512_maskz_loadu_ps(lanes(2 * left), angle);
        const __m512 high = _mm512_maskz_loadu_ps(lanes(2 * left - kLanes), angle + kLanes);
        const __m512 cosines = _mm512_permutex2var_ps(low, evens, high);
        const __m512 sines = _mm512_permutex2var_ps(low, odds, high);
        const uint16_t* query = numbers + row * stride + 2 * pair;
        const __m512i of_query = _mm512_maskz_loadu_epi32(mask, query);
        const __m512i of_key = _mm512_maskz_loadu_epi32(mask, query + task.heads * task.width);
        _mm512_mask_storeu_epi32(queries + row * layout.pairs + pair, mask, turn(of_query, cosines, sines, task.scale));
        turned[i] = turn(of_key, cosines, sines, 1.0f);
      }
      transpose(turned);
      for (int i = 0; i < (left < kLanes ? int(left) : kLanes); ++i)
        _mm512_storeu_si512(keys + (pair + i) * kKeys + some, turned[i]);
    }
  }
  if (first + kKeys >= task.size)
    for (int64_t at = task.size * layout.pairs; at < layout.queries; ++at) queries[at] = 0;
  // A word of values: the same number of two neighbouring keys.
  for (int64_t some = 0; some < kKeys; some += 2) {
    const int64_t row = first + some;
    const uint16_t* value = numbers + row * stride + 2 * task.heads * task.width;
    for (int64_t at = 0; at < layout.vectors * kLanes; at += kLanes) {
      const __mmask16 mask = lanes(task.width - at);
      const __mmask16 one = row < task.size ? mask : 0, two = row + 1 < task.size ? mask : 0;
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(one, value + at));
      const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(two, value + stride + at));
      _mm512_storeu_si512(values + some / 2 * layout.vectors * kLanes + at,
                          _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
  }
}

inline __m512bh as_numbers(__m512i words) { return (__m512bh)words; }

template <int Rows>
struct Softmax {
  float largest[Rows];
  __m512 sums[Rows];
};

// The scores of a block of rows with a block of keys, their exponentials, and what they add to the weighted values.
template <int Rows, int Vectors>
inline void block(const uint32_t* queries, const uint32_t* keys, const uint32_t* values, int64_t pairs, int64_t left,
                  Softmax<Rows>& state, float* sums) {
  __m512 scores[Rows][kColumns];
  for (int row = 0; row < Rows; ++row)
    for (int column = 0; column < kColumns; ++column) scores[row][column] = _mm512_setzero_ps();
  for (int64_t pair = 0; pair < pairs; ++pair) {
    __m512bh key[kColumns];
    for (int column = 0; column < kColumns; ++column)
      key[column] = as_numbers(_mm512_loadu_si512(keys + pair * kKeys + column * kLanes));
    for (int row = 0; row < Rows; ++row) {
      const __m512bh query = as_numbers(_mm512_set1_epi32(int(queries[row * pairs + pair])));
      for (int column = 0; column < kColumns; ++column)
        scores[row][column] = _mm512_dpbf16_ps(scores[row][column], query, key[column]);
    }
  }
  if (left < kKeys) {  // the keys after the frame's last
    const __m512 none = _mm512_set1_ps(-3.0e38f);
    for (int column = 0; column < kColumns; ++column) {
      const __mmask16 mask = lanes(left - column * kLanes);
      for (int row = 0; row < Rows; ++row) scores[row][column] = _mm512_mask_mov_ps(none, mask, scores[row][column]);
    }
  }
  alignas(64) uint32_t weights[Rows][kKeys / 2];
  for (int row = 0; row < Rows; ++row) {
    __m512 top = _mm512_max_ps(_mm512_max_ps(scores[row][0], scores[row][1]), _mm512_max_ps(scores[row][2], scores[row][3]));
    // After the first blocks few bring a larger score: whether one does is asked before which it is.
    if (_mm512_cmp_ps_mask(top, _mm512_set1_ps(state.largest[row]), _CMP_GT_OQ)) {
      const float largest = _mm512_reduce_max_ps(top);
      const __m512 by = exp2_of(_mm512_set1_ps(state.largest[row] - largest));
      state.largest[row] = largest;
      state.sums[row] = _mm512_mul_ps(state.sums[row], by);
      for (int vector = 0; vector < Vectors; ++vector) {
        float* at = sums + (row * Vectors + vector) * kLanes;
        _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), by));
      }
    }
    const __m512 base = _mm512_set1_ps(state.largest[row]);
    for (int column = 0; column < kColumns; column += 2) {
      const __m512 low = exp2_of(_mm512_sub_ps(scores[row][column], base));
      const __m512 high = exp2_of(_mm512_sub_ps(scores[row][column + 1], base));
      state.sums[row] = _mm512_add_ps(state.sums[row], _mm512_add_ps(low, high));
      _mm512_store_si512(weights[row] + column * kLanes / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
  __m512 total[Rows][Vectors];
  for (int row = 0; row < Rows; ++row)
    for (int vector = 0; vector < Vectors; ++vector)
      total[row][vector] = _mm512_load_ps(sums + (row * Vectors + vector) * kLanes);
  for (int pair = 0; pair < kKeys / 2; ++pair) {
    __m512bh value[Vectors];
    for (int vector = 0; vector < Vectors; ++vector)
      value[vector] = as_numbers(_mm512_loadu_si512(values + (pair * Vectors + vector) * kLanes));
    for (int row = 0; row < Rows; ++row) {
      const __m512bh weight = as_numbers(_mm512_set1_epi32(int(weights[row][pair])));
      for (int vector = 0; vector < Vectors; ++vector)
        total[row][vector] = _mm512_dpbf16_ps(total[row][vector], weight, value[vector]);
    }
  }
  for (int row = 0; row < Rows; ++row)
    for (int vector = 0; vector < Vectors; ++vector)
      _mm512_store_ps(sums + (row * Vectors + vector) * kLanes, total[row][vector]);
}

// Up to `kRowsInCache` rows of one frame and head, from `first` on.
template <int Vectors>
void attend_rows(const Task& task, int64_t frame, int64_t head, int64_t first) {
  constexpr int Rows = rows_of(Vectors);
  constexpr int kBlocks = kRowsInCache / Rows;
  const Layout layout(task.size, task.width);
  const uint32_t* queries = task.packed + (frame * task.heads + head) * layout.words();
  const uint32_t* keys = queries + layout.queries;
  const uint32_t* values = keys + layout.keys;
  alignas(64) float sums[kRowsInCache * Vectors * kLanes];
  alignas(64) Softmax<Rows> states[kBlocks];
  const int64_t rows = task.size - first < kRowsInCache ? task.size - first : kRowsInCache;
  const int64_t blocks = up(rows, Rows) / Rows;
  for (int64_t at = 0; at < blocks * Rows * Vectors * kLanes; at += kLanes) _mm512_store_ps(sums + at, _mm512_setzero_ps());
  for (int64_t number = 0; number < blocks; ++number)
    for (int row = 0; row < Rows; ++row) {
      states[number].largest[row] = -3.0e38f;
      states[number].sums[row] = _mm512_setzero_ps();
    }
  for (int64_t key = 0; key < task.size; key += kKeys)
    for (int64_t number = 0; number < blocks; ++number)
      block<Rows, Vectors>(queries + (first + number * Rows) * layout.pairs, keys + key * layout.pairs,
                           values + key / 2 * Vectors * kLanes, layout.pairs, task.size - key, states[number],
                           sums + number * Rows * Vectors * kLanes);
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 by = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(states[row / Rows].sums[row % Rows]));
    uint16_t* out = task.out + ((frame * task.size + first + row) * task.heads + head) * task.width;
    for (int vector = 0; vector < Vectors; ++vector) {
      const __m512 total = _mm512_load_ps(sums + (row * Vectors + vector) * kLanes);
      store_bf16(out + vector * kLanes, lanes(task.width - vector * kLanes), _mm512_mul_ps(total, by));
    }
  }
}

using AttendRows = void (*)(const Task&, int64_t, int64_t, int64_t);
constexpr AttendRows kAttendRows[kMostVectors] = {
    attend_rows<1>, attend_rows<2>, attend_rows<3>, attend_rows<4>,
    attend_rows<5>, attend_rows<6>, attend_rows<7>, attend_rows<8>,
};

}  // namespace

// Words of 4 bytes that packing a frame takes for each head.
EXPORTED int64_t packed_words(int64_t size, int64_t width) { return Layout(size, width).words(); }

EXPORTED void attend(const Task* given, Parallel parallel) {
  const Task& task = *given;
  const int64_t blocks = up(task.size, kKeys) / kKeys;
  for_each(parallel, task.frames * blocks * task.heads, [&](int64_t number) {
    const int64_t block = number / task.heads;  // all heads of the same rows, one after another
    pack_rows(task, block / blocks, number % task.heads, block % blocks * kKeys);
  });
  const int64_t groups = up(task.size, kRowsInCache) / kRowsInCache;
  const AttendRows rows = kAttendRows[up(task.width, kLanes) / kLanes - 1];
  for_each(parallel, task.frames * task.heads * groups, [&](int64_t number) {
    const int64_t one = number / groups;
    rows(task, one / task.heads, one % task.heads, number % groups * kRowsInCache);
  });
}
