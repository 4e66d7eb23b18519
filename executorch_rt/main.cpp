// Runs an INT8 program of benchmark_qat_model.py --pte on images with ExecuTorch and XNNPACK.
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include "runner.hpp"

// Of extension/threadpool/threadpool.h, which the Python package does not bring; the library has the functions.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(std::uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

namespace et = executorch::extension;
using executorch::runtime::EValue;
using executorch::runtime::Result;

const runner::Program PROGRAM = {"deploy_executorch_rt", "MODEL.pte", "", "", "", ""};
const std::string DESCRIPTION = "quanty_description";  // a method of the program, see common/runtimes/pte.py

std::string last_message;  // ExecuTorch's own, which it would write to stderr

void keep_message(et_timestamp_t, et_pal_log_level_t, const char*, const char*, std::size_t, const char* message,
                  std::size_t length) {
  last_message.assign(message, length);
}

template <class T>
T value_of(Result<T> result, const std::string& what) {
  if (!result.ok())
    throw std::runtime_error(what + " (" + last_message + ", error " + std::to_string(static_cast<int>(result.error())) +
                             ")");
  return std::move(*result);
}

runner::Description describe(et::Module& module, const runner::fs::path& path) {
  const auto names = value_of(module.method_names(), path.string() + ": ExecuTorch cannot load it");
  runner::Json fields;
  if (names.count(DESCRIPTION)) {
    const auto text = value_of(module.execute(DESCRIPTION), path.string() + ": its description cannot be read");
    fields = runner::Json::parse(std::string(text.at(0).toString()), nullptr, false);
  }
  return runner::read_description(path, fields);
}

runner::Output output_of(const std::string& name, const EValue& value) {
  if (!value.isTensor() || value.toTensor().scalar_type() != executorch::aten::ScalarType::Float)
    throw std::runtime_error("output " + name + " is not float32");
  const auto tensor = value.toTensor();
  const auto sizes = tensor.sizes();
  return {name, {sizes.begin(), sizes.end()}, tensor.const_data_ptr<float>()};
}

void run(const runner::Options& options) {
  const std::string path = options.model.string();
  if (!runner::fs::is_regular_file(options.model)) throw std::runtime_error(path + ": no such ExecuTorch program");
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(keep_message, __FILE__));
  executorch::runtime::runtime_init();
  if (options.threads)
    et::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<std::uint32_t>(options.threads));
  et::Module module(path);
  const auto description = describe(module, options.model);
  const std::vector<executorch::aten::SizesType> shape = {1, 3, description.height, description.width};

  std::vector<EValue> values;  // hold the last outputs
  const auto infer = [&](const runner::Input& input) {
    const auto tensor = et::from_blob(const_cast<float*>(input.numbers.data()), shape);
    values = value_of(module.forward(tensor), path + ": ExecuTorch cannot run it");
    if (values.size() != description.outputs.size())
      throw std::runtime_error(path + ": its description is of another network");
    std::vector<runner::Output> outputs;
    for (std::size_t i = 0; i < values.size(); ++i) outputs.push_back(output_of(description.outputs[i], values[i]));
    return outputs;
  };
  const std::string threads = options.threads ? std::to_string(options.threads) : "by ExecuTorch";
  runner::run_images(options, description, "ExecuTorch XNNPACK, threads " + threads, infer);
}

}  // namespace

int main(int argc, char** argv) { return runner::run_program(PROGRAM, argc, argv, run); }
