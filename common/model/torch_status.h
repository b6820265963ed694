// Turns LibTorch's exceptions (and the kernels', which throw c10::Error for wrong arguments) into a
// Status. The only place where anything is caught. Header-only, so that common/memory, which the
// model library is built on, can use it too.
//
//   RETURN_IF_ERROR(CatchTorch("forward pass", [&] { hidden.add_(residual); }));
//   ASSIGN_OR_RETURN(at::Tensor t, CatchTorch("workspace", [&] { return at::empty({n}); }));
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace mneme {

// Runs `body` and returns its result as a StatusOr, or a Status where it returns nothing.
// RESOURCE_EXHAUSTED: no memory on the host or the device. INTERNAL: anything else that LibTorch
// threw, "<what>: <its message without the backtrace>".
template <typename Body>
auto CatchTorch(absl::string_view what, Body&& body) {
  using Value = std::invoke_result_t<Body>;
  using Result = std::conditional_t<std::is_void_v<Value>, absl::Status, absl::StatusOr<Value>>;
  try {
    if constexpr (std::is_void_v<Value>) {
      std::forward<Body>(body)();
      return Result(absl::OkStatus());
    } else {
      return Result(std::forward<Body>(body)());
    }
  } catch (const c10::OutOfMemoryError& error) {
    return Result(absl::ResourceExhaustedError(
        absl::StrCat(what, ": out of device memory: ", error.what_without_backtrace())));
  } catch (const c10::Error& error) {
    const absl::string_view message = error.what_without_backtrace();
    // The CPU allocator throws a plain c10::Error.
    if (message.find("not enough memory") != absl::string_view::npos ||
        message.find("can't allocate memory") != absl::string_view::npos) {
      return Result(absl::ResourceExhaustedError(absl::StrCat(what, ": out of memory: ", message)));
    }
    return Result(absl::InternalError(absl::StrCat(what, ": ", message)));
  } catch (const std::bad_alloc&) {
    return Result(absl::ResourceExhaustedError(absl::StrCat(what, ": out of memory")));
  } catch (const std::exception& error) {
    return Result(absl::InternalError(absl::StrCat(what, ": ", error.what())));
  }
}

}  // namespace mneme
