#include "common/weights/torch_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <variant>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status/annotate.h"
#include "common/status/status_macros.h"
#include "common/weights/zip_archive.h"

namespace mneme::weights {
namespace {

// What a checkpoint of millions of tensors would not reach; a hostile one is stopped here.
constexpr size_t kMaxValues = size_t{1} << 22;
constexpr int kMaxDepth = 64;

struct Value;
// Values belong to the unpickler; so a dict that holds itself is no leak.
using ValuePointer = const Value*;
using DictItems = std::vector<std::pair<std::string, ValuePointer>>;

struct None {};
struct Mark {};
struct Global {
  std::string name;  // "module name"
};
struct Tuple {
  std::vector<ValuePointer> items;
};
struct Dict {
  DictItems* items = nullptr;  // filled after others refer to the dict
};
struct Storage {
  TensorType type = TensorType::kF32;
  absl::Span<const uint8_t> bytes;
  int64_t num_elements = 0;
};
struct Tensor {
  Storage storage;
  int64_t offset = 0;  // in elements, as the strides
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
};
struct Value {
  std::variant<None, Mark, bool, int64_t, double, std::string, Global, Tuple, Dict, Storage, Tensor>
      content;
};

std::optional<TensorType> StorageType(absl::string_view global) {
  static constexpr std::pair<absl::string_view, TensorType> kTypes[] = {
      {"torch FloatStorage", TensorType::kF32}, {"torch DoubleStorage", TensorType::kF64},
      {"torch HalfStorage", TensorType::kF16},  {"torch BFloat16Storage", TensorType::kBF16},
      {"torch LongStorage", TensorType::kI64},  {"torch IntStorage", TensorType::kI32},
      {"torch ShortStorage", TensorType::kI16}, {"torch CharStorage", TensorType::kI8},
      {"torch ByteStorage", TensorType::kU8},   {"torch BoolStorage", TensorType::kBool},
  };
  for (const auto& [name, type] : kTypes) {
    if (name == global) return type;
  }
  return std::nullopt;
}

// The machine of the pickle, as far as a checkpoint needs it. Opcodes: Python's pickletools.
class Unpickler {
 public:
  // Storages are the members "<prefix>data/<key>".
  Unpickler(absl::Span<const uint8_t> program, const ZipMembers& members, std::string prefix)
      : program_(program), members_(members), prefix_(std::move(prefix)) {}

  absl::StatusOr<ValuePointer> Run() {
    for (;;) {
      RETURN_IF_ERROR(Need(1));
      const size_t place = at_;
      const uint8_t opcode = program_[at_++];
      if (opcode == '.') {
        if (stack_.size() != 1) return Wrong("the stack does not hold one value at the end");
        return stack_[0];
      }
      const absl::Status status = Execute(opcode);
      if (!status.ok()) {
        return status::Annotate(
            status, absl::StrCat("pickle, opcode ", static_cast<int>(opcode), " at byte ", place));
      }
      if (stack_.size() > kMaxValues || values_.size() > kMaxValues) {
        return Wrong("too many values");
      }
    }
  }

 private:
  static absl::Status Wrong(absl::string_view what) { return absl::InvalidArgumentError(what); }

  absl::Status Need(size_t size) const {
    return size <= program_.size() - at_ ? absl::OkStatus() : Wrong("the pickle is cut short");
  }
  absl::StatusOr<uint64_t> Number(size_t num_bytes) {
    RETURN_IF_ERROR(Need(num_bytes));
    uint64_t value = 0;
    for (size_t i = num_bytes; i-- > 0;) value = value << 8 | program_[at_ + i];
    at_ += num_bytes;
    return value;
  }
  absl::StatusOr<std::string> Line() {
    const auto* const begin = program_.begin() + at_;
    const auto* const end = std::find(begin, program_.end(), '\n');
    if (end == program_.end()) return Wrong("a line does not end");
    at_ += static_cast<size_t>(end - begin) + 1;
    return std::string(begin, end);
  }

  template <typename T>
  absl::Status Push(T content) {
    stack_.push_back(&values_.emplace_back(Value{std::move(content)}));
    return absl::OkStatus();
  }
  absl::StatusOr<ValuePointer> Pop() {
    if (stack_.empty() || std::holds_alternative<Mark>(stack_.back()->content)) {
      return Wrong("the stack is empty");
    }
    const ValuePointer top = stack_.back();
    stack_.pop_back();
    return top;
  }
  template <typename T>
  absl::StatusOr<T> PopAs() {
    ASSIGN_OR_RETURN(const ValuePointer top, Pop());
    const T* const content = std::get_if<T>(&top->content);
    if (content == nullptr) return Wrong("a value is of another kind than is needed here");
    return *content;
  }
  absl::StatusOr<std::vector<ValuePointer>> PopToMark() {
    size_t begin = stack_.size();
    while (begin > 0 && !std::holds_alternative<Mark>(stack_[begin - 1]->content)) --begin;
    if (begin == 0) return Wrong("no mark");
    std::vector<ValuePointer> items(stack_.begin() + static_cast<std::ptrdiff_t>(begin),
                                    stack_.end());
    stack_.resize(begin - 1);
    return items;
  }

  absl::Status Execute(uint8_t opcode) {
    switch (opcode) {
      case 0x80: {  // PROTO
        ASSIGN_OR_RETURN(const uint64_t version, Number(1));
        return version == 2 ? absl::OkStatus()
                            : Wrong(absl::StrCat("protocol ", version, " is not read"));
      }
      case '}':  // EMPTY_DICT
        return Push(NewDict());
      case ')':  // EMPTY_TUPLE
        return Push(Tuple{});
      case '(':  // MARK
        return Push(Mark{});
      case 't': {  // TUPLE
        ASSIGN_OR_RETURN(std::vector<ValuePointer> items, PopToMark());
        return Push(Tuple{std::move(items)});
      }
      case 0x85:  // TUPLE1
        return PushTuple(1);
      case 0x86:  // TUPLE2
        return PushTuple(2);
      case 0x87:  // TUPLE3
        return PushTuple(3);
      case 'X': {  // BINUNICODE
        ASSIGN_OR_RETURN(const uint64_t size, Number(4));
        RETURN_IF_ERROR(Need(size));
        std::string text(program_.begin() + at_, program_.begin() + at_ + size);
        at_ += size;
        return Push(std::move(text));
      }
      case 'K':  // BININT1
        return PushInteger(1);
      case 'M':  // BININT2
        return PushInteger(2);
      case 'J': {  // BININT
        ASSIGN_OR_RETURN(const uint64_t bits, Number(4));
        return Push(static_cast<int64_t>(static_cast<int32_t>(bits)));
      }
      case 'G': {  // BINFLOAT, the most significant byte first
        ASSIGN_OR_RETURN(const uint64_t bits, Number(8));
        return Push(std::bit_cast<double>(__builtin_bswap64(bits)));
      }
      case 'N':  // NONE
        return Push(None{});
      case 0x88:  // NEWTRUE
        return Push(true);
      case 0x89:  // NEWFALSE
        return Push(false);
      case 'q':  // BINPUT
        return Put(1);
      case 'r':  // LONG_BINPUT
        return Put(4);
      case 'h':  // BINGET
        return Get(1);
      case 'j':  // LONG_BINGET
        return Get(4);
      case 'c': {  // GLOBAL
        ASSIGN_OR_RETURN(const std::string module, Line());
        ASSIGN_OR_RETURN(const std::string name, Line());
        return Push(Global{absl::StrCat(module, " ", name)});
      }
      case 'Q':  // BINPERSID
        return Load();
      case 'R':  // REDUCE
        return Reduce();
      case 's':    // SETITEM
      case 'u': {  // SETITEMS
        std::vector<ValuePointer> items;
        if (opcode == 'u') {
          ASSIGN_OR_RETURN(items, PopToMark());
        } else {
          ASSIGN_OR_RETURN(ValuePointer value, Pop());
          ASSIGN_OR_RETURN(ValuePointer key, Pop());
          items = {key, value};
        }
        return SetItems(items);
      }
      case 'b': {  // BUILD: attributes of an OrderedDict, which are its own affair
        return Pop().status();
      }
      default:
        return Wrong("not an opcode of a checkpoint");
    }
  }

  Dict NewDict() { return Dict{&dicts_.emplace_back()}; }

  absl::Status PushTuple(size_t size) {
    std::vector<ValuePointer> items(size);
    for (size_t i = size; i-- > 0;) {
      ASSIGN_OR_RETURN(items[i], Pop());
    }
    return Push(Tuple{std::move(items)});
  }
  absl::Status PushInteger(size_t num_bytes) {
    ASSIGN_OR_RETURN(const uint64_t value, Number(num_bytes));
    return Push(static_cast<int64_t>(value));
  }
  absl::Status Put(size_t num_bytes) {
    ASSIGN_OR_RETURN(const uint64_t key, Number(num_bytes));
    if (stack_.empty()) return Wrong("the stack is empty");
    memo_[key] = stack_.back();
    return absl::OkStatus();
  }
  absl::Status Get(size_t num_bytes) {
    ASSIGN_OR_RETURN(const uint64_t key, Number(num_bytes));
    const auto found = memo_.find(key);
    if (found == memo_.end()) return Wrong("nothing is kept under this number");
    stack_.push_back(found->second);
    return absl::OkStatus();
  }

  absl::Status SetItems(const std::vector<ValuePointer>& items) {
    if (stack_.empty() || items.size() % 2 != 0) return Wrong("keys and values don't pair");
    const Dict* const dict = std::get_if<Dict>(&stack_.back()->content);
    if (dict == nullptr) return Wrong("items for something that is not a dict");
    for (size_t i = 0; i < items.size(); i += 2) {
      const std::string* const key = std::get_if<std::string>(&items[i]->content);
      if (key == nullptr) return Wrong("a key is not a text");
      dict->items->emplace_back(*key, items[i + 1]);
    }
    return absl::OkStatus();
  }

  // ('storage', type, key, location, number of elements)
  absl::Status Load() {
    ASSIGN_OR_RETURN(const Tuple id, PopAs<Tuple>());
    if (id.items.size() != 5) return Wrong("a persistent id has not five parts");
    const std::string* const kind = std::get_if<std::string>(&id.items[0]->content);
    const Global* const type_name = std::get_if<Global>(&id.items[1]->content);
    const std::string* const key = std::get_if<std::string>(&id.items[2]->content);
    const int64_t* const count = std::get_if<int64_t>(&id.items[4]->content);
    if (kind == nullptr || *kind != "storage" || type_name == nullptr || key == nullptr ||
        count == nullptr || *count < 0) {
      return Wrong("a persistent id is no storage");
    }
    const std::optional<TensorType> type = StorageType(type_name->name);
    if (!type.has_value()) return Wrong(absl::StrCat("unknown type: ", type_name->name));
    const auto member = members_.find(absl::StrCat(prefix_, "data/", *key));
    if (member == members_.end()) return Wrong(absl::StrCat("no storage ", *key));
    if (static_cast<uint64_t>(*count) >
        member->second.size() / static_cast<uint64_t>(BytesPerBlock(*type))) {
      return Wrong(absl::StrCat("storage ", *key, " is shorter than ", *count, " elements"));
    }
    return Push(Storage{.type = *type, .bytes = member->second, .num_elements = *count});
  }

  absl::Status Reduce() {
    ASSIGN_OR_RETURN(const Tuple arguments, PopAs<Tuple>());
    ASSIGN_OR_RETURN(const Global function, PopAs<Global>());
    if (function.name == "collections OrderedDict" && arguments.items.empty()) {
      return Push(NewDict());
    }
    if (function.name == "torch._utils _rebuild_tensor_v2") return Rebuild(arguments);
    return Wrong(absl::StrCat("a checkpoint does not call ", function.name));
  }

  // (storage, offset, size, stride, requires_grad, backward_hooks)
  absl::Status Rebuild(const Tuple& arguments) {
    if (arguments.items.size() < 4) return Wrong("a tensor lacks arguments");
    const Storage* const storage = std::get_if<Storage>(&arguments.items[0]->content);
    const int64_t* const offset = std::get_if<int64_t>(&arguments.items[1]->content);
    if (storage == nullptr || offset == nullptr || *offset < 0) return Wrong("no storage");
    Tensor tensor{.storage = *storage, .offset = *offset};
    ASSIGN_OR_RETURN(tensor.shape, Integers(*arguments.items[2]));
    ASSIGN_OR_RETURN(tensor.strides, Integers(*arguments.items[3]));
    if (tensor.shape.size() != tensor.strides.size()) return Wrong("shape and strides differ");
    const std::optional<int64_t> count = CountElements(tensor.shape);
    if (!count.has_value() || *count > storage->num_elements) {
      return Wrong("a tensor is larger than its storage");
    }
    // The last element, one dimension after the other, so that nothing overflows.
    int64_t last = *offset;
    for (size_t d = 0; *count > 0 && d < tensor.shape.size(); ++d) {
      const int64_t steps = tensor.shape[d] - 1;
      if (last >= storage->num_elements ||
          (steps > 0 && tensor.strides[d] > (storage->num_elements - 1 - last) / steps)) {
        return Wrong("a tensor reaches beyond its storage");
      }
      last += steps * tensor.strides[d];
    }
    if (*count > 0 && last >= storage->num_elements) {
      return Wrong("a tensor reaches beyond its storage");
    }
    return Push(std::move(tensor));
  }

  static absl::StatusOr<std::vector<int64_t>> Integers(const Value& value) {
    const Tuple* const tuple = std::get_if<Tuple>(&value.content);
    if (tuple == nullptr || tuple->items.size() > 16) return Wrong("not a tuple of sizes");
    std::vector<int64_t> numbers;
    for (const ValuePointer& item : tuple->items) {
      const int64_t* const number = std::get_if<int64_t>(&item->content);
      if (number == nullptr || *number < 0) return Wrong("a size is not a number from 0 on");
      numbers.push_back(*number);
    }
    return numbers;
  }

  const absl::Span<const uint8_t> program_;
  const ZipMembers& members_;
  const std::string prefix_;
  size_t at_ = 0;
  std::deque<Value> values_;  // deques: their elements stay where they are
  std::deque<DictItems> dicts_;
  std::vector<ValuePointer> stack_;
  absl::flat_hash_map<uint64_t, ValuePointer> memo_;
};

bool IsDense(const Tensor& tensor) {
  int64_t expected = 1;
  for (size_t d = tensor.shape.size(); d-- > 0;) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
    expected *= tensor.shape[d];
  }
  return true;
}

std::vector<uint8_t> Gather(const Tensor& tensor, int64_t element_bytes) {
  const int64_t count = *CountElements(tensor.shape);
  std::vector<uint8_t> dense(static_cast<size_t>(count * element_bytes));
  std::vector<int64_t> index(tensor.shape.size(), 0);
  for (int64_t i = 0; i < count; ++i) {
    int64_t from = tensor.offset;
    for (size_t d = 0; d < index.size(); ++d) from += index[d] * tensor.strides[d];
    std::memcpy(dense.data() + i * element_bytes,
                tensor.storage.bytes.data() + from * element_bytes,
                static_cast<size_t>(element_bytes));
    for (size_t d = index.size(); d-- > 0;) {
      if (++index[d] < tensor.shape[d]) break;
      index[d] = 0;
    }
  }
  return dense;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TorchCheckpoint>> TorchCheckpoint::Open(absl::string_view path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  auto checkpoint = absl::WrapUnique(new TorchCheckpoint({}, std::string(path)));
  checkpoint->file_ = std::make_unique<MappedFile>(std::move(file));
  checkpoint->bytes_ = checkpoint->file_->bytes();
  RETURN_IF_ERROR(status::Annotate(checkpoint->ReadAll(), path));
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<TorchCheckpoint>> TorchCheckpoint::Parse(
    absl::Span<const uint8_t> bytes, absl::string_view name) {
  auto checkpoint = absl::WrapUnique(new TorchCheckpoint(bytes, std::string(name)));
  RETURN_IF_ERROR(status::Annotate(checkpoint->ReadAll(), name));
  return checkpoint;
}

absl::Status TorchCheckpoint::ReadAll() {
  ASSIGN_OR_RETURN(const ZipMembers members, ReadZip(bytes_));
  std::string prefix;
  absl::Span<const uint8_t> program;
  for (const auto& [name, bytes] : members) {
    if (!absl::EndsWith(name, "/data.pkl")) continue;
    if (!program.empty()) return absl::InvalidArgumentError("the file holds two pickles");
    prefix = name.substr(0, name.size() - 8);
    program = bytes;
  }
  if (program.empty()) return absl::InvalidArgumentError("the file holds no data.pkl");
  const auto order = members.find(absl::StrCat(prefix, "byteorder"));
  if (order != members.end() &&
      std::string(order->second.begin(), order->second.end()) != "little") {
    return absl::InvalidArgumentError("the checkpoint's numbers are not little-endian");
  }
  Unpickler unpickler(program, members, prefix);
  ASSIGN_OR_RETURN(const ValuePointer root, unpickler.Run());

  // Depth first, with a stack of our own: dicts may be nested as deep as the file likes.
  struct Place {
    std::string name;
    ValuePointer value;
    int depth;
  };
  std::vector<Place> places = {{"", root, 0}};
  size_t num_visited = 0;
  while (!places.empty()) {
    const Place place = std::move(places.back());
    places.pop_back();
    if (place.depth > kMaxDepth || ++num_visited > kMaxValues) {
      return absl::InvalidArgumentError("the checkpoint is nested too deep");
    }
    const auto& content = place.value->content;
    if (const Dict* const dict = std::get_if<Dict>(&content)) {
      for (size_t i = dict->items->size(); i-- > 0;) {
        const auto& [key, value] = (*dict->items)[i];
        places.push_back({place.name.empty() ? key : absl::StrCat(place.name, ".", key), value,
                          place.depth + 1});
      }
    } else if (const Tensor* const tensor = std::get_if<Tensor>(&content)) {
      const int64_t element_bytes = BytesPerBlock(tensor->storage.type);
      TensorView view{.name = place.name, .type = tensor->storage.type, .shape = tensor->shape};
      view.size_bytes = static_cast<uint64_t>(*CountElements(tensor->shape)) *
                        static_cast<uint64_t>(element_bytes);
      if (IsDense(*tensor)) {
        view.data = tensor->storage.bytes.data() + tensor->offset * element_bytes;
        view.file_offset = static_cast<uint64_t>(view.data - bytes_.data());
      } else {
        copies_.push_back(std::make_unique<std::vector<uint8_t>>(Gather(*tensor, element_bytes)));
        view.data = copies_.back()->data();
      }
      if (!tensor_index_.emplace(place.name, tensors_.size()).second) {
        return absl::InvalidArgumentError(absl::StrCat("a name is there twice: ", place.name));
      }
      tensors_.push_back(std::move(view));
    } else if (const auto* const integer = std::get_if<int64_t>(&content)) {
      numbers_[place.name] = static_cast<double>(*integer);
    } else if (const auto* const number = std::get_if<double>(&content)) {
      numbers_[place.name] = *number;
    } else if (const auto* const truth = std::get_if<bool>(&content)) {
      numbers_[place.name] = *truth ? 1 : 0;
    } else if (const auto* const text = std::get_if<std::string>(&content)) {
      texts_[place.name] = *text;
    }
  }
  return absl::OkStatus();
}

const TensorView* TorchCheckpoint::FindTensor(absl::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

}  // namespace mneme::weights
