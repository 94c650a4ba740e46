// triptych.MatMulNBits: what com.microsoft.MatMulNBits computes at 4 and 8 bits and accuracy level 4 (activations rounded
// to 8 bits, a scale for each row and block), several times as fast where there are several rows. For AVX-512 with VNNI.
//
//   A       float [..., K]
//   B       uint8 [N, K / block, block x bits / 8], at 4 bits two weights a byte; zero is 2^(bits - 1); a constant
//   scales  float [N, K / block]; a constant
//   Y       float [..., N]
//
// Sixteen output channels are in the lanes of a register, so that no sum across lanes is ever needed and
// every weight that was unpacked serves up to eight rows. Weights stay unsigned (0..15, 0..255) and activations signed,
// as the instruction wants them: sum((w - zero) x) = sum(w x) - zero sum(x), and what is subtracted is known from the
// activations.
//
// A tile holds the weights of sixteen channels:
//
//   K x bits / 32 x 16 words of weights, as B has them: at 4 bits the low halves of a word's bytes are its weights 0, 2,
//     4 and 6; at 8 bits they are its four weights
//   K / block x 16 scales, float16, as shares of the channel's largest
//   16 largest scales, float

#include <stdlib.h>
#include <string.h>

#include "lanes.h"
#include "operator.h"
#include "pool.h"

namespace {

constexpr size_t kFewRows = 4;          // that are rounded before another thread has begun
constexpr size_t kMostRows = 8;         // that one pass over a tile computes: 2 x 8 of 32 registers hold sums
constexpr size_t kPrefetch = 4096;      // bytes ahead of the weights in use
constexpr size_t kItemBytes = 1 << 17;  // of weights that a thread takes at a time, about

size_t up(size_t value, size_t step) { return (value + step - 1) / step * step; }

struct Weights {
  const OrtApi* api;
  size_t n, k, block;
  size_t bits;     // of a weight: 4 or 8
  size_t threads;  // of the pool
  char* tiles;

  size_t blocks() const { return k / block; }
  size_t row_bytes() const { return k * bits / 8; }  // of weights
  size_t word_bytes() const { return row_bytes() * kLanes; }
  size_t tile_bytes() const { return up(word_bytes() + blocks() * 32, 64) + 64; }
  size_t tile_count() const { return up(n, kLanes) / kLanes; }
};

// Rows of activations, rounded: a row's bytes in the order of the weights, the scale of each of its blocks, and the sum
// of each times what stands for zero, negative.
struct Rounded {
  size_t rows;
  int8_t* bytes;
  float* scales;
  int32_t* corrections;
};

struct Job {
  const Weights* weights;
  Rounded rounded;
  const float* a;
  float* y;
  size_t tiles_per_item;

  size_t channels_per_item() const { return tiles_per_item * kLanes; }
};

void pack_tile(const Weights& weights, size_t first, const uint8_t* b, const float* scales, char* tile) {
  const size_t blocks = weights.blocks(), row_bytes = weights.row_bytes(), words = row_bytes / 4;
  const size_t used = weights.n - first < kLanes ? weights.n - first : kLanes;
  memset(tile, 0, weights.tile_bytes());
  for (size_t word = 0; word < words; ++word)
    for (size_t lane = 0; lane < used; ++lane)
      memcpy(tile + (word * kLanes + lane) * 4, b + (first + lane) * row_bytes + word * 4, 4);
  char* shares = tile + weights.word_bytes();
  float* largest = reinterpret_cast<float*>(tile + weights.tile_bytes() - 64);
  for (size_t lane = 0; lane < used; ++lane) {
    const float* own = scales + (first + lane) * blocks;
    float most = 0;
    for (size_t i = 0; i < blocks; ++i) most = __builtin_fabsf(own[i]) > most ? __builtin_fabsf(own[i]) : most;
    largest[lane] = most;
    for (size_t i = 0; i < blocks; ++i) {
      const uint16_t share = _cvtss_sh(most > 0 ? own[i] / most : 0, _MM_FROUND_TO_NEAREST_INT);
      memcpy(shares + (i * kLanes + lane) * 2, &share, 2);
    }
  }
}

void round_row(const void* argument, size_t row, char*) {
  const Job& job = *static_cast<const Job*>(argument);
  const size_t k = job.weights->k, block = job.weights->block, blocks = job.weights->blocks();
  const float* a = job.a + row * k;
  int8_t* bytes = job.rounded.bytes + row * k;
  // At 4 bits, of eight activations the even ones come first.
  const bool paired = job.weights->bits == 4;
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const int32_t zero = paired ? 8 : 128;
  for (size_t i = 0; i < blocks; ++i, a += block, bytes += block) {
    __m512 most = _mm512_setzero_ps();
    for (size_t j = 0; j < block; j += kLanes) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(a + j)));
    const float scale = _mm512_reduce_max_ps(most) / 127;
    const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1 / scale : 0);
    __m512i sum = _mm512_setzero_si512();
    for (size_t j = 0; j < block; j += kLanes) {
      const __m512i values = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(a + j), inverse));
      sum = _mm512_add_epi32(sum, values);
      const __m128i packed = _mm512_cvtsepi32_epi8(values);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + j), paired ? _mm_shuffle_epi8(packed, order) : packed);
    }
    job.rounded.scales[row * blocks + i] = scale;
    job.rounded.corrections[row * blocks + i] = -zero * _mm512_reduce_add_epi32(sum);
  }
}

// Adds the products of sixty-four bytes of weights, those of sixteen channels, with what `R` rows have there.
template <int Bits, int R>
inline void add_products(const char* words, const int8_t* x, size_t row_bytes, __m512i* sum) {
  const __m512i bytes = _mm512_load_si512(words);
  if constexpr (Bits == 4) {
    const __m512i low = _mm512_set1_epi8(15);
    const __m512i even = _mm512_and_si512(bytes, low), odd = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    for (int r = 0; r < R; ++r) {
      int32_t pair[2];
      memcpy(pair, x + r * row_bytes, 8);
      sum[r] = _mm512_dpbusd_epi32(sum[r], even, _mm512_set1_epi32(pair[0]));
      sum[r] = _mm512_dpbusd_epi32(sum[r], odd, _mm512_set1_epi32(pair[1]));
    }
  } else {
    for (int r = 0; r < R; ++r) {
      int32_t four;
      memcpy(&four, x + r * row_bytes, 4);
      sum[r] = _mm512_dpbusd_epi32(sum[r], bytes, _mm512_set1_epi32(four));
    }
  }
}

// Sixteen channels of `R` rows from `row` on, to `y`, whose rows are `stride` apart.
template <int Bits, int R>
void compute_tile(const Job& job, const char* tile, size_t row, size_t first, float* y, size_t stride) {
  constexpr size_t kStep = 32 / Bits;  // weights of a channel in a word
  const Weights& weights = *job.weights;
  const size_t k = weights.k, block = weights.block, blocks = weights.blocks();
  const int8_t* bytes = job.rounded.bytes + row * k;
  const float* scales = job.rounded.scales + row * blocks;
  const int32_t* corrections = job.rounded.corrections + row * blocks;
  const char* shares = tile + weights.word_bytes();
  __m512 total[R];
  for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
  const char* words = tile;
  for (size_t i = 0; i < blocks; ++i) {
    __m512i sum[R];
    for (int r = 0; r < R; ++r) sum[r] = _mm512_set1_epi32(corrections[r * blocks + i]);
    for (size_t j = i * block; j < (i + 1) * block; j += kStep, words += 64) {
      _mm_prefetch(words + kPrefetch, _MM_HINT_T0);
      add_products<Bits, R>(words, bytes + j, k, sum);
    }
    const __m512 share = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(shares + i * 32)));
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_mul_ps(share, _mm512_set1_ps(scales[r * blocks + i]));
      total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), scale, total[r]);
    }
  }
  const __m512 largest = _mm512_load_ps(tile + weights.tile_bytes() - 64);
  const size_t left = weights.n - first;
  const __mmask16 used = lanes(left);
  for (int r = 0; r < R; ++r)
    _mm512_mask_storeu_ps(y + (row + r) * stride, used, _mm512_mul_ps(total[r], largest));
}

template <int Bits>
void compute_rows(const Job& job, const char* tile, size_t row, size_t first, float* y, size_t stride) {
  switch (job.rounded.rows - row) {
    case 1: return compute_tile<Bits, 1>(job, tile, row, first, y, stride);
    case 2: return compute_tile<Bits, 2>(job, tile, row, first, y, stride);
    case 3: return compute_tile<Bits, 3>(job, tile, row, first, y, stride);
    case 4: return compute_tile<Bits, 4>(job, tile, row, first, y, stride);
    case 5: return compute_tile<Bits, 5>(job, tile, row, first, y, stride);
    case 6: return compute_tile<Bits, 6>(job, tile, row, first, y, stride);
    case 7: return compute_tile<Bits, 7>(job, tile, row, first, y, stride);
    default: return compute_tile<Bits, kMostRows>(job, tile, row, first, y, stride);
  }
}

// Results of an item are [rows, channels of the item].
void compute_item(const void* argument, size_t item, char* results) {
  const Job& job = *static_cast<const Job*>(argument);
  const Weights& weights = *job.weights;
  const size_t begin = item * job.tiles_per_item;
  size_t end = begin + job.tiles_per_item;
  if (end > weights.tile_count()) end = weights.tile_count();
  const size_t stride = results ? job.channels_per_item() : weights.n;
  float* to = results ? reinterpret_cast<float*>(results) : job.y + begin * kLanes;
  for (size_t tile = begin; tile < end; ++tile, to += kLanes) {
    const char* packed = weights.tiles + tile * weights.tile_bytes();
    for (size_t row = 0; row < job.rounded.rows; row += kMostRows) {
      const auto compute_some = weights.bits == 4 ? compute_rows<4> : compute_rows<8>;
      compute_some(job, packed, row, tile * kLanes, to, stride);
    }
  }
}

void commit_item(const void* argument, size_t item, const char* results) {
  const Job& job = *static_cast<const Job*>(argument);
  const size_t n = job.weights->n, channels = job.channels_per_item(), first = item * channels;
  const size_t used = n - first < channels ? n - first : channels;
  const float* from = reinterpret_cast<const float*>(results);
  for (size_t row = 0; row < job.rounded.rows; ++row, from += channels)
    memcpy(job.y + row * n + first, from, used * sizeof(float));
}

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  const OrtValue* constants[2];
  void* data[2];
  for (size_t i = 0; i < 2; ++i) {
    int is_constant = 0;
    if (OrtStatus* status = api->constant_input(info, i + 1, &is_constant, &constants[i])) return status;
    if (!is_constant) return api->create_status(kOrtInvalidArgument, "MatMulNBits: B and scales have to be constants");
    if (OrtStatus* status = api->data(constants[i], &data[i])) return status;
  }
  Shape shape;
  if (OrtStatus* status = shape_of(*api, constants[0], &shape)) return status;
  int64_t threads = 0, bits = 0;
  if (OrtStatus* status = api->attribute(info, "threads", &threads)) return status;
  if (OrtStatus* status = api->attribute(info, "bits", &bits)) return status;
  if (bits != 4 && bits != 8) return api->create_status(kOrtInvalidArgument, "MatMulNBits: weights have 4 or 8 bits");
  if (shape.rank != 3 || shape.dimensions[2] % (bits * 4))
    return api->create_status(kOrtInvalidArgument,
                              "MatMulNBits: B has to be [N, K / block, block x bits / 8], block a multiple of 32");
  const size_t block = static_cast<size_t>(shape.dimensions[2] * 8 / bits);
  Weights* weights = static_cast<Weights*>(malloc(sizeof(Weights)));
  if (!weights) return api->create_status(kOrtFail, "MatMulNBits: out of memory");
  *weights = {api,
              static_cast<size_t>(shape.dimensions[0]),
              static_cast<size_t>(shape.dimensions[1]) * block,
              block,
              static_cast<size_t>(bits),
              static_cast<size_t>(threads),
              nullptr};
  const size_t bytes = weights->tile_count() * weights->tile_bytes();
  weights->tiles = static_cast<char*>(aligned_alloc(64, bytes));
  if (!weights->tiles || !join_pool(weights->threads)) {
    free(weights->tiles);
    free(weights);
    return api->create_status(kOrtFail, "MatMulNBits: out of memory, or of threads");
  }
  for (size_t tile = 0; tile < weights->tile_count(); ++tile)
    pack_tile(*weights, tile * kLanes, static_cast<uint8_t*>(data[0]), static_cast<float*>(data[1]),
              weights->tiles + tile * weights->tile_bytes());
  *kernel = weights;
  return nullptr;
}

void destroy(void* kernel) {
  leave_pool();
  free(static_cast<Weights*>(kernel)->tiles);
  free(kernel);
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Weights& weights = *static_cast<Weights*>(kernel);
  const OrtApi& api = *weights.api;
  Shape shape;
  const float* a = nullptr;
  float* y = nullptr;
  if (OrtStatus* status = read_input(api, context, 0, &shape, &a)) return status;
  if (!shape.rank || static_cast<size_t>(shape.dimensions[shape.rank - 1]) != weights.k)
    return api.create_status(kOrtInvalidArgument, "MatMulNBits: A's last axis is not as long as B's rows");
  const size_t rows = shape.product(shape.rank - 1);
  shape.dimensions[shape.rank - 1] = static_cast<int64_t>(weights.n);
  if (OrtStatus* status = make_output(api, context, 0, shape, &y)) return status;
  if (!rows) return nullptr;

  const size_t blocks = weights.blocks();
  const size_t tiles_per_item = up(kItemBytes, weights.tile_bytes()) / weights.tile_bytes();
  const size_t items = up(weights.tile_count(), tiles_per_item) / tiles_per_item;
  const size_t head = up(sizeof(Job), 64);
  Turn turn(weights.threads, head + rows * (weights.k + blocks * 8), rows > items ? rows : items);
  char* scratch = turn.scratch();
  if (!scratch) return api.create_status(kOrtFail, "MatMulNBits: out of memory");
  float* scales = reinterpret_cast<float*>(scratch + head);
  int32_t* corrections = reinterpret_cast<int32_t*>(scales + rows * blocks);
  int8_t* bytes = reinterpret_cast<int8_t*>(corrections + rows * blocks);
  Job& job = *reinterpret_cast<Job*>(scratch);
  job = {&weights, {rows, bytes, scales, corrections}, a, y, tiles_per_item};
  if (rows < kFewRows)
    for (size_t row = 0; row < rows; ++row) round_row(&job, row, nullptr);
  else
    turn.run({rows, round_row, nullptr, 0}, &job);
  turn.run({items, compute_item, commit_item, rows * job.channels_per_item() * sizeof(float)}, &job);
  return nullptr;
}

}  // namespace

const Operator& matmul_nbits() {
  static const Operator op("MatMulNBits", {kOrtFloat, kOrtUint8, kOrtFloat}, {kOrtFloat}, create, compute, destroy);
  return op;
}
