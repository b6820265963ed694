# The four kinds of target. Each folder has one library; the arguments say everything it has:
#   mneme_library(NAME redis SOURCES a.cc b.cc HEADERS a.h b.h DEPS mneme::status OpenSSL::SSL)
# makes mneme_redis and its alias mneme::redis.
set(MNEME_ARGS SOURCES HEADERS DEPS)

# Sets `set` to the precompiled headers (MnemePrecompiled.cmake) of the targets of this folder.
function(mneme_precompiled_set set)
  if(CMAKE_CURRENT_SOURCE_DIR MATCHES "/services/executor")
    set(${set} engine PARENT_SCOPE)
  elseif(CMAKE_CURRENT_SOURCE_DIR MATCHES "/(services|tests|common/rpc)")
    set(${set} rpc PARENT_SCOPE)
  elseif(CMAKE_CURRENT_SOURCE_DIR MATCHES "/(kernels|common/(memory|model|snapshot))")
    set(${set} tensor PARENT_SCOPE)
  else()
    set(${set} base PARENT_SCOPE)
  endif()
endfunction()

function(mneme_library)
  cmake_parse_arguments(arg "SHARED;WITHOUT_PRECOMPILED" "NAME" "${MNEME_ARGS}" ${ARGN})
  if(arg_SHARED)
    set(kind SHARED)
  elseif(arg_SOURCES)
    set(kind STATIC)
  else()
    add_library(mneme_${arg_NAME} INTERFACE)
    add_library(mneme::${arg_NAME} ALIAS mneme_${arg_NAME})
    target_link_libraries(mneme_${arg_NAME} INTERFACE mneme_options ${arg_DEPS})
    return()
  endif()
  add_library(mneme_${arg_NAME} ${kind} ${arg_SOURCES} ${arg_HEADERS})
  add_library(mneme::${arg_NAME} ALIAS mneme_${arg_NAME})
  target_link_libraries(mneme_${arg_NAME} PUBLIC mneme_options ${arg_DEPS})
  if(NOT arg_WITHOUT_PRECOMPILED)
    mneme_precompiled_set(set)
    mneme_precompile(mneme_${arg_NAME} ${set})
  endif()
endfunction()

# mneme_executable(NAME mneme-tokenizer SOURCES main.cc DEPS ...): lands in build/<preset>/bin, and is
# one of `programs`, all that `mneme up` runs.
function(mneme_executable)
  cmake_parse_arguments(arg "" "NAME" "${MNEME_ARGS}" ${ARGN})
  add_executable(${arg_NAME} ${arg_SOURCES} ${arg_HEADERS})
  target_link_libraries(${arg_NAME} PRIVATE mneme_options ${arg_DEPS})
  mneme_precompiled_set(set)
  mneme_precompile(${arg_NAME} ${set})
  if(NOT TARGET programs)
    add_custom_target(programs)
  endif()
  add_dependencies(programs ${arg_NAME})
endfunction()

# mneme_test(NAME redis SOURCES client_test.cc DEPS mneme::redis LABELS unit [TIMEOUT 60] [PREFIX p])
# makes one test binary <name>_test; ctest sees each of its cases as <prefix or name>.<Suite>.<Case>.
# TOGETHER "*/Cluster": cases that share something slow to start and are one test for ctest.
# ALONE: the cases measure times; ctest runs nothing beside them.
function(mneme_test)
  cmake_parse_arguments(arg "ALONE" "NAME;TIMEOUT;PREFIX;TOGETHER"
    "${MNEME_ARGS};LABELS;ENVIRONMENT" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  math(EXPR arg_TIMEOUT "${arg_TIMEOUT} * ${MNEME_TEST_TIME_FACTOR}")
  if(NOT arg_PREFIX)
    set(arg_PREFIX ${arg_NAME})
  endif()
  add_executable(${arg_NAME}_test ${arg_SOURCES} ${arg_HEADERS})
  target_link_libraries(${arg_NAME}_test PRIVATE
    mneme_options ${arg_DEPS} GTest::gmock GTest::gtest_main)
  mneme_precompiled_set(set)
  mneme_precompile(${arg_NAME}_test ${set}_test)
  set(each "*")
  if(arg_TOGETHER)
    set(each "-${arg_TOGETHER}")
    set(together_timeout 600)
    if(arg_TIMEOUT GREATER together_timeout)
      set(together_timeout ${arg_TIMEOUT})
    endif()
    add_test(NAME ${arg_PREFIX}.together
      COMMAND ${arg_NAME}_test "--gtest_filter=${arg_TOGETHER}")
    set_tests_properties(${arg_PREFIX}.together PROPERTIES
      LABELS "${arg_LABELS}" TIMEOUT ${together_timeout} RUN_SERIAL ${arg_ALONE}
      ENVIRONMENT "MNEME_BIN=${PROJECT_BINARY_DIR}/bin;MNEME_SOURCE=${PROJECT_SOURCE_DIR};MNEME_CACHE=${MNEME_CACHE};MNEME_TEST_TIME_FACTOR=${MNEME_TEST_TIME_FACTOR}")
  endif()
  gtest_discover_tests(${arg_NAME}_test
    TEST_PREFIX ${arg_PREFIX}.
    TEST_FILTER ${each}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 120
    PROPERTIES LABELS "${arg_LABELS}" TIMEOUT ${arg_TIMEOUT} RUN_SERIAL ${arg_ALONE})
  # gtest_discover_tests takes no lists as property values, so the environment is set afterwards.
  set(script ${CMAKE_CURRENT_BINARY_DIR}/${arg_NAME}_test_environment.cmake)
  set(environment "MNEME_BIN=${PROJECT_BINARY_DIR}/bin;MNEME_SOURCE=${PROJECT_SOURCE_DIR}")
  string(APPEND environment ";MNEME_CACHE=${MNEME_CACHE};${arg_ENVIRONMENT}")
  string(APPEND environment ";MNEME_TEST_TIME_FACTOR=${MNEME_TEST_TIME_FACTOR}")
  file(WRITE ${script} "foreach(test IN LISTS ${arg_NAME}_test_TESTS)
  set_tests_properties(\"\${test}\" PROPERTIES ENVIRONMENT \"${environment}\")
endforeach()
")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES ${script})
endfunction()

# mneme_bench(NAME linear SOURCES linear_bench.cc DEPS ...): a google-benchmark binary, run by
# `make bench`, not by ctest. OWN_MAIN: a program of its own, which takes the same arguments.
function(mneme_bench)
  cmake_parse_arguments(arg "OWN_MAIN" "NAME" "${MNEME_ARGS}" ${ARGN})
  add_executable(${arg_NAME}_bench EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_link_libraries(${arg_NAME}_bench PRIVATE
    mneme_options ${arg_DEPS})
  if(NOT arg_OWN_MAIN)
    target_link_libraries(${arg_NAME}_bench PRIVATE
      benchmark::benchmark benchmark::benchmark_main)
  endif()
  if(NOT TARGET benches)
    add_custom_target(benches)
  endif()
  add_dependencies(benches ${arg_NAME}_bench)
endfunction()

include(GoogleTest)
