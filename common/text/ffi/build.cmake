# Builds libmneme_text_ffi.a into OUTPUT, or copies it from the cache: one build per machine for each
# state of the sources, the locked crates and the compiler, whatever the checkout or build folder.
#   cmake -D SOURCE=<this folder> -D CACHE=<folder> -D OUTPUT=<file> -P build.cmake
function(find_compiler)
  execute_process(COMMAND rustc -vV OUTPUT_VARIABLE compiler ERROR_VARIABLE error
    RESULT_VARIABLE failed)
  string(REGEX MATCH "release: ([0-9.]+)" release "${compiler}")
  if(failed OR CMAKE_MATCH_1 VERSION_LESS 1.85)
    set(compiler "")
  endif()
  set(compiler "${compiler}" PARENT_SCOPE)
  set(compiler_error "${error}" PARENT_SCOPE)
endfunction()
find_compiler()
if(NOT compiler)
  # One that is too old, or a rustup without a toolchain, in front of what deploy/setup.sh installs.
  set(ENV{PATH} "/usr/bin:$ENV{PATH}")
  find_compiler()
endif()
if(NOT compiler)
  message(FATAL_ERROR "no rustc of 1.85 or newer runs: run deploy/setup.sh\n${compiler_error}")
endif()
file(GLOB sources ${SOURCE}/src/*.rs)
list(SORT sources)
set(state "${compiler}")
foreach(file IN LISTS sources ITEMS ${SOURCE}/Cargo.toml ${SOURCE}/Cargo.lock)
  file(SHA256 ${file} hash)
  get_filename_component(name ${file} NAME)
  string(APPEND state "${name} ${hash}\n")
endforeach()
string(SHA256 key "${state}")
string(SUBSTRING ${key} 0 16 key)
string(SHA256 compiler_key "${compiler}")
string(SUBSTRING ${compiler_key} 0 16 compiler_key)

set(stored ${CACHE}/rust/${key}/libmneme_text_ffi.a)
if(NOT EXISTS ${stored})
  message(STATUS "building the Rust part of common/text (about two minutes the first time)")
  # The target folder is shared too: after a change of ours only our own crate is compiled anew.
  set(target ${CACHE}/rust/target-${compiler_key})
  file(MAKE_DIRECTORY ${target})
  # Cargo would hand the file over while another checkout's build replaces it.
  file(LOCK ${target}/mneme.lock)
  execute_process(
    COMMAND ${CMAKE_COMMAND} -E env CARGO_TARGET_DIR=${target}
      cargo build --release --locked --quiet --manifest-path ${SOURCE}/Cargo.toml
    RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "cargo could not build common/text/ffi: see its message above")
  endif()
  file(MAKE_DIRECTORY ${CACHE}/rust/${key})
  file(COPY_FILE ${target}/release/libmneme_text_ffi.a ${stored}.new)
  file(RENAME ${stored}.new ${stored})
  file(LOCK ${target}/mneme.lock RELEASE)
endif()
get_filename_component(folder ${OUTPUT} DIRECTORY)
file(MAKE_DIRECTORY ${folder})
file(COPY_FILE ${stored} ${OUTPUT})
file(TOUCH ${OUTPUT})
