// triptych.RoundRows: each row divided by its largest magnitude and rounded to the grid n / 127, as the INT8 graph's
// matmuls take it; in one pass where ONNX Runtime needs five operators.
//
//   X        float [..., K]
//   Y        uint8 [..., K], its zero point 128
//   largest  float [..., 1], at least 1e-30: a row of zeros stays one

#include "lanes.h"
#include "operator.h"

namespace {

constexpr float kTiny = 1e-30f;

struct Job {
  size_t k;
  const float* x;
  uint8_t* y;
  float* largest;
};

void round_row(void* argument, size_t row) {
  const Job& job = *static_cast<Job*>(argument);
  const float* x = job.x + row * job.k;
  uint8_t* y = job.y + row * job.k;
  __m512 most = _mm512_setzero_ps();
  for (size_t i = 0; i < job.k; i += kLanes)
    most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes(job.k - i), x + i)));
  const float reduced = _mm512_reduce_max_ps(most);
  const float largest = reduced > kTiny ? reduced : kTiny;
  job.largest[row] = largest;
  const __m512 steps = _mm512_set1_ps(127 / largest);
  const __m512i zero = _mm512_set1_epi32(128);
  for (size_t i = 0; i < job.k; i += kLanes) {
    const __mmask16 used = lanes(job.k - i);
    const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(used, x + i), steps);
    _mm512_mask_cvtusepi32_storeu_epi8(y + i, used, _mm512_add_epi32(_mm512_cvtps_epi32(scaled), zero));
  }
}

OrtStatus* create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo*, void** kernel) {
  *kernel = const_cast<OrtApi*>(api);
  return nullptr;
}

void destroy(void*) {}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  const OrtApi& api = *static_cast<const OrtApi*>(kernel);
  Shape shape;
  Job job{};
  if (OrtStatus* status = read_input(api, context, 0, &shape, &job.x)) return status;
  if (!shape.rank) return api.create_status(kOrtInvalidArgument, "RoundRows: X has no axis");
  job.k = static_cast<size_t>(shape.dimensions[shape.rank - 1]);
  const size_t rows = shape.product(shape.rank - 1);
  if (OrtStatus* status = make_output(api, context, 0, shape, &job.y)) return status;
  shape.dimensions[shape.rank - 1] = 1;
  if (OrtStatus* status = make_output(api, context, 1, shape, &job.largest)) return status;
  constexpr size_t kFewRows = 8;  // that are done before another thread has woken up
  if (rows > kFewRows) return api.parallel_for(context, round_row, rows, 0, &job);
  for (size_t row = 0; row < rows; ++row) round_row(&job, row);
  return nullptr;
}

}  // namespace

const Operator& round_rows() {
  static const Operator op("RoundRows", {kOrtFloat}, {kOrtUint8, kOrtFloat}, create, compute, destroy);
  return op;
}
