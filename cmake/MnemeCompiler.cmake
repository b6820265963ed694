# How every target is compiled: C++20, warnings as errors, sanitizers, ccache and mold when there.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/lib)

# -g1 keeps line numbers in crash reports at a third of the build time and size of -g.
set(CMAKE_CXX_FLAGS_DEBUG "-O1 -g1")
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1")

find_program(MNEME_CCACHE ccache)
if(MNEME_CCACHE)
  # Paths inside the checkout are hashed relative to it, so that every clone and every build folder
  # shares one cache.
  set(launcher ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${MNEME_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${launcher})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${launcher})
endif()

find_program(MNEME_MOLD mold)
if(MNEME_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

# Everywhere, though programs could do with -fPIE and some libraries without -pthread: a precompiled
# header is good for sources with the same options only.
add_compile_options(-fPIC -pthread)

add_library(mneme_options INTERFACE)
target_compile_options(mneme_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror -Wno-missing-field-initializers>)
target_include_directories(mneme_options INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_BINARY_DIR})
# LibTorch's wheel is built against libstdc++'s C++11 ABI, as Debian's packages are.
if(MNEME_SANITIZE)
  # GCC 12 takes instrumented code for mistakes of these kinds.
  add_compile_options(-fsanitize=${MNEME_SANITIZE} -fno-omit-frame-pointer
    -Wno-array-bounds -Wno-maybe-uninitialized -Wno-stringop-overflow)
  add_link_options(-fsanitize=${MNEME_SANITIZE})
  if(MNEME_SANITIZE MATCHES "thread")
    # Protobuf's headers give their classes other members where they see TSan, and the packaged
    # library, like gRPC's and Abseil's, was built without.
    add_compile_options(-U__SANITIZE_THREAD__)
  endif()
  if(MNEME_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# Generated code is not ours to warn about, and its speed is not what anybody waits for. Nor are its
# faults ours to find: watching it doubles the time to compile it. What our own code does with
# messages is watched where it does it, the accessors being inline.
set(MNEME_PROTO_OPTIONS -w -O1)
if(MNEME_SANITIZE)
  list(APPEND MNEME_PROTO_OPTIONS -fno-sanitize=all)
endif()

# A test's own code runs for less time than it would take to optimise; what it tests is optimised.
# At this level GCC 12 sees a string's end where there is none.
set(MNEME_TEST_OPTIONS $<$<CONFIG:Release>:-O1> -Wno-array-bounds -Wno-maybe-uninitialized
    -Wno-stringop-overflow)
