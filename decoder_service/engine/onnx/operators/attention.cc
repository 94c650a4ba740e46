// triptych.GroupQueryAttention: causal attention of one or more new tokens of each row over a cache of keys and values,
// as com.microsoft.GroupQueryAttention computes it in float32 without rotation, window, cap or bias.
//
//   query              [batch, sequence, heads x width]
//   key, value         [batch, sequence, kv_heads x width]
//   past_key, _value   [batch, kv_heads, capacity, elements of a stored row]
//   seqlens_k          int32 [batch]: keys of each row, the new ones included, less one
//   total_sequence_length  int32 []: the most of them
//   output             as query
//   present_key, _value  as past, new keys and values in their places; often the same memory
//
// Reading keys and values limits its speed, so they are stored in fewer bits; everything is computed in float32.
// GroupQueryAttention stores `width` float16 numbers. GroupQueryAttentionInt8 stores `width` int8 numbers and then their
// scale, a float32; keys, queries and values are rotated first, so that an outlier channel does not cost the others
// their precision. A new token's own key and value are also used as stored, so it does not matter how a prompt is cut.
//
// The last four inputs and two outputs may come once more, for a chunk of a prompt (see packing.py): a cache of one row,
// or of none where there is no chunk. With a chunk, query, key and value are [1, tokens, ..]: a token of each row of the
// first cache, which may have none, and then the chunk's. A chunk's token has the same bits wherever the chunk was cut.
//
// A task is up to 32 queries of one key head: neighbouring tokens, with all query heads of the group. It goes through
// the keys once, 32 at a time, with the softmax carried along, and no further than its last query sees; so nothing is
// computed that the causal mask would hide, and scores never leave the nearest cache. Queries are in the lanes of
// registers: the softmax then needs no sum across lanes. Where there are but a few queries, which is when answers are
// written, keys are read as rows instead: memory decides then.

#include <stdlib.h>
#include <string.h>

#include "lanes.h"
#include "operator.h"
#include "pool.h"

namespace {

constexpr size_t kQueries = 32;     // in a task
constexpr size_t kKeys = 32;        // at a time
constexpr size_t kMostWidth = 256;  // of a head
constexpr size_t kFew = 8;          // queries of an answer's token for which keys are read as rows
constexpr size_t kFewTokens = 16;   // whose keys and values are stored before another thread has begun

// Multiplies a row by a Hadamard matrix, its own inverse, in parts of the largest power of two that divides the width.
void rotate(float* row, size_t width) {
  const size_t part = width & -width;
  for (size_t d = 0; d < width; d += kLanes) {
    __m512 x = _mm512_load_ps(row + d), other = _mm512_permute_ps(x, 0xB1);
    x = _mm512_mask_sub_ps(_mm512_add_ps(other, x), 0xAAAA, other, x);
    other = _mm512_permute_ps(x, 0x4E);
    x = _mm512_mask_sub_ps(_mm512_add_ps(other, x), 0xCCCC, other, x);
    other = _mm512_shuffle_f32x4(x, x, 0xB1);
    x = _mm512_mask_sub_ps(_mm512_add_ps(other, x), 0xF0F0, other, x);
    other = _mm512_shuffle_f32x4(x, x, 0x4E);
    _mm512_store_ps(row + d, _mm512_mask_sub_ps(_mm512_add_ps(other, x), 0xFF00, other, x));
  }
  for (size_t step = kLanes; step < part; step *= 2)
    for (size_t d = 0; d < width; d += (d + kLanes) % step ? kLanes : kLanes + step) {
      const __m512 x = _mm512_load_ps(row + d), other = _mm512_load_ps(row + d + step);
      _mm512_store_ps(row + d, _mm512_add_ps(x, other));
      _mm512_store_ps(row + d + step, _mm512_sub_ps(x, other));
    }
  const __m512 unit = _mm512_set1_ps(1 / __builtin_sqrtf(static_cast<float>(part)));
  for (size_t d = 0; d < width; d += kLanes) _mm512_store_ps(row + d, _mm512_mul_ps(unit, _mm512_load_ps(row + d)));
}

// How a row is stored: the elements of a row, and the numbers of a stored row, which are to be multiplied by its scale.
struct Float16 {
  using Element = uint16_t;
  static constexpr bool kScaled = false;
  static constexpr int kType = kOrtFloat16;

  static size_t elements(size_t width) { return width; }

  // What float16 cannot hold becomes the greatest that it can; what is no number stays none, so that it is noticed.
  static void store(Element* to, const float* row, size_t width) {
    const __m512 greatest = _mm512_set1_ps(65504.0f), least = _mm512_set1_ps(-65504.0f);
    for (size_t d = 0; d < width; d += kLanes) {
      const __m512 held = _mm512_max_ps(least, _mm512_min_ps(greatest, _mm512_loadu_ps(row + d)));  // of a NaN: itself
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + d), _mm512_cvtps_ph(held, _MM_FROUND_TO_NEAREST_INT));
    }
  }

  static __m512 load(const Element* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
};

struct Int8 {
  using Element = int8_t;
  static constexpr bool kScaled = true;
  static constexpr int kType = kOrtInt8;

  static size_t elements(size_t width) { return width + sizeof(float); }

  // The scale of a row with a number that is none is none, so that it is noticed.
  static void store(Element* to, const float* from, size_t width) {
    alignas(64) float row[kMostWidth];
    memcpy(row, from, width * sizeof(float));
    rotate(row, width);
    __m512 greatest = _mm512_setzero_ps();
    __mmask16 none = 0;
    for (size_t d = 0; d < width; d += kLanes) {
      const __m512 x = _mm512_load_ps(row + d);
      greatest = _mm512_max_ps(greatest, _mm512_abs_ps(x));
      none |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    }
    const float largest = _mm512_reduce_max_ps(greatest) / 127;
    const float scale = none ? __builtin_nanf("") : largest > 1e-30f ? largest : 1e-30f;
    for (size_t d = 0; d < width; d += kLanes) {
      const __m512i rounded = _mm512_cvtps_epi32(_mm512_div_ps(_mm512_load_ps(row + d), _mm512_set1_ps(scale)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d), _mm512_cvtsepi32_epi8(rounded));
    }
    memcpy(to + width, &scale, sizeof(scale));
  }

  static __m512 load(const Element* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }

  static float scale(const Element* row, size_t width) {
    float scale;
    memcpy(&scale, row + width, sizeof(scale));
    return scale;
  }
};

// A row that is unpacked already.
struct Float32 {
  using Element = float;
  static __m512 load(const float* from) { return _mm512_load_ps(from); }
};

struct Attention {
  const OrtApi* api;
  size_t heads, kv_heads;
  size_t threads;  // of the pool; 0: ONNX Runtime's own are used
  float scale;

  size_t group() const { return heads / kv_heads; }
};

template <typename Stored>
struct Job {
  using Element = typename Stored::Element;

  const Attention* attention;
  size_t rows, sequence, width, past_capacity, capacity;
  size_t tokens_per_task, tasks_per_head;
  size_t few;  // queries for which keys are read as rows; never in a chunk: where it is cut must change no bit
  const float *query, *key, *value;
  const Element *past_keys, *past_values;
  const int32_t* last;
  float* output;
  Element *keys, *values;

  size_t past(size_t row) const { return static_cast<size_t>(last[row]) + 1 - sequence; }
  size_t rows_and_heads() const { return rows * attention->kv_heads; }
  size_t tasks() const { return rows_and_heads() * tasks_per_head; }
  size_t elements() const { return Stored::elements(width); }
};

// The decode rows, and the chunk in the same run.
template <typename Stored>
struct Jobs {
  Job<Stored> job[2];
};

// New keys and values of one row and key head go to their places.
template <typename Stored>
void append(const Job<Stored>& job, size_t item) {
  using Element = typename Stored::Element;
  const size_t kv_heads = job.attention->kv_heads, row = item / kv_heads, head = item % kv_heads;
  const size_t past = job.past(row), width = job.width, size = job.elements();
  const auto place = [&](const float* fresh, const Element* before, Element* all) {
    Element* own = all + item * job.capacity * size;
    const Element* held = before + item * job.past_capacity * size;
    if (own != held) memcpy(own, held, past * size * sizeof(Element));
    for (size_t i = 0; i < job.sequence; ++i)
      Stored::store(own + (past + i) * size, fresh + ((row * job.sequence + i) * kv_heads + head) * width, width);
  };
  place(job.key, job.past_keys, job.keys);
  place(job.value, job.past_values, job.values);
}

// e to the power of x, for x <= 0, to the last bit or two; 0 where that is below the smallest normal number.
inline __m512 exponential(__m512 x) {
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_GE_OQ);
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);  // log 2 in two parts
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  constexpr float kTerms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m512 sum = _mm512_set1_ps(1.0f / 5040);
  for (const float term : kTerms) sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  return _mm512_maskz_scalef_ps(normal, sum, n);
}

// Scores [keys, queries] of `K` keys: their products with adjacent queries, [width, queries].
template <int K>
void score(const float* keys, const float* queries, size_t width, float* scores) {
  __m512 sum[K][2];
  for (int i = 0; i < K; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  for (size_t d = 0; d < width; ++d) {
    const __m512 low = _mm512_load_ps(queries + d * kQueries), high = _mm512_load_ps(queries + d * kQueries + kLanes);
    for (int i = 0; i < K; ++i) {
      const __m512 key = _mm512_set1_ps(keys[i * width + d]);
      sum[i][0] = _mm512_fmadd_ps(key, low, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(key, high, sum[i][1]);
    }
  }
  for (int i = 0; i < K; ++i) {
    _mm512_store_ps(scores + i * kQueries, sum[i][0]);
    _mm512_store_ps(scores + i * kQueries + kLanes, sum[i][1]);
  }
}

// The same for one key and `Q` consecutive queries, [queries, width].
template <int Q, typename Stored>
void score_few(const typename Stored::Element* key, const float* queries, size_t width, float* scores) {
  __m512 sum[Q];
  for (int q = 0; q < Q; ++q) sum[q] = _mm512_setzero_ps();
  for (size_t d = 0; d < width; d += kLanes) {
    const __m512 part = Stored::load(key + d);
    for (int q = 0; q < Q; ++q) sum[q] = _mm512_fmadd_ps(part, _mm512_load_ps(queries + q * width + d), sum[q]);
  }
  for (int q = 0; q < Q; ++q) scores[q] = _mm512_reduce_add_ps(sum[q]);
}

template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls `work` with a number of queries that is known when this is compiled, and the first of them, until all are done.
template <typename Work>
void by_fours(size_t count, Work work) {
  size_t q = 0;
  for (; q + 4 <= count; q += 4) work(Number<4>(), q);
  if (q + 2 <= count) work(Number<2>(), q), q += 2;
  if (q < count) work(Number<1>(), q);
}

// Adds to `Q` sums, `V` registers of each from a place on, the values of `count` keys by their weights. Values are
// `stride` elements apart.
template <int Q, int V, typename Stored>
void add_values(const typename Stored::Element* values, size_t stride, size_t count, size_t width, const float* weights,
                const float* factors, float* sums) {
  __m512 sum[Q][V];
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v)
      sum[q][v] = _mm512_mul_ps(_mm512_set1_ps(factors[q]), _mm512_load_ps(sums + q * width + v * kLanes));
  for (size_t i = 0; i < count; ++i) {
    __m512 value[V];
    for (int v = 0; v < V; ++v) value[v] = Stored::load(values + i * stride + v * kLanes);
    for (int q = 0; q < Q; ++q) {
      const __m512 weight = _mm512_set1_ps(weights[i * kQueries + q]);
      for (int v = 0; v < V; ++v) sum[q][v] = _mm512_fmadd_ps(weight, value[v], sum[q][v]);
    }
  }
  for (int q = 0; q < Q; ++q)
    for (int v = 0; v < V; ++v) _mm512_store_ps(sums + q * width + v * kLanes, sum[q][v]);
}

template <int Q, typename Stored>
void add_values(const typename Stored::Element* values, size_t stride, size_t count, size_t width, const float* weights,
                const float* factors, float* sums) {
  size_t d = 0;
  for (; d + 4 * kLanes <= width; d += 4 * kLanes)
    add_values<Q, 4, Stored>(values + d, stride, count, width, weights, factors, sums + d);
  for (; d < width; d += kLanes)
    add_values<Q, 1, Stored>(values + d, stride, count, width, weights, factors, sums + d);
}

template <typename Stored>
void attend(const Job<Stored>& job, size_t item) {
  using Element = typename Stored::Element;
  const Attention& attention = *job.attention;
  const size_t width = job.width, size = job.elements(), group = attention.group();
  const size_t task = item % job.tasks_per_head, row_and_head = item / job.tasks_per_head;
  const size_t row = row_and_head / attention.kv_heads, head = row_and_head % attention.kv_heads;
  const size_t first = task * job.tokens_per_task, past = job.past(row);
  const size_t tokens = job.sequence - first < job.tokens_per_task ? job.sequence - first : job.tokens_per_task;
  const size_t count = tokens * group;
  const bool few = count <= job.few;
  const auto place = [&](size_t q) {
    return ((row * job.sequence + first + q / group) * attention.heads + head * group + q % group) * width;
  };

  alignas(64) float queries[kQueries * kMostWidth];  // [count, width], or [width, count] if they are not few
  alignas(64) float sums[kQueries * kMostWidth];     // [count, width]
  alignas(64) float scores[kKeys * kQueries];        // [keys, count]
  alignas(64) float most[kQueries], total[kQueries], factors[kQueries];
  alignas(64) int32_t visible[kQueries];  // keys that each sees
  if (!few) memset(queries, 0, width * kQueries * sizeof(float));
  memset(scores, 0, sizeof(scores));
  memset(sums, 0, count * width * sizeof(float));
  for (size_t q = 0; q < kQueries; ++q) {
    most[q] = -__builtin_inff();
    total[q] = 0;
    visible[q] = q < count ? static_cast<int32_t>(past + first + q / group + 1) : 1;
    if (q >= count) continue;
    const float* query = job.query + place(q);
    alignas(64) float row[kMostWidth];
    for (size_t d = 0; d < width; ++d) row[d] = query[d] * attention.scale;
    if (Stored::kScaled) rotate(row, width);
    for (size_t d = 0; d < width; ++d) queries[few ? q * width + d : d * kQueries + q] = row[d];
  }

  const Element* all_keys = job.keys + row_and_head * job.capacity * size;
  const Element* all_values = job.values + row_and_head * job.capacity * size;
  alignas(64) float keys[kKeys * kMostWidth], values[kKeys * kMostWidth];
  const size_t end = past + first + tokens;
  for (size_t from = 0; from < end; from += kKeys) {
    const size_t now = end - from < kKeys ? end - from : kKeys;
    const Element *own_keys = all_keys + from * size, *own_values = all_values + from * size;
    if (few) {
      for (size_t i = 0; i < now; ++i)
        by_fours(count, [&](auto n, size_t q) {
          score_few<n.value, Stored>(own_keys + i * size, queries + q * width, width, scores + i * kQueries + q);
        });
    } else {
      // As many queries as this go through them that it pays to unpack them first.
      for (size_t i = 0; i < now; ++i)
        for (size_t d = 0; d < width; d += kLanes) {
          _mm512_store_ps(keys + i * width + d, Stored::load(own_keys + i * size + d));
          _mm512_store_ps(values + i * width + d, Stored::load(own_values + i * size + d));
        }
      size_t i = 0;
      for (; i + 8 <= now; i += 8) score<8>(keys + i * width, queries, width, scores + i * kQueries);
      for (; i < now; ++i) score<1>(keys + i * width, queries, width, scores + i * kQueries);
    }
    for (size_t half = 0; half < count; half += kLanes) {
      const __m512i sees = _mm512_load_si512(visible + half);
      const __m512 before = _mm512_load_ps(most + half);
      __m512 greatest = before;
      for (size_t i = 0; i < now; ++i) {
        float* own = scores + i * kQueries + half;
        const __mmask16 seen = _mm512_cmpgt_epi32_mask(sees, _mm512_set1_epi32(static_cast<int>(from + i)));
        __m512 score = _mm512_load_ps(own);
        if constexpr (Stored::kScaled)
          score = _mm512_mul_ps(score, _mm512_set1_ps(Stored::scale(own_keys + i * size, width)));
        const __m512 masked = _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), seen, score);
        _mm512_store_ps(own, masked);
        greatest = _mm512_max_ps(greatest, masked);
      }
      const __m512 factor = exponential(_mm512_sub_ps(before, greatest));
      __m512 sum = _mm512_mul_ps(factor, _mm512_load_ps(total + half));
      for (size_t i = 0; i < now; ++i) {
        float* own = scores + i * kQueries + half;
        __m512 weight = exponential(_mm512_sub_ps(_mm512_load_ps(own), greatest));
        sum = _mm512_add_ps(sum, weight);
        if constexpr (Stored::kScaled)
          weight = _mm512_mul_ps(weight, _mm512_set1_ps(Stored::scale(own_values + i * size, width)));
        _mm512_store_ps(own, weight);
      }
      _mm512_store_ps(most + half, greatest);
      _mm512_store_ps(total + half, sum);
      _mm512_store_ps(factors + half, factor);
    }
    by_fours(count, [&](auto n, size_t q) {
      if (few)
        add_values<n.value, Stored>(own_values, size, now, width, scores + q, factors + q, sums + q * width);
      else
        add_values<n.value, Float32>(values, width, now, width, scores + q, factors + q, sums + q * width);
    });
  }

  for (size_t q = 0; q < count; ++q) {
    const __m512 share = _mm512_set1_ps(1 / total[q]);
    float *output = job.output + place(q), *own = sums + q * width;
    if (Stored::kScaled) rotate(own, width);
    for (size_t d = 0; d < width; d += kLanes)
      _mm512_storeu_ps(output + d, _mm512_mul_ps(share, _mm512_load_ps(own + d)));
  }
}

template <typename Stored>
void append_one(void* argument, size_t item) {
  const Jobs<Stored>& all = *static_cast<Jobs<Stored>*>(argument);
  const size_t first = all.job[0].rows_and_heads();
  item < first ? append(all.job[0], item) : append(all.job[1], item - first);
}

template <typename Stored>
void attend_one(void* argument, size_t item) {
  const Jobs<Stored>& all = *static_cast<Jobs<Stored>*>(argument);
  const size_t first = all.job[0].tasks();
  item < first ? attend(all.job[0], item) : attend(all.job[1], item - first);
}

template <void (*work)(void*, size_t)>
void in_section(const void* argument, size_t item, char*) {
  work(const_cast<void*>(argument), item);
}

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  int64_t heads = 0, kv_heads = 0, threads = 0;
  float scale = 0;
  if (OrtStatus* status = api->attribute(info, "num_heads", &heads)) return status;
  if (OrtStatus* status = api->attribute(info, "kv_num_heads", &kv_heads)) return status;
  if (OrtStatus* status = api->attribute(info, "scale", &scale)) return status;
  if (OrtStatus* status = api->attribute(info, "threads", &threads)) return status;
  if (kv_heads < 1 || heads < kv_heads || heads % kv_heads || heads / kv_heads > static_cast<int64_t>(kQueries))
    return api->create_status(kOrtInvalidArgument, "GroupQueryAttention: at most 32 heads may share a key head");
  Attention* attention = static_cast<Attention*>(malloc(sizeof(Attention)));
  if (!attention) return api->create_status(kOrtFail, "GroupQueryAttention: out of memory");
  *attention = {api, static_cast<size_t>(heads), static_cast<size_t>(kv_heads), static_cast<size_t>(threads), scale};
  if (attention->threads && !join_pool(attention->threads)) {
    free(attention);
    return api->create_status(kOrtFail, "GroupQueryAttention: no threads");
  }
  *kernel = attention;
  return nullptr;
}

// A cache: four inputs and two outputs from these places on. Heads are of the job's width.
template <typename Stored>
OrtStatus* read_cache(OrtKernelContext* context, size_t input, size_t output, Job<Stored>* job) {
  const OrtApi& api = *job->attention->api;
  Shape past, past_values, lengths, none;
  const int32_t* longest = nullptr;
  if (OrtStatus* status = read_input(api, context, input, &past, &job->past_keys)) return status;
  if (OrtStatus* status = read_input(api, context, input + 1, &past_values, &job->past_values)) return status;
  if (OrtStatus* status = read_input(api, context, input + 2, &lengths, &job->last)) return status;
  if (OrtStatus* status = read_input(api, context, input + 3, &none, &longest)) return status;
  if (past.rank != 4 || past_values != past || past.dimensions[1] != static_cast<int64_t>(job->attention->kv_heads) ||
      past.dimensions[3] != static_cast<int64_t>(job->elements()) ||
      lengths.product(lengths.rank) != past.product(1))
    return api.create_status(kOrtInvalidArgument, "GroupQueryAttention: shapes that do not belong together");
  job->rows = past.product(1);
  job->past_capacity = static_cast<size_t>(past.dimensions[2]);
  job->capacity = job->past_capacity;
  if (static_cast<size_t>(longest[0]) > job->capacity) job->capacity = static_cast<size_t>(longest[0]);
  past.dimensions[2] = static_cast<int64_t>(job->capacity);
  if (OrtStatus* status = make_output(api, context, output, past, &job->keys)) return status;
  return make_output(api, context, output + 1, past, &job->values);
}

// So many new tokens of each of its rows, from one on.
template <typename Stored>
OrtStatus* plan(size_t sequence, size_t from, Job<Stored>* job) {
  const Attention& attention = *job->attention;
  for (size_t row = 0; row < job->rows; ++row) {
    const size_t keys = static_cast<size_t>(job->last[row]) + 1;
    if (job->last[row] < 0 || keys < sequence || keys > job->capacity || keys - sequence > job->past_capacity)
      return attention.api->create_status(kOrtInvalidArgument,
                                          "GroupQueryAttention: a row of seqlens_k does not fit the cache");
  }
  job->sequence = sequence;
  job->query += from * attention.heads * job->width;
  job->key += from * attention.kv_heads * job->width;
  job->value += from * attention.kv_heads * job->width;
  job->output += from * attention.heads * job->width;
  job->tokens_per_task = kQueries / attention.group();
  job->tasks_per_head = (sequence + job->tokens_per_task - 1) / job->tokens_per_task;
  return nullptr;
}

template <typename Stored>
OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const Attention& attention = *static_cast<Attention*>(kernel);
  const OrtApi& api = *attention.api;
  const auto refuse = [&] {
    return api.create_status(kOrtInvalidArgument, "GroupQueryAttention: shapes that do not belong together");
  };
  Shape query, key, value;
  size_t inputs = 0;
  Jobs<Stored> jobs{};
  Job<Stored> &rows = jobs.job[0], &chunk = jobs.job[1];
  rows.attention = &attention;
  if (OrtStatus* status = api.input_count(context, &inputs)) return status;
  if (OrtStatus* status = read_input(api, context, 0, &query, &rows.query)) return status;
  if (OrtStatus* status = read_input(api, context, 1, &key, &rows.key)) return status;
  if (OrtStatus* status = read_input(api, context, 2, &value, &rows.value)) return status;
  if (OrtStatus* status = make_output(api, context, 0, query, &rows.output)) return status;
  if (query.rank != 3 || query.dimensions[2] % static_cast<int64_t>(attention.heads)) return refuse();
  const size_t width = rows.width = static_cast<size_t>(query.dimensions[2]) / attention.heads;
  chunk = rows;
  rows.few = kFew;
  if (OrtStatus* status = read_cache(context, 3, 1, &rows)) return status;
  if (inputs > 7)
    if (OrtStatus* status = read_cache(context, 7, 3, &chunk)) return status;
  if (key.rank != 3 || value != key || width % kLanes || width > kMostWidth ||
      key.dimensions[2] != static_cast<int64_t>(attention.kv_heads * width) || query.product(2) != key.product(2))
    return refuse();
  const size_t tokens = query.product(2);
  const bool beside = chunk.rows > 0;
  if (beside ? chunk.rows > 1 || query.dimensions[0] != 1 || tokens <= rows.rows
             : query.product(1) != rows.rows || key.dimensions[0] != query.dimensions[0])
    return refuse();
  if (!tokens) return nullptr;
  if (OrtStatus* status = plan(beside ? 1 : tokens / rows.rows, 0, &rows)) return status;
  if (beside)
    if (OrtStatus* status = plan(tokens - rows.rows, rows.rows, &chunk)) return status;
  const size_t places = rows.rows_and_heads() + chunk.rows_and_heads(), tasks = rows.tasks() + chunk.tasks();
  if (!attention.threads) {
    if (OrtStatus* status = api.parallel_for(context, append_one<Stored>, places, 0, &jobs)) return status;
    return api.parallel_for(context, attend_one<Stored>, tasks, tasks, &jobs);
  }
  // No item is taken over from an interrupted thread: it could go on reading the cache, which is the caller's memory.
  Turn turn(attention.threads, 0, 0);
  if (tokens < kFewTokens)
    for (size_t place = 0; place < places; ++place) append_one<Stored>(&jobs, place);
  else
    turn.run({places, in_section<append_one<Stored>>, nullptr, 0}, &jobs);
  turn.run({tasks, in_section<attend_one<Stored>>, nullptr, 0}, &jobs);
  return nullptr;
}

void destroy(void* kernel) {
  if (static_cast<Attention*>(kernel)->threads) leave_pool();
  free(kernel);
}

template <typename Stored>
Operator operator_named(const char* name) {
  constexpr int kCache = Stored::kType;
  return {name,
          {kOrtFloat, kOrtFloat, kOrtFloat, kCache, kCache, kOrtInt32, kOrtInt32, kCache, kCache, kOrtInt32, kOrtInt32},
          {kOrtFloat, kCache, kCache, kCache, kCache},
          create,
          compute<Stored>,
          destroy,
          7,
          3};
}

}  // namespace

const Operator& attention() {
  static const Operator op = operator_named<Float16>("GroupQueryAttention");
  return op;
}

const Operator& attention_int8() {
  static const Operator op = operator_named<Int8>("GroupQueryAttentionInt8");
  return op;
}
