# mneme_proto(NAME tokenizer SOURCES mneme/tokenizer/v1/tokenizer.proto DEPS mneme::proto_types)
# compiles protos (messages and gRPC stubs) into mneme::proto_<name>; headers are included as
# "mneme/tokenizer/v1/tokenizer.grpc.pb.h".
set(MNEME_PROTO_OUT ${PROJECT_BINARY_DIR}/protos)
find_program(GRPC_CPP_PLUGIN grpc_cpp_plugin REQUIRED)

function(mneme_proto)
  cmake_parse_arguments(arg "" "NAME;ROOT" "SOURCES;DEPS" ${ARGN})
  if(NOT arg_ROOT)
    set(arg_ROOT ${PROJECT_SOURCE_DIR}/protos)
  endif()
  set(sources)
  foreach(proto IN LISTS arg_SOURCES)
    string(REGEX REPLACE "\\.proto$" "" stem ${proto})
    file(STRINGS ${arg_ROOT}/${proto} has_service REGEX "^service ")
    set(outputs ${MNEME_PROTO_OUT}/${stem}.pb.cc ${MNEME_PROTO_OUT}/${stem}.pb.h)
    set(plugin)
    if(has_service)
      list(APPEND outputs ${MNEME_PROTO_OUT}/${stem}.grpc.pb.cc ${MNEME_PROTO_OUT}/${stem}.grpc.pb.h)
      set(plugin --grpc_out=${MNEME_PROTO_OUT} --plugin=protoc-gen-grpc=${GRPC_CPP_PLUGIN})
    endif()
    add_custom_command(
      OUTPUT ${outputs}
      COMMAND ${CMAKE_COMMAND} -E make_directory ${MNEME_PROTO_OUT}
      COMMAND protobuf::protoc -I ${PROJECT_SOURCE_DIR}/protos -I ${MNEME_GOOGLEAPIS}
        --cpp_out=${MNEME_PROTO_OUT} ${plugin} ${arg_ROOT}/${proto}
      DEPENDS ${arg_ROOT}/${proto}
      VERBATIM)
    list(APPEND sources ${outputs})
  endforeach()
  add_library(mneme_proto_${arg_NAME} STATIC ${sources})
  add_library(mneme::proto_${arg_NAME} ALIAS mneme_proto_${arg_NAME})
  target_include_directories(mneme_proto_${arg_NAME} SYSTEM PUBLIC ${MNEME_PROTO_OUT})
  target_link_libraries(mneme_proto_${arg_NAME} PUBLIC protobuf::libprotobuf gRPC::grpc++ ${arg_DEPS})
  target_compile_options(mneme_proto_${arg_NAME} PRIVATE ${MNEME_PROTO_OPTIONS})
  mneme_precompile(mneme_proto_${arg_NAME} proto)
endfunction()
