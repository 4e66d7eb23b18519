// What the programs share: command line, pixels to tensor exactly as in Python, outputs to pictures, timing, errors.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <opencv2/core.hpp>
#include <opencv2/core/utils/logger.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace runner {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // keeps the order of the outputs

constexpr int PADDING = 114;      // grey of a detector's letterbox, as in common/export/calibration.py
constexpr double OPACITY = 0.6;   // of the class colours over the image, as in common/data/drawing.py
constexpr int LARGEST_SIDE = 1 << 14;  // of an input; a description that asks for more is damaged

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The first line of an exception's text: libraries add their stack to it.
inline std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

// ---- command line ---------------------------------------------------------------------------------------------------

// What the two command lines differ in.
struct Program {
  std::string name;         // deploy_libtorch
  std::string model;        // MODEL.pt
  std::string target_flag;  // --device, or none
  std::string target_help;
  std::string extra_flag;  // an option without a value, or none
  std::string extra_help;
};

struct Options {
  fs::path model, images, output = ".";
  std::string target = "cpu";
  int threads = 0;  // 0: the runtime's choice
  int warmup = 3, repeat = 1;
  bool raw = false, extra = false;
};

inline std::string usage(const Program& program) {
  std::string text = "usage: " + program.name + " " + program.model + " IMAGE_OR_FOLDER [options]\n" +
                     "  --output DIR   for <image>_mask.png and <image>_overlay.png, created if need be; default: .\n";
  if (!program.target_flag.empty())
    text += "  " + program.target_flag + " NAME  " + program.target_help + "; default: cpu\n";
  text += "  --threads N    CPU threads of the runtime; default: its own choice\n"
          "  --warmup N     untimed runs before the first image; default: 3\n"
          "  --repeat N     timed runs of each image; default: 1\n"
          "  --raw          also write every output as <image>_<output>.npy\n";
  if (!program.extra_flag.empty()) text += "  " + program.extra_flag + "  " + program.extra_help + "\n";
  return text + "  --help\n";
}

inline int whole_number(const std::string& flag, const std::string& text, int least) {
  std::size_t end = 0;
  int value = least - 1;
  try {
    value = std::stoi(text, &end);
  } catch (const std::logic_error&) {
  }
  if (end != text.size() || value < least)
    throw UsageError(flag + " " + text + ": not a whole number, " + std::to_string(least) + " or more");
  return value;
}

inline Options parse(const Program& program, const std::vector<std::string>& arguments) {
  Options options;
  std::vector<std::string> places;
  const std::map<std::string, std::function<void(const std::string&)>> flags = {
      {"--output", [&](const std::string& text) { options.output = text; }},
      {program.target_flag, [&](const std::string& text) { options.target = text; }},
      {"--threads", [&](const std::string& text) { options.threads = whole_number("--threads", text, 1); }},
      {"--warmup", [&](const std::string& text) { options.warmup = whole_number("--warmup", text, 0); }},
      {"--repeat", [&](const std::string& text) { options.repeat = whole_number("--repeat", text, 1); }},
  };
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const auto& word = arguments[i];
    if (const auto flag = flags.find(word); !word.empty() && flag != flags.end()) {
      if (++i == arguments.size()) throw UsageError(word + " needs a value");
      flag->second(arguments[i]);
    } else if (word == "--raw") {
      options.raw = true;
    } else if (!word.empty() && word == program.extra_flag) {
      options.extra = true;
    } else if (word.rfind("-", 0) == 0) {
      throw UsageError("unknown option " + word);
    } else {
      places.push_back(word);
    }
  }
  if (places.size() != 2)
    throw UsageError("wanted a model and an image or folder, found " + std::to_string(places.size()) + " paths");
  options.model = places[0];
  options.images = places[1];
  return options;
}

// Runs `work` and gives the exit code: 0 done, 1 failed with one line on stderr, 2 wrong usage.
inline int run_program(const Program& program, int argc, char** argv, const std::function<void(const Options&)>& work) {
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);  // errors are told once, by us
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::count(arguments.begin(), arguments.end(), "--help")) {
    std::cout << usage(program);
    return 0;
  }
  try {
    work(parse(program, arguments));
    return 0;
  } catch (const UsageError& error) {
    std::cerr << usage(program) << "error: " << error.what() << '\n';
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "error: " << first_line(error) << '\n';
    return 1;
  }
}

// ---- what the file says of itself (common/networks/metadata.py) -----------------------------------------------------------

struct Description {
  std::string network, task;
  int channels = 0, height = 0, width = 0;
  std::array<float, 3> mean{}, std{};    // of 0..1, in the order of the network's channels
  bool bgr = false;                      // the order of the file's channels: blue, green, red
  bool mean_bgr = false;                 // that of mean and std, which is the network's
  bool nhwc = false, bytes = false;      // the file's input: (1, height, width, 3), and pixels of 0..255
  std::vector<std::string> outputs;
  std::vector<cv::Vec3b> colours;        // RGB of each class; empty where the output is no map of classes
};

// The form of an image in a file for a camera (common/data/camera.py); its classes are told by their type.
inline void read_camera(const Json& camera, const fs::path& file, Description& result) {
  const auto choice = [&](const char* field, const std::string& usual, const std::string& other) {
    const auto text = camera.at(field).get<std::string>();
    if (text != usual && text != other)
      throw std::runtime_error(file.string() + ": " + field + " " + text + "; wanted " + usual + " or " + other);
    return text == other;
  };
  result.nhwc = choice("layout", "nchw", "nhwc");
  result.bytes = choice("type", "float32", "uint8");
  result.bgr = choice("channels", "rgb", "bgr");
}

// Raises runtime_error where something is missing or makes no sense, or where the input is no image.
inline Description read_description(const fs::path& file, const Json& fields) {
  Description result;
  try {
    result.network = fields.at("network").get<std::string>();
    result.task = fields.at("task").get<std::string>();
    const auto shape = fields.at("input_shape").get<std::array<int, 3>>();
    std::tie(result.channels, result.height, result.width) = std::tie(shape[0], shape[1], shape[2]);
    for (const auto& output : fields.at("outputs").items()) result.outputs.push_back(output.key());
    if (!fields.contains("mean"))
      throw std::runtime_error(result.network + " takes outputs of another network, not an image");
    result.mean = fields.at("mean").get<std::array<float, 3>>();
    result.std = fields.at("std").get<std::array<float, 3>>();
    const auto order = fields.value("channel_order", std::string("RGB"));
    if (order != "RGB" && order != "BGR") throw std::runtime_error(file.string() + ": channels in the order " + order);
    result.bgr = result.mean_bgr = order == "BGR";
    if (fields.contains("camera")) read_camera(fields.at("camera"), file, result);
    for (const auto& name : fields.value("classes", Json::array())) {
      const auto rgb = fields.at("palette").at(name.get<std::string>()).get<std::array<std::uint8_t, 3>>();
      result.colours.emplace_back(rgb[0], rgb[1], rgb[2]);
    }
  } catch (const Json::exception& error) {
    throw std::runtime_error(file.string() + ": its description is missing or damaged (" + first_line(error) +
                             "); write the file with this toolkit's scripts");
  }
  const auto sane = [](int side) { return 0 < side && side <= LARGEST_SIDE; };
  if (result.channels != 3 || !sane(result.height) || !sane(result.width) ||
      std::count(result.std.begin(), result.std.end(), 0.0f) || result.colours.size() > 255)
    throw std::runtime_error(file.string() + ": its description asks for an input that is no RGB image");
  return result;
}

// ---- images ---------------------------------------------------------------------------------------------------------

// The image itself, or the .png, .jpg and .jpeg files of a folder, sorted by name.
inline std::vector<fs::path> find_images(const fs::path& place) {
  if (!fs::exists(place)) throw std::runtime_error(place.string() + ": no such image or folder");
  if (!fs::is_directory(place)) return {place};
  std::map<std::string, fs::path> by_stem;
  for (const auto& entry : fs::directory_iterator(place)) {
    const auto path = entry.path();
    std::string suffix = path.extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return std::tolower(c); });
    if (path.filename().string()[0] == '.' || (suffix != ".png" && suffix != ".jpg" && suffix != ".jpeg")) continue;
    if (const auto [twin, fresh] = by_stem.emplace(path.stem().string(), path); !fresh)
      throw std::runtime_error(path.string() + " and " + twin->second.filename().string() +
                               " have one stem, so their masks would have one name; rename one");
  }
  if (by_stem.empty()) throw std::runtime_error(place.string() + ": no .png, .jpg, .jpeg file in it");
  std::vector<fs::path> images;
  for (const auto& [stem, path] : by_stem) images.push_back(path);
  return images;
}

// libpng and libjpeg write to stderr by themselves; while one of these lives, they do not reach it.
class Quiet {
 public:
  Quiet() : saved_(dup(STDERR_FILENO)), nowhere_(open("/dev/null", O_WRONLY)) {
    if (saved_ >= 0 && nowhere_ >= 0) dup2(nowhere_, STDERR_FILENO);
  }
  ~Quiet() {
    if (saved_ >= 0 && nowhere_ >= 0) dup2(saved_, STDERR_FILENO);
    if (saved_ >= 0) close(saved_);
    if (nowhere_ >= 0) close(nowhere_);
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  int saved_, nowhere_;
};

// As common/data/decoding.py: 16 bits a value that hold at most 14 bits of data would be read nearly black.
inline void require_bright(const cv::Mat& values, const fs::path& path) {
  double largest = 0;
  cv::minMaxLoc(values, nullptr, &largest);
  const auto repeats = [](std::uint16_t value) { return value >> 8 == (value & 255); };
  if (largest < 1 << 14 && !std::all_of(values.begin<std::uint16_t>(), values.end<std::uint16_t>(), repeats))
    throw std::runtime_error(path.string() + ": stored with 16 bits a value, but the largest is " +
                             std::to_string(static_cast<int>(largest)) + ", so that it would be read nearly black; " +
                             "scale it to 16 bits, or store it with 8");
}

// uint8 RGB, upright: turned as EXIF says.
inline cv::Mat read_rgb(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> data{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  cv::Mat image;
  if (!data.empty()) {
    const Quiet quiet;
    image = cv::imdecode(data, cv::IMREAD_COLOR | cv::IMREAD_ANYDEPTH);
  }
  if (image.depth() == CV_16U) {
    require_bright(image.reshape(1), path);
    image = cv::imdecode(data, cv::IMREAD_COLOR);  // the upper 8 bits
  }
  if (image.empty())
    throw std::runtime_error(path.string() + ": not an image that can be decoded; is the file damaged?");
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
  return image;
}

// Resize to fit with the aspect ratio kept, centred on grey.
inline cv::Mat letterbox(const cv::Mat& rgb, int height, int width) {
  const double scale = std::min(static_cast<double>(height) / rgb.rows, static_cast<double>(width) / rgb.cols);
  const int inner_height = std::max(1, static_cast<int>(std::nearbyint(rgb.rows * scale)));  // ties to even, as Python
  const int inner_width = std::max(1, static_cast<int>(std::nearbyint(rgb.cols * scale)));
  cv::Mat canvas(height, width, CV_8UC3, cv::Scalar::all(PADDING));
  const cv::Rect inner((width - inner_width) / 2, (height - inner_height) / 2, inner_width, inner_height);
  cv::resize(rgb, canvas(inner), inner.size(), 0, 0, cv::INTER_LINEAR);
  return canvas;
}

// One image as a file takes it: numbers, or bytes in their place.
struct Input {
  std::vector<float> numbers;
  std::vector<std::uint8_t> bytes;
};

// uint8 (height, width, 3) in RGB -> values of `table` for each channel and pixel in the file's layout and order.
template <class Value>
std::vector<Value> arrange(const cv::Mat& rgb, const Description& description,
                           const std::array<std::array<Value, 256>, 3>& table) {
  const std::size_t area = rgb.total(), step = description.nhwc ? 3 : 1, plane = description.nhwc ? 1 : area;
  std::vector<Value> values(3 * area);
  const std::uint8_t* pixel = rgb.data;  // continuous: made by resize or letterbox
  for (std::size_t i = 0; i < area; ++i, pixel += 3)
    for (std::size_t channel = 0; channel < 3; ++channel)
      values[channel * plane + i * step] = table[channel][pixel[description.bgr ? 2 - channel : channel]];
  return values;
}

// uint8 RGB of any size -> the input: (pixel / 255 - mean) / std, in Python's order of operations, or the pixels.
inline Input prepare(const cv::Mat& rgb, const Description& description) {
  cv::Mat fitted;
  if (description.task == "detection")
    fitted = letterbox(rgb, description.height, description.width);
  else
    cv::resize(rgb, fitted, {description.width, description.height}, 0, 0, cv::INTER_LINEAR);
  if (description.bytes) {
    std::array<std::array<std::uint8_t, 256>, 3> same;
    for (auto& channel : same) std::iota(channel.begin(), channel.end(), std::uint8_t{0});
    return {{}, arrange(fitted, description, same)};
  }
  std::array<std::array<float, 256>, 3> table;  // every value a pixel can take: the division is done 768 times
  for (std::size_t channel = 0; channel < 3; ++channel) {
    const std::size_t own = description.bgr == description.mean_bgr ? channel : 2 - channel;
    for (std::size_t pixel = 0; pixel < 256; ++pixel)
      table[channel][pixel] = (static_cast<float>(pixel) / 255 - description.mean[own]) / description.std[own];
  }
  return {arrange(fitted, description, table), {}};
}

// ---- outputs --------------------------------------------------------------------------------------------------------

// A tensor that a runtime owns, valid until its next run: float32, or the bytes of a map of classes.
struct Output {
  std::string name;
  std::vector<std::int64_t> shape;
  const float* values = nullptr;
  const std::uint8_t* ids = nullptr;  // where there are no values

  std::size_t size() const {
    std::size_t product = 1;
    for (const auto length : shape) product *= static_cast<std::size_t>(length);
    return product;
  }
};

// The class ids (1, H, W) of a file for a camera -> uint8 (H, W).
inline cv::Mat class_ids(const Output& map, std::size_t classes) {
  if (map.shape.size() != 3 || map.shape[0] != 1 ||
      std::any_of(map.ids, map.ids + map.size(), [&](std::uint8_t id) { return id >= classes; }))
    throw std::runtime_error("output " + map.name + " is no map of " + std::to_string(classes) + " classes");
  cv::Mat ids(static_cast<int>(map.shape[1]), static_cast<int>(map.shape[2]), CV_8U);
  std::copy(map.ids, map.ids + map.size(), ids.data);
  return ids;
}

// Logits (1, classes, H, W) -> class ids, uint8 (H, W); the first of equal logits wins, as in PyTorch.
inline cv::Mat argmax(const Output& logits, std::size_t classes) {
  if (!logits.values) return class_ids(logits, classes);
  if (logits.shape.size() != 4 || logits.shape[0] != 1 || logits.shape[1] != static_cast<std::int64_t>(classes))
    throw std::runtime_error("output " + logits.name + " is no map of " + std::to_string(classes) + " classes");
  cv::Mat ids(static_cast<int>(logits.shape[2]), static_cast<int>(logits.shape[3]), CV_8U, cv::Scalar(0));
  const std::size_t area = ids.total();
  std::vector<float> best(logits.values, logits.values + area);
  for (std::size_t id = 1; id < classes; ++id) {
    const float* plane = logits.values + id * area;
    for (std::size_t i = 0; i < area; ++i) {
      const bool larger = plane[i] > best[i];
      best[i] = larger ? plane[i] : best[i];
      ids.data[i] = larger ? static_cast<std::uint8_t>(id) : ids.data[i];
    }
  }
  return ids;
}

// Class ids (H, W) -> uint8 RGB of `size`, nearest pixel by centre, the right or lower one of two equally near. Not
// cv::resize: OpenCV 4.6 and 5 choose differently there.
inline cv::Mat colourise(const cv::Mat& ids, const std::vector<cv::Vec3b>& colours, cv::Size size) {
  const auto nearest = [](int index, int from, int to) {
    return static_cast<int>((2 * std::int64_t{index} + 1) * from / (2 * std::int64_t{to}));
  };
  std::vector<int> columns(static_cast<std::size_t>(size.width));
  for (int x = 0; x < size.width; ++x) columns[static_cast<std::size_t>(x)] = nearest(x, ids.cols, size.width);
  cv::Mat picture(size, CV_8UC3);
  for (int y = 0; y < size.height; ++y) {
    const std::uint8_t* row = ids.ptr(nearest(y, ids.rows, size.height));
    auto* pixel = picture.ptr<cv::Vec3b>(y);
    for (const int column : columns) *pixel++ = colours[row[column]];
  }
  return picture;
}

// A file is written under a temporary name and renamed, so that nobody meets half of one.
inline void write_file(const fs::path& path, const std::string& head, const void* data, std::size_t bytes) {
  fs::path temporary = path;
  temporary += std::to_string(getpid()).append(".tmp");
  std::ofstream file(temporary, std::ios::binary);
  file << head;
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
  file.close();
  if (!file) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw std::runtime_error(path.string() + ": cannot be written (" + std::strerror(errno) + ")");
  }
  fs::rename(temporary, path);
}

inline void write_png(const fs::path& path, const cv::Mat& rgb) {
  cv::Mat bgr;
  cv::cvtColor(rgb, bgr, cv::COLOR_RGB2BGR);
  std::vector<std::uint8_t> data;
  cv::imencode(".png", bgr, data);
  write_file(path, "", data.data(), data.size());
}

// NumPy's format 1.0, for numpy.load.
inline void write_npy(const fs::path& path, const Output& output) {
  std::string shape;
  for (const auto length : output.shape) shape += std::to_string(length) + ",";
  const std::string type = output.values ? "<f4" : "|u1";
  std::string text = "{'descr': '" + type + "', 'fortran_order': False, 'shape': (" + shape + "), }";
  text.resize((text.size() + 11 + 63) / 64 * 64 - 11, ' ');  // the data begins at a multiple of 64 bytes
  text += '\n';
  std::string head("\x93NUMPY\x01\x00", 8);
  head += static_cast<char>(text.size() & 255);
  head += static_cast<char>(text.size() >> 8);
  if (output.values)
    write_file(path, head + text, output.values, output.size() * sizeof(float));
  else
    write_file(path, head + text, output.ids, output.size());
}

// ---- timing ---------------------------------------------------------------------------------------------------------

using Latencies = std::vector<double>;  // milliseconds

template <class Call>
auto timed(Latencies& latencies, Call call) {
  const auto start = std::chrono::steady_clock::now();
  auto result = call();
  latencies.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  return result;
}

// Interpolates linearly between the calls, as numpy.percentile does.
inline double percentile(Latencies latencies, double percent) {
  std::sort(latencies.begin(), latencies.end());
  const double position = percent / 100 * static_cast<double>(latencies.size() - 1);
  const auto below = static_cast<std::size_t>(position);
  const auto above = std::min(below + 1, latencies.size() - 1);
  return latencies[below] + (position - static_cast<double>(below)) * (latencies[above] - latencies[below]);
}

inline void print_row(const std::string& stage, const Latencies& latencies) {
  const double mean = std::accumulate(latencies.begin(), latencies.end(), 0.0) / static_cast<double>(latencies.size());
  std::printf("%-8s %9.3f %9.3f %9.3f %9.3f %9.3f %6zu\n", stage.c_str(), mean, percentile(latencies, 0),
              percentile(latencies, 50), percentile(latencies, 90), percentile(latencies, 99), latencies.size());
}

// ---- the program ----------------------------------------------------------------------------------------------------

// One image, as `prepare` makes it -> all outputs of the network.
using Infer = std::function<std::vector<Output>(const Input&)>;

// Write mask, overlay and raw outputs of every image, then print the latencies in milliseconds.
inline void run_images(const Options& options, const Description& description, const std::string& place,
                       const Infer& infer) {
  const auto images = find_images(options.images);
  fs::create_directories(options.output);
  if (description.colours.empty() && !options.raw)
    std::cerr << description.network << " has no coloured classes: no picture is written; --raw writes its outputs\n";
  const Input blank = prepare(cv::Mat(description.height, description.width, CV_8UC3, cv::Scalar(0)), description);
  for (int i = 0; i < options.warmup; ++i) infer(blank);

  Latencies preparing, inferring, drawing;
  for (const auto& image : images) {
    const cv::Mat rgb = read_rgb(image);
    const auto input = timed(preparing, [&] { return prepare(rgb, description); });
    std::vector<Output> outputs;
    for (int i = 0; i < options.repeat; ++i) outputs = timed(inferring, [&] { return infer(input); });
    const auto stem = options.output / (image.stem().string() + "_");
    const auto named = [&](const std::string& ending) { return stem.string() + ending; };
    if (!description.colours.empty()) {
      const auto& colours = description.colours;
      const cv::Mat mask =
          timed(drawing, [&] { return colourise(argmax(outputs.at(0), colours.size()), colours, rgb.size()); });
      cv::Mat overlay;
      cv::addWeighted(mask, OPACITY, rgb, 1 - OPACITY, 0, overlay);
      write_png(named("mask.png"), mask);
      write_png(named("overlay.png"), overlay);
    }
    for (const auto& output : outputs)
      if (options.raw) write_npy(named(output.name + ".npy"), output);
  }
  std::printf("%s (%s) on %s, input 3x%dx%d, images: %zu\n", description.network.c_str(), description.task.c_str(),
              place.c_str(), description.height, description.width, images.size());
  std::printf("%-8s %9s %9s %9s %9s %9s %6s\n", "ms", "mean", "min", "p50", "p90", "p99", "n");
  print_row("prepare", preparing);
  print_row("infer", inferring);
  if (!drawing.empty()) print_row("mask", drawing);
}

}  // namespace runner
