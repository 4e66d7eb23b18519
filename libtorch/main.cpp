// Runs a network of trace_pytorch_model.py on images with LibTorch, on the CPU or on CUDA.
#include <torch/cuda.h>
#include <torch/script.h>
#include <torch/utils.h>

#include "runner.hpp"

namespace {

const runner::Program PROGRAM = {"deploy_libtorch", "MODEL.pt", "--device", "cpu or cuda", "", ""};
const std::string DESCRIPTION = "quanty.json";  // within the file, see common/networks/metadata.py

torch::Device find_device(const std::string& name) {
  if (name == "cpu") return torch::kCPU;
  if (name != "cuda") throw runner::UsageError("--device " + name + ": wanted cpu or cuda");
  if (!torch::cuda::is_available())
    throw std::runtime_error("--device cuda: LibTorch finds no CUDA device on this machine; use --device cpu");
  return torch::kCUDA;
}

struct Model {
  torch::jit::Module network;
  runner::Description description;
};

Model load(const runner::fs::path& path, torch::Device device) {
  if (!runner::fs::is_regular_file(path)) throw std::runtime_error(path.string() + ": no such TorchScript file");
  Model model;
  torch::jit::ExtraFilesMap extra = {{DESCRIPTION, ""}};
  try {
    model.network = torch::jit::load(path.string(), device, extra);
  } catch (const std::exception& error) {
    throw std::runtime_error(path.string() + ": LibTorch cannot load it (" + runner::first_line(error) + ")");
  }
  model.network.eval();
  model.description = runner::read_description(path, runner::Json::parse(extra[DESCRIPTION], nullptr, false));
  return model;
}

// One tensor or a tuple of them -> float32 tensors on the CPU.
std::vector<torch::Tensor> on_cpu(const torch::IValue& result) {
  std::vector<torch::Tensor> tensors;
  if (result.isTensor()) {
    tensors.push_back(result.toTensor());
  } else {
    for (const auto& element : result.toTupleRef().elements()) tensors.push_back(element.toTensor());
  }
  for (auto& tensor : tensors) tensor = tensor.to(torch::kCPU, torch::kFloat).contiguous();
  return tensors;
}

void run(const runner::Options& options) {
  const auto device = find_device(options.target);
  if (options.threads) torch::set_num_threads(options.threads);
  const c10::InferenceMode no_gradients;
  auto [network, description] = load(options.model, device);

  const std::vector<std::int64_t> shape = {1, 3, description.height, description.width};
  std::vector<torch::Tensor> tensors;  // hold the values of the last outputs
  const auto infer = [&, &network = network, &description = description](const runner::Input& input) {
    auto* const pixels = const_cast<float*>(input.numbers.data());
    tensors = on_cpu(network.forward({torch::from_blob(pixels, shape).to(device)}));
    if (tensors.size() != description.outputs.size())
      throw std::runtime_error(options.model.string() + ": its description is of another network");
    std::vector<runner::Output> outputs;
    for (std::size_t i = 0; i < tensors.size(); ++i)
      outputs.push_back({description.outputs[i], tensors[i].sizes().vec(), tensors[i].const_data_ptr<float>()});
    return outputs;
  };
  const std::string place = "LibTorch " + device.str() + ", threads " + std::to_string(torch::get_num_threads());
  runner::run_images(options, description, place, infer);
}

}  // namespace

int main(int argc, char** argv) { return runner::run_program(PROGRAM, argc, argv, run); }
