# Every outside library as one imported target. LibTorch comes from the folder that deploy/setup.sh
# filled; all others are system packages.
if(DEFINED ENV{MNEME_CACHE})
  set(MNEME_CACHE $ENV{MNEME_CACHE})
else()
  set(MNEME_CACHE $ENV{HOME}/.cache/mneme)
endif()

# Pinned versions, read from the one file that holds them.
file(STRINGS ${PROJECT_SOURCE_DIR}/deploy/pins.env pins REGEX "^[A-Z0-9_]+=")
foreach(pin IN LISTS pins)
  string(REGEX MATCH "^([A-Z0-9_]+)=([^ ]*)" _ "${pin}")
  set(PIN_${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
endforeach()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(benchmark CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
# Without the macros of its pkg-config file cpp-httplib links and then crashes.
pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)
find_library(PROMETHEUS_CORE prometheus-cpp-core REQUIRED)
add_library(mneme_prometheus INTERFACE)
target_link_libraries(mneme_prometheus INTERFACE ${PROMETHEUS_CORE})
find_program(MNEME_REDIS_SERVER redis-server REQUIRED)

# LibTorch. Its include folder also holds protobuf, fmt and pybind11 headers that must not shadow the
# system's: only four folders are exposed, through links.
set(torch_root ${MNEME_CACHE}/libtorch-${PIN_TORCH_VERSION})
if(NOT EXISTS ${torch_root}/.complete)
  message(FATAL_ERROR "LibTorch ${PIN_TORCH_VERSION} is not in ${torch_root}: run deploy/setup.sh")
endif()
set(torch_include ${PROJECT_BINARY_DIR}/torch_include)
file(MAKE_DIRECTORY ${torch_include})
foreach(folder ATen c10 torch caffe2)
  file(CREATE_LINK ${torch_root}/include/${folder} ${torch_include}/${folder} SYMBOLIC)
endforeach()
add_library(mneme_torch INTERFACE)
target_include_directories(mneme_torch SYSTEM INTERFACE
  ${torch_include} ${torch_root}/include/torch/csrc/api/include)
target_link_libraries(mneme_torch INTERFACE
  ${torch_root}/lib/libtorch_cpu.so ${torch_root}/lib/libc10.so)
target_link_options(mneme_torch INTERFACE
  -Wl,-rpath,${torch_root}/lib -Wl,-rpath-link,${torch_root}/lib)

set(MNEME_GOOGLEAPIS ${MNEME_CACHE}/googleapis-${PIN_GOOGLEAPIS_VERSION})
