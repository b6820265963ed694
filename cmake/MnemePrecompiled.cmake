# Headers of other people's libraries that nearly every source includes, compiled once: they are most
# of what a source takes to compile. Sources still include what they use, and clang-tidy, which has
# no precompiled headers, says where one does not.
#
# Each set is one object library; a target takes one over with mneme_precompile(target set):
#   base    the standard library and Abseil
#   rpc     base, Protobuf and gRPC (their headers bring in symbols: only for what links gRPC)
#   tensor  base, Protobuf and LibTorch's tensors
#   engine  rpc and tensor together
#   …_test  the same and GoogleTest
#   proto   what generated code includes, with the options that it is compiled with
set(precompiled_base
  <algorithm> <atomic> <chrono> <cstdint> <cstring> <filesystem> <fstream> <functional> <limits>
  <map> <memory> <mutex> <optional> <set> <string> <thread> <utility> <vector>
  <absl/container/flat_hash_map.h> <absl/status/status.h> <absl/status/statusor.h>
  <absl/strings/escaping.h> <absl/strings/match.h> <absl/strings/numbers.h>
  <absl/strings/str_cat.h> <absl/strings/str_format.h> <absl/strings/str_join.h>
  <absl/strings/str_split.h> <absl/strings/string_view.h> <absl/time/clock.h> <absl/time/time.h>
  <absl/types/span.h>)
set(precompiled_rpc ${precompiled_base} <google/protobuf/generated_message_reflection.h>
  <google/protobuf/map.h> <google/protobuf/repeated_field.h> <grpcpp/grpcpp.h>)
set(precompiled_tensor ${precompiled_base} <google/protobuf/generated_message_reflection.h>
  <google/protobuf/map.h> <google/protobuf/repeated_field.h> <ATen/Functions.h>
  <ATen/core/Tensor.h>)
set(precompiled_engine ${precompiled_rpc} ${precompiled_tensor})
list(REMOVE_DUPLICATES precompiled_engine)
foreach(set base rpc tensor engine)
  set(precompiled_${set}_test ${precompiled_${set}} <gmock/gmock.h> <gtest/gtest.h>)
endforeach()

set(precompiled_proto <google/protobuf/extension_set.h> <google/protobuf/generated_message_reflection.h>
  <google/protobuf/map_entry.h> <google/protobuf/map_field_inl.h> <google/protobuf/reflection_ops.h>
  <google/protobuf/wire_format.h> <grpcpp/grpcpp.h> <grpcpp/impl/codegen/async_stream.h>
  <grpcpp/impl/codegen/client_callback.h> <grpcpp/impl/codegen/server_callback_handlers.h>)

foreach(set base rpc tensor engine base_test rpc_test tensor_test engine_test proto)
  set(source ${PROJECT_BINARY_DIR}/precompiled/${set}.cc)
  file(CONFIGURE OUTPUT ${source} CONTENT "// Carries the precompiled headers of the set ${set}.\n")
  add_library(mneme_precompiled_${set} OBJECT ${source})
  target_link_libraries(mneme_precompiled_${set} PRIVATE mneme_options absl::statusor)
  if(set MATCHES "rpc|engine|proto")
    target_link_libraries(mneme_precompiled_${set} PRIVATE gRPC::grpc++)
  endif()
  if(NOT set MATCHES "base")
    target_link_libraries(mneme_precompiled_${set} PRIVATE protobuf::libprotobuf)
  endif()
  if(set MATCHES "tensor|engine")
    target_link_libraries(mneme_precompiled_${set} PRIVATE mneme_torch)
  endif()
  if(set MATCHES "test")
    target_link_libraries(mneme_precompiled_${set} PRIVATE GTest::gmock)
    target_compile_options(mneme_precompiled_${set} PRIVATE ${MNEME_TEST_OPTIONS})
  endif()
  if(set STREQUAL proto)
    target_compile_options(mneme_precompiled_proto PRIVATE ${MNEME_PROTO_OPTIONS})
  endif()
  target_precompile_headers(mneme_precompiled_${set} PRIVATE ${precompiled_${set}})
endforeach()

function(mneme_precompile target set)
  target_precompile_headers(${target} REUSE_FROM mneme_precompiled_${set})
  if(set MATCHES "_test$")
    # As the header: GCC may crash where they differ.
    target_compile_options(${target} PRIVATE ${MNEME_TEST_OPTIONS})
  endif()
endfunction()
