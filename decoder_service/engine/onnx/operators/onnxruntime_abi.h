// The part of ONNX Runtime's C interface that custom operators need.
//
// The Python wheel comes without headers. The interface is a table of functions to which releases only append, so a
// function's place in it never changes; the tests of the operators notice if one did.

#pragma once

#include <stddef.h>
#include <stdint.h>

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

enum { kOrtFail = 1, kOrtInvalidArgument = 2 };       // OrtErrorCode
enum { kOrtRequired = 0, kOrtOptional = 1 };           // OrtCustomOpInputOutputCharacteristic
enum { kOrtFloat = 1, kOrtUint8 = 2, kOrtInt8 = 3, kOrtInt32 = 6, kOrtFloat16 = 10 };  // ONNXTensorElementDataType

struct OrtApi {
  void* functions[275];

  template <typename Result, typename... Arguments>
  Result call(size_t place, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(functions[place])(arguments...);
  }

  OrtStatus* create_status(int code, const char* message) const { return call<OrtStatus*>(0, code, message); }
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** domain) const {
    return call<OrtStatus*>(26, name, domain);
  }
  OrtStatus* add_op(OrtCustomOpDomain* domain, const void* op) const { return call<OrtStatus*>(27, domain, op); }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return call<OrtStatus*>(28, options, domain);
  }
  OrtStatus* data(const OrtValue* value, void** data) const { return call<OrtStatus*>(51, value, data); }
  OrtStatus* rank(const OrtTensorTypeAndShapeInfo* info, size_t* rank) const {
    return call<OrtStatus*>(61, info, rank);
  }
  OrtStatus* dimensions(const OrtTensorTypeAndShapeInfo* info, int64_t* dimensions, size_t rank) const {
    return call<OrtStatus*>(62, info, dimensions, rank);
  }
  OrtStatus* shape_info(const OrtValue* value, OrtTensorTypeAndShapeInfo** info) const {
    return call<OrtStatus*>(65, value, info);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* value) const {
    return call<OrtStatus*>(85, info, name, value);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* value) const {
    return call<OrtStatus*>(86, info, name, value);
  }
  OrtStatus* input_count(const OrtKernelContext* context, size_t* count) const {
    return call<OrtStatus*>(88, context, count);
  }
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** value) const {
    return call<OrtStatus*>(90, context, index, value);
  }
  OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* dimensions, size_t rank,
                    OrtValue** value) const {
    return call<OrtStatus*>(91, context, index, dimensions, rank, value);
  }
  void release_shape_info(OrtTensorTypeAndShapeInfo* info) const { call<void>(99, info); }
  OrtStatus* constant_input(const OrtKernelInfo* info, size_t index, int* is_constant, const OrtValue** value) const {
    return call<OrtStatus*>(249, info, index, is_constant, value);
  }
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*work)(void*, size_t), size_t total, size_t batches,
                          void* argument) const {
    return call<OrtStatus*>(274, context, work, total, batches, argument);
  }
};

struct OrtApiBase {
  const OrtApi* (*get_api)(uint32_t version);
  const char* (*version)();
};

// As of version 16, the first whose functions can fail.
struct OrtCustomOp {
  uint32_t version;
  void* (*create_kernel_v1)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*name)(const OrtCustomOp*);
  const char* (*execution_provider)(const OrtCustomOp*);
  int (*input_type)(const OrtCustomOp*, size_t);
  size_t (*input_count)(const OrtCustomOp*);
  int (*output_type)(const OrtCustomOp*, size_t);
  size_t (*output_count)(const OrtCustomOp*);
  void (*compute_v1)(void*, OrtKernelContext*);
  void (*destroy)(void*);
  int (*input_characteristic)(const OrtCustomOp*, size_t);
  int (*output_characteristic)(const OrtCustomOp*, size_t);
  int (*input_memory)(const OrtCustomOp*, size_t);
  int (*variadic_input_arity)(const OrtCustomOp*);
  int (*variadic_input_homogeneity)(const OrtCustomOp*);
  int (*variadic_output_arity)(const OrtCustomOp*);
  int (*variadic_output_homogeneity)(const OrtCustomOp*);
  OrtStatus* (*create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*compute)(void*, OrtKernelContext*);
};
