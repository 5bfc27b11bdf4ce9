# tests/fuzz/NAME_fuzz.cc holds LLVMFuzzerTestOneInput. Clang links it with libFuzzer; any other
# compiler links it with replay_main.cc, which runs the corpus once, so that targets do not rot.
include_guard(GLOBAL)

file(GLOB fuzz_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/*_fuzz.cc")
if(NOT fuzz_sources)
  message(STATUS "cpploop: tests/fuzz holds no *_fuzz.cc yet, so no fuzz target is built")
endif()
foreach(source IN LISTS fuzz_sources)
  cmake_path(GET source STEM name)
  add_executable(${name} "${source}")
  target_link_libraries(${name} PRIVATE cpploop_core cpploop_options)
  set(corpus "${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/corpus/${name}")
  if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    # One second in an ordinary run shows that the target still works; long runs are made by hand.
    set(arguments -max_total_time=1)
  else()
    target_sources(${name} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/replay_main.cc")
    set(arguments "")
  endif()
  if(EXISTS "${corpus}")
    # First, because libFuzzer adds what it finds to the first folder it is given.
    file(MAKE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/corpus/${name}")
    list(APPEND arguments "${CMAKE_CURRENT_BINARY_DIR}/corpus/${name}" "${corpus}")
  endif()
  add_test(NAME fuzz.${name} COMMAND ${name} ${arguments})
  set_tests_properties(fuzz.${name} PROPERTIES TIMEOUT 60)
endforeach()
if(fuzz_sources AND CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  # Coverage feedback from the engine itself, not only from the target's own file.
  target_compile_options(cpploop_core PRIVATE -fsanitize=fuzzer-no-link)
endif()
