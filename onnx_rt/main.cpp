// Runs an FP32, FP16 or INT8 network of convert_pytorch_to_onnx.py on images with ONNX Runtime.
#include <onnxruntime_cxx_api.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <memory>

#include "runner.hpp"

namespace {

const runner::Program PROGRAM = {
    "deploy_onnx_rt", "MODEL.onnx",
    "--provider", "cpu, cuda, tensorrt, dnnl, openvino or ONNX Runtime's name of an execution provider",
    "--cpu_nodes", "  let the CPU compute what the provider cannot; without it that is an error"};
const std::map<std::string, std::string> PROVIDERS = {{"cpu", "CPUExecutionProvider"},
                                                      {"cuda", "CUDAExecutionProvider"},
                                                      {"tensorrt", "TensorrtExecutionProvider"},
                                                      {"dnnl", "DnnlExecutionProvider"},
                                                      {"openvino", "OpenVINOExecutionProvider"}};
const std::string ENDING = "ExecutionProvider";

// ONNX Runtime's name of a provider that this library has.
std::string find_provider(const std::string& name) {
  const auto known = PROVIDERS.find(name);
  const std::string full = known == PROVIDERS.end() ? name : known->second;
  std::string listed;
  for (const auto& available : Ort::GetAvailableProviders()) {
    if (available == full) return full;
    listed += (listed.empty() ? "" : ", ") + available;
  }
  throw std::runtime_error("--provider " + name + ": not in this ONNX Runtime, which has " + listed);
}

// The options of a provider, made by one function of the C interface and released by another.
template <class T>
std::unique_ptr<T, void (*)(T*)> make_options(OrtStatus* (*create)(T**), void (*release)(T*)) {
  T* options = nullptr;
  Ort::ThrowOnError(create(&options));
  return {options, release};
}

void append_provider(Ort::SessionOptions& options, const std::string& provider) {
  const auto& api = Ort::GetApi();
  if (provider == "CUDAExecutionProvider") {
    const auto cuda = make_options(api.CreateCUDAProviderOptions, api.ReleaseCUDAProviderOptions);
    options.AppendExecutionProvider_CUDA_V2(*cuda);
  } else if (provider == "TensorrtExecutionProvider") {
    const auto tensorrt = make_options(api.CreateTensorRTProviderOptions, api.ReleaseTensorRTProviderOptions);
    options.AppendExecutionProvider_TensorRT_V2(*tensorrt);
  } else if (provider == "DnnlExecutionProvider") {
    const auto dnnl = make_options(api.CreateDnnlProviderOptions, api.ReleaseDnnlProviderOptions);
    Ort::ThrowOnError(api.SessionOptionsAppendExecutionProvider_Dnnl(options, dnnl.get()));
  } else if (provider != "CPUExecutionProvider") {
    options.AppendExecutionProvider(provider.substr(0, provider.size() - ENDING.size()));
  }
}

// Whether an x86 processor has no int8 dot product (AVX-512 VNNI or AVX-VNNI): ONNX Runtime's default kernels then
// saturate sums of products at 16 bits. Others have exact kernels only.
bool sums_saturate() {
#if defined(__x86_64__)
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool avx512 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ecx >> 11 & 1);
  const bool avx = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
  return !avx512 && !avx;
#else
  return false;
#endif
}

// `exact_int8` takes slower kernels that cannot saturate: half the speed where there is an int8 dot product.
Ort::SessionOptions session_options(const runner::Options& options, const std::string& provider, bool exact_int8) {
  Ort::SessionOptions session;
  if (options.threads) session.SetIntraOpNumThreads(options.threads);
  session.AddConfigEntry("session.x64quantprecision", exact_int8 ? "1" : "0");
  if (provider != "CPUExecutionProvider" && !options.extra)
    session.AddConfigEntry("session.disable_cpu_ep_fallback", "1");
  append_provider(session, provider);
  return session;
}

Ort::Session load(const Ort::Env& environment, const runner::Options& options, const std::string& provider) {
  const std::string path = options.model.string();
  if (!runner::fs::is_regular_file(options.model)) throw std::runtime_error(path + ": no such ONNX file");
  const auto open = [&](bool exact_int8) {
    return Ort::Session(environment, options.model.c_str(), session_options(options, provider, exact_int8));
  };
  try {
    try {
      return open(sums_saturate());
    } catch (const Ort::Exception& error) {
      // what ONNX Runtime says of a file that it cannot prepare for exact INT8, as in common/runtimes/predictors.py
      if (std::string(error.what()).find("Attempt to replace the existing tensor") == std::string::npos) throw;
      std::cerr << path << ": ONNX Runtime's exact INT8 kernels cannot take it; sums may saturate\n";
      return open(false);
    }
  } catch (const std::exception& error) {
    throw std::runtime_error(path + ": ONNX Runtime cannot load it (" + runner::first_line(error) + ")");
  }
}

// The file's metadata, and the shape of its input: what the session takes counts.
runner::Description describe(const Ort::Session& session, const runner::fs::path& path) {
  const Ort::AllocatorWithDefaultOptions allocator;
  const auto metadata = session.GetModelMetadata();
  runner::Json fields = runner::Json::object();
  for (const auto& key : metadata.GetCustomMetadataMapKeysAllocated(allocator)) {
    const std::string text = metadata.LookupCustomMetadataMapAllocated(key.get(), allocator).get();
    const auto value = runner::Json::parse(text, nullptr, false);
    fields[key.get()] = value.is_discarded() ? runner::Json(text) : value;
  }
  if (session.GetInputCount() != 1)
    throw std::runtime_error(path.string() + ": " + std::to_string(session.GetInputCount()) + " inputs; wanted one");
  const auto type = session.GetInputTypeInfo(0);  // owns what the next line looks at
  const auto shape = type.GetTensorTypeAndShapeInfo().GetShape();
  if (shape.size() != 4 || shape[0] > 1)
    throw std::runtime_error(path.string() + ": its input is no single image; convert it with --batch 1");
  fields["input_shape"] = {shape[1], shape[2], shape[3]};
  if (fields.contains("camera") && fields["camera"].value("layout", std::string()) == "nhwc")
    fields["input_shape"] = {shape[3], shape[1], shape[2]};
  auto description = runner::read_description(path, fields);
  const auto taken = type.GetTensorTypeAndShapeInfo().GetElementType();
  if (taken != (description.bytes ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT))
    throw std::runtime_error(path.string() + ": its input is of another type than its description says");
  description.outputs.clear();
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
    description.outputs.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
  return description;
}

void run(const runner::Options& options) {
  const auto provider = find_provider(options.target);
  const Ort::Env environment(ORT_LOGGING_LEVEL_FATAL, PROGRAM.name.c_str());  // errors arrive as exceptions
  auto session = load(environment, options, provider);
  const auto description = describe(session, options.model);

  const std::string input_name = session.GetInputNameAllocated(0, Ort::AllocatorWithDefaultOptions()).get();
  const char* const input_names[] = {input_name.c_str()};
  std::vector<const char*> output_names;
  for (const auto& name : description.outputs) output_names.push_back(name.c_str());
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::array<std::int64_t, 4> shape = {1, 3, description.height, description.width};
  if (description.nhwc) shape = {1, description.height, description.width, 3};

  std::vector<Ort::Value> tensors;  // hold the values of the last outputs
  const auto make = [&](const auto& values) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    auto* data = const_cast<Value*>(values.data());
    return Ort::Value::CreateTensor<Value>(memory, data, values.size(), shape.data(), shape.size());
  };
  const auto infer = [&](const runner::Input& input) {
    const auto tensor = description.bytes ? make(input.bytes) : make(input.numbers);
    tensors = session.Run(Ort::RunOptions{nullptr}, input_names, &tensor, 1, output_names.data(), output_names.size());
    std::vector<runner::Output> outputs;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const auto info = tensors[i].GetTensorTypeAndShapeInfo();
      runner::Output output{description.outputs[i], info.GetShape()};
      if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
        output.values = tensors[i].GetTensorData<float>();
      else if (info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8)
        output.ids = tensors[i].GetTensorData<std::uint8_t>();
      else
        throw std::runtime_error("output " + output.name + " is neither float32 nor uint8");
      outputs.push_back(output);
    }
    return outputs;
  };
  const std::string threads = options.threads ? std::to_string(options.threads) : "by ONNX Runtime";
  runner::run_images(options, description, "ONNX Runtime " + provider + ", threads " + threads, infer);
}

}  // namespace

int main(int argc, char** argv) { return runner::run_program(PROGRAM, argc, argv, run); }
