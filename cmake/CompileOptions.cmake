# Flags shared by everything we compile; they reach a target through the interface library
# cpploop_options, never through global variables.
include_guard(GLOBAL)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
# There are no modules here, and newer CMakes would scan every source for them.
set(CMAKE_CXX_SCAN_FOR_MODULES OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
# -g with -O3: the symbols go to a side file after linking (see Extension.cmake).
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG -g")
# Assertions stay on in the builds that tests run.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g")

add_library(cpploop_options INTERFACE)
target_compile_options(cpploop_options INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wnon-virtual-dtor
  # Profilers walk the stack of a running server; one register is a fair price.
  -fno-omit-frame-pointer)
# What is shipped names no folder of the machine that built it.
set(prefix_map "$<$<CONFIG:Release>:-ffile-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=>")
target_compile_options(cpploop_options INTERFACE "${prefix_map}")
# Optimising while linking compiles once more, and notes its folder once more.
target_link_options(cpploop_options INTERFACE "${prefix_map}")
if(CPPLOOP_WERROR)
  target_compile_options(cpploop_options INTERFACE -Werror)
endif()
if(CPPLOOP_BUILD_TESTS OR CPPLOOP_BUILD_FUZZ OR CPPLOOP_SANITIZE OR CPPLOOP_FAULTS)
  target_compile_definitions(cpploop_options INTERFACE _GLIBCXX_ASSERTIONS=1)
endif()

if(CPPLOOP_FAULTS)
  # To everything alike: what owns a descriptor has another size then.
  target_compile_definitions(cpploop_options INTERFACE CPPLOOP_FAULTS=1)
endif()

if(CPPLOOP_SANITIZE)
  # Not vptr: that check looks at memory through a pipe, so it reports sound objects as soon as a test
  # has used up the descriptors, which is when we want the other checks most.
  set(sanitize_flags "-fsanitize=${CPPLOOP_SANITIZE}" -fno-sanitize=vptr)
  if(CPPLOOP_SANITIZE MATCHES "undefined")
    # A finding must end the test, and UBSan by default only prints it.
    list(APPEND sanitize_flags -fno-sanitize-recover=undefined)
  endif()
  # -O1 compiles in half the time of -O2 and keeps the reports' stacks readable.
  target_compile_options(cpploop_options INTERFACE ${sanitize_flags} -O1)
  target_link_options(cpploop_options INTERFACE ${sanitize_flags})
endif()

if(CPPLOOP_PGO)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU" OR CPPLOOP_PGO_PROFILE STREQUAL "")
    message(FATAL_ERROR "cpploop: CPPLOOP_PGO takes GCC, and CPPLOOP_PGO_PROFILE with the profile's folder")
  endif()
  # A file of the profile is named after its object, seen from the build folder, wherever that is.
  set(pgo_flags "-fprofile-prefix-path=${CMAKE_BINARY_DIR}")
  if(CPPLOOP_PGO STREQUAL "generate")
    # Atomic: loops run in many threads, and counts that were lost are a wrong profile.
    list(APPEND pgo_flags "-fprofile-generate=${CPPLOOP_PGO_PROFILE}" -fprofile-update=atomic)
  elseif(CPPLOOP_PGO STREQUAL "use")
    # Partial: what the training did not run is optimised as ever, and not for size.
    # The debug symbols would have the options in them, and with them both folders.
    list(APPEND pgo_flags "-fprofile-use=${CPPLOOP_PGO_PROFILE}" -fprofile-partial-training
      -fprofile-correction -Wno-missing-profile -gno-record-gcc-switches)
  else()
    message(FATAL_ERROR "cpploop: CPPLOOP_PGO is '${CPPLOOP_PGO}', and may be empty, 'generate' or 'use'")
  endif()
  target_compile_options(cpploop_options INTERFACE ${pgo_flags})
  target_link_options(cpploop_options INTERFACE ${pgo_flags})
endif()

set(CPPLOOP_LTO_USED OFF)
if(CPPLOOP_LTO)
  include(CheckIPOSupported)
  check_ipo_supported(RESULT CPPLOOP_LTO_USED OUTPUT lto_problem LANGUAGES CXX)
  if(NOT CPPLOOP_LTO_USED)
    message(STATUS "cpploop: this compiler cannot optimise while linking, so CPPLOOP_LTO has no effect")
  endif()
endif()

function(cpploop_enable_lto target)
  set_property(TARGET ${target} PROPERTY INTERPROCEDURAL_OPTIMIZATION ${CPPLOOP_LTO_USED})
endfunction()
