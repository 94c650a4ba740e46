// Where ONNX Runtime finds the operators: all of them, in a domain of their own.

#include "operator.h"

const Operator& attention();
const Operator& attention_int8();
const Operator& matmul_nbits();
const Operator& round_rows();

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  const OrtApi& api = *base->get_api(matmul_nbits().version);
  static OrtCustomOpDomain* domain = nullptr;  // for as long as the process lives: sessions refer to it
  if (!domain) {
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = api.create_domain("triptych", &made)) return status;
    const OrtCustomOp* const operators[] = {&attention(), &attention_int8(), &matmul_nbits(), &round_rows()};
    for (const OrtCustomOp* op : operators)
      if (OrtStatus* status = api.add_op(made, op)) return status;
    domain = made;
  }
  return api.add_domain(options, domain);
}
