// A linear layer in 8 bits: y = x W^T + b, with a normalization before it and GELU or an addition after it.
//
// Each row of x is divided by a scale of its own and rounded to 8 bits, each row of W (an output channel) likewise when it
// was packed. The products are added up as integers, exactly; what is left is one multiplication by both scales. x, y and
// what is added are bfloat16.
//
// The instruction multiplies unsigned bytes by signed ones. Weights are the unsigned ones, 128 too large, which a sum over
// each row of x makes good.
//
// A row's result does not depend on which thread computes it, nor on other rows.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "lanes.h"
#include "threads.h"

namespace {

constexpr int kVectors = 2;                // registers of output channels in a tile
constexpr int kChannels = kVectors * kLanes;  // of a panel of packed weights
constexpr int kMostRows = 12;              // of a tile: as many as there are registers for
constexpr int kRowsOfTask = 8 * kMostRows;  // rows that go through the same panels while these are in the second-level cache
constexpr int kPanelsOfTask = 4;

enum After : int64_t { kNothing, kTanhGelu, kGelu, kAdd };

struct Task {
  const uint16_t* x;         // [rows, inputs], bfloat16
  const float* factors;      // [inputs]: what the columns of x, normalized or not, are multiplied by
  const float* shift;        // [inputs]: what is added then, where x is normalized
  int8_t* rounded;           // [rows, padded inputs]
  float* row_scales;         // [rows]
  int32_t* corrections;      // [rows]
  const uint8_t* weights;    // [panels, padded inputs / 4, kChannels, 4]
  const float* scales;       // [panels x kChannels]
  const float* bias;         // [panels x kChannels]
  const uint16_t* other;     // [rows, outputs], bfloat16: what is added
  uint16_t* y;               // [rows, outputs], bfloat16
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  After after;
  float epsilon;             // of the normalization; negative: x is not normalized
};

inline int64_t padded(int64_t inputs) { return up(inputs, 4); }

// A row of x as it is rounded.
class Row {
 public:
  Row(const Task& task, int64_t row) : task_(task), x_(task.x + row * task.inputs) {
    if (task.epsilon < 0) return;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < task.inputs; at += kLanes) sum = _mm512_add_ps(sum, load_bf16(lanes(task.inputs - at), x_ + at));
    mean_ = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / float(task.inputs));
    __m512 squares = _mm512_setzero_ps();
    for (int64_t at = 0; at < task.inputs; at += kLanes) {
      const __mmask16 mask = lanes(task.inputs - at);
      const __m512 distance = _mm512_maskz_sub_ps(mask, load_bf16(mask, x_ + at), mean_);
      squares = _mm512_fmadd_ps(distance, distance, squares);
    }
    const float variance = _mm512_reduce_add_ps(squares) / float(task.inputs);
    by_ = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(_mm512_set1_ps(variance + task.epsilon)));
  }

  __m512 load(int64_t at) const {
    const __mmask16 mask = lanes(task_.inputs - at);
    const __m512 x = load_bf16(mask, x_ + at);
    const __m512 factors = _mm512_maskz_loadu_ps(mask, task_.factors + at);
    if (task_.epsilon < 0) return _mm512_mul_ps(x, factors);
    const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(x, mean_), by_);
    return _mm512_maskz_fmadd_ps(mask, normal, factors, _mm512_maskz_loadu_ps(mask, task_.shift + at));
  }

 private:
  const Task& task_;
  const uint16_t* x_;
  __m512 mean_, by_;
};

void round_row(const Task& task, int64_t number) {
  const Row row(task, number);
  __m512 most = _mm512_setzero_ps();
  for (int64_t at = 0; at < task.inputs; at += kLanes) most = _mm512_max_ps(most, _mm512_abs_ps(row.load(at)));
  const float scale = _mm512_reduce_max_ps(most) / 127;
  const __m512 inverse = _mm512_set1_ps(scale > 1e-36f ? 1 / scale : 0);  // a row of hardly anything is one of zeros
  const int64_t width = padded(task.inputs);
  __m512i sum = _mm512_setzero_si512();
  for (int64_t at = 0; at < task.inputs; at += kLanes) {
    const __m512i values = _mm512_cvtps_epi32(_mm512_mul_ps(row.load(at), inverse));
    sum = _mm512_add_epi32(sum, values);
    _mm_mask_storeu_epi8(task.rounded + number * width + at, lanes(width - at), _mm512_cvtsepi32_epi8(values));
  }
  task.row_scales[number] = scale;
  task.corrections[number] = -128 * _mm512_reduce_add_epi32(sum);
}

// x times the normal distribution's sum up to x, by tanh or by erf.
inline __m512 gelu(__m512 x, bool tanh) {
  const __m512 one = _mm512_set1_ps(1.0f);
  if (tanh) {  // x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3))), the exponent in powers of two
    const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.10294324f), _mm512_set1_ps(-2.3022082f));
    return _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(one, exp2_of(_mm512_mul_ps(x, inner)))));
  }
  // Abramowitz and Stegun, 7.1.26: 1 - erf(z) is a polynomial in 1 / (1 + 0.3275911 z), times exp(-z^2); z = |x| / sqrt(2).
  const __m512 part = _mm512_rcp14_ps(_mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.23164189f), one));
  __m512 tail = _mm512_set1_ps(0.5307027f);
  tail = _mm512_fmadd_ps(tail, part, _mm512_set1_ps(-0.7265760f));
  tail = _mm512_fmadd_ps(tail, part, _mm512_set1_ps(0.7107069f));
  tail = _mm512_fmadd_ps(tail, part, _mm512_set1_ps(-0.1422484f));
  tail = _mm512_fmadd_ps(tail, part, _mm512_set1_ps(0.1274148f));
  tail = _mm512_mul_ps(tail, _mm512_mul_ps(part, exp2_of(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)))));
  // `tail` is half of 1 - erf: what is above |x|, and by symmetry what is below -|x|.
  const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  return _mm512_mul_ps(x, _mm512_mask_sub_ps(tail, above, one, tail));
}

// `Rows` rows of x by a panel. Where fewer are left, the last one stands in for those that are missing.
template <int Rows>
void compute_tile(const Task& task, int64_t first, int64_t panel) {
  const int64_t width = padded(task.inputs);
  const uint8_t* weights = task.weights + panel * width * kChannels;
  const int8_t* x[Rows];
  __m512i sums[Rows][kVectors];
  for (int r = 0; r < Rows; ++r) {
    const int64_t row = first + r < task.rows ? first + r : task.rows - 1;
    x[r] = task.rounded + row * width;
    for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_set1_epi32(task.corrections[row]);
  }
  for (int64_t at = 0; at < width; at += 4) {
    __m512i weight[kVectors];
    for (int v = 0; v < kVectors; ++v) weight[v] = _mm512_loadu_si512(weights + at * kChannels + v * 64);
    for (int r = 0; r < Rows; ++r) {
      int32_t four;
      memcpy(&four, x[r] + at, 4);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_dpbusd_epi32(sums[r][v], weight[v], _mm512_set1_epi32(four));
    }
  }
  for (int r = 0; r < Rows && first + r < task.rows; ++r) {
    const int64_t row = first + r;
    const __m512 scale = _mm512_set1_ps(task.row_scales[row]);
    for (int v = 0; v < kVectors; ++v) {
      const int64_t channel = panel * kChannels + v * kLanes;
      const __mmask16 mask = lanes(task.outputs - channel);
      const __m512 both = _mm512_mul_ps(scale, _mm512_loadu_ps(task.scales + channel));
      __m512 y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][v]), both, _mm512_loadu_ps(task.bias + channel));
      if (task.after == kAdd) y = _mm512_add_ps(y, load_bf16(mask, task.other + row * task.outputs + channel));
      if (task.after == kTanhGelu || task.after == kGelu) y = gelu(y, task.after == kTanhGelu);
      store_bf16(task.y + row * task.outputs + channel, mask, y);
    }
  }
}

void compute_rows(const Task& task, int64_t first, int64_t first_panel) {
  const int64_t end = first + kRowsOfTask < task.rows ? first + kRowsOfTask : task.rows;
  const int64_t panels = up(task.outputs, kChannels) / kChannels;
  for (int64_t panel = first_panel; panel < first_panel + kPanelsOfTask && panel < panels; ++panel)
    for (int64_t row = first; row < end; row += kMostRows) {
      if (end - row > 8) {
        compute_tile<kMostRows>(task, row, panel);
      } else if (end - row > 4) {
        compute_tile<8>(task, row, panel);
      } else {
        compute_tile<4>(task, row, panel);
      }
    }
}

}  // namespace

EXPORTED void linear(const Task* given, Parallel parallel) {
  const Task& task = *given;
  constexpr int64_t kTogether = 16;  // rows that are rounded in one task
  for_each(parallel, up(task.rows, kTogether) / kTogether, [&](int64_t number) {
    for (int64_t row = number * kTogether; row < (number + 1) * kTogether && row < task.rows; ++row) round_row(task, row);
  });
  const int64_t columns = up(up(task.outputs, kChannels) / kChannels, kPanelsOfTask) / kPanelsOfTask;
  for_each(parallel, up(task.rows, kRowsOfTask) / kRowsOfTask * columns, [&](int64_t number) {
    compute_rows(task, number / columns * kRowsOfTask, number % columns * kPanelsOfTask);
  });
}
