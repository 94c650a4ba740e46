// What the operators share: how one is described to ONNX Runtime, and how it gets at its tensors.

#pragma once

#include "onnxruntime_abi.h"

constexpr size_t kMostDimensions = 8;

struct Shape {
  size_t rank = 0;
  int64_t dimensions[kMostDimensions] = {};

  bool operator!=(const Shape& other) const {
    if (rank != other.rank) return true;
    for (size_t i = 0; i < rank; ++i)
      if (dimensions[i] != other.dimensions[i]) return true;
    return false;
  }

  // Elements of the first `count` axes together.
  size_t product(size_t count) const {
    size_t elements = 1;
    for (size_t i = 0; i < count; ++i) elements *= static_cast<size_t>(dimensions[i]);
    return elements;
  }
};

inline OrtStatus* shape_of(const OrtApi& api, const OrtValue* value, Shape* shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  OrtStatus* status = api.shape_info(value, &info);
  if (status) return status;
  status = api.rank(info, &shape->rank);
  if (!status && shape->rank > kMostDimensions) status = api.create_status(kOrtInvalidArgument, "too many axes");
  if (!status) status = api.dimensions(info, shape->dimensions, shape->rank);
  api.release_shape_info(info);
  return status;
}

// An input's shape and elements.
template <typename T>
OrtStatus* read_input(const OrtApi& api, const OrtKernelContext* context, size_t index, Shape* shape, const T** data) {
  const OrtValue* value = nullptr;
  void* elements = nullptr;
  if (OrtStatus* status = api.input(context, index, &value)) return status;
  if (OrtStatus* status = shape_of(api, value, shape)) return status;
  if (OrtStatus* status = api.data(value, &elements)) return status;
  *data = static_cast<const T*>(elements);
  return nullptr;
}

// An output of that shape, and where its elements go.
template <typename T>
OrtStatus* make_output(const OrtApi& api, OrtKernelContext* context, size_t index, const Shape& shape, T** data) {
  OrtValue* value = nullptr;
  void* elements = nullptr;
  if (OrtStatus* status = api.output(context, index, shape.dimensions, shape.rank, &value)) return status;
  if (OrtStatus* status = api.data(value, &elements)) return status;
  *data = static_cast<T*>(elements);
  return nullptr;
}

// An operator's name and the types of its inputs and outputs, zero after the last; the later ones may be left out.
struct Operator : OrtCustomOp {
  const char* own_name;
  int inputs[12], outputs[6];
  size_t needed_inputs, needed_outputs;

  using Create = OrtStatus* (*)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);

  template <size_t N, size_t M>
  Operator(const char* own_name, const int (&in)[N], const int (&out)[M], Create create,
           OrtStatus* (*compute)(void*, OrtKernelContext*), void (*destroy)(void*), size_t needed_inputs = N,
           size_t needed_outputs = M)
      : OrtCustomOp{},
        own_name(own_name),
        inputs{},
        outputs{},
        needed_inputs(needed_inputs),
        needed_outputs(needed_outputs) {
    for (size_t i = 0; i < N; ++i) inputs[i] = in[i];
    for (size_t i = 0; i < M; ++i) outputs[i] = out[i];
    version = 16;
    name = [](const OrtCustomOp* op) { return self(op).own_name; };
    execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU's
    input_type = [](const OrtCustomOp* op, size_t index) { return self(op).inputs[index]; };
    input_count = [](const OrtCustomOp* op) { return count(self(op).inputs); };
    output_type = [](const OrtCustomOp* op, size_t index) { return self(op).outputs[index]; };
    output_count = [](const OrtCustomOp* op) { return count(self(op).outputs); };
    input_characteristic = [](const OrtCustomOp* op, size_t index) { return optional(index >= self(op).needed_inputs); };
    output_characteristic = [](const OrtCustomOp* op, size_t index) { return optional(index >= self(op).needed_outputs); };
    input_memory = [](const OrtCustomOp*, size_t) { return 0; };  // the CPU's
    variadic_input_arity = variadic_input_homogeneity = [](const OrtCustomOp*) { return 1; };
    variadic_output_arity = variadic_output_homogeneity = [](const OrtCustomOp*) { return 1; };
    this->create_kernel = create;
    this->compute = compute;
    this->destroy = destroy;
  }

 private:
  static const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }
  static int optional(bool may_be_left_out) { return may_be_left_out ? kOrtOptional : kOrtRequired; }
  static size_t count(const int* types) {
    size_t n = 0;
    while (types[n]) ++n;
    return n;
  }
};
