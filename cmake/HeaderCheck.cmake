# Two promises of the layers, kept by the compiler:
#   - every header compiles on its own, so that it can be included first, anywhere;
#   - the engine's code cannot reach Python.h, even by accident.
# Each header becomes the first line of a generated source; the objects are linked into nothing.
include_guard(GLOBAL)

function(cpploop_header_check target)
  set(sources "")
  foreach(header IN LISTS ARGN)
    file(RELATIVE_PATH name "${CMAKE_CURRENT_SOURCE_DIR}" "${header}")
    string(MAKE_C_IDENTIFIER "${name}" stem)
    set(source "${CMAKE_CURRENT_BINARY_DIR}/${target}/${stem}.cc")
    # Twice, because a missing #pragma once shows only then.
    file(CONFIGURE OUTPUT "${source}" CONTENT "#include \"${name}\"\n#include \"${name}\"\n")
    list(APPEND sources "${source}")
  endforeach()
  add_library(${target} OBJECT ${sources})
endfunction()

set(no_python_source "${CMAKE_CURRENT_BINARY_DIR}/cpploop_core_header_check/no_python.cc")
file(CONFIGURE OUTPUT "${no_python_source}" CONTENT [[
#if __has_include(<Python.h>) || __has_include("Python.h")
#error "the engine must not see Python.h, and this target's include path reaches it"
#endif
]])
cpploop_header_check(cpploop_core_header_check ${core_headers})
target_sources(cpploop_core_header_check PRIVATE "${no_python_source}")
target_link_libraries(cpploop_core_header_check PRIVATE cpploop_core cpploop_options)

# The same promise seen from the text and from the archive: no #include, no undefined Py symbol.
add_test(NAME layers.core_knows_no_python
  COMMAND "${CMAKE_COMMAND}" -D "SOURCE_DIR=${CMAKE_CURRENT_SOURCE_DIR}/core"
          -D "ARCHIVE=$<TARGET_FILE:cpploop_core>" -D "NM=${CMAKE_NM}"
          -P "${CMAKE_CURRENT_SOURCE_DIR}/cmake/CheckNoPython.cmake")
set_tests_properties(layers.core_knows_no_python PROPERTIES TIMEOUT 60)

if(CPPLOOP_BUILD_EXTENSION AND binding_headers)
  cpploop_header_check(cpploop_binding_header_check ${binding_headers})
  target_link_libraries(cpploop_binding_header_check PRIVATE cpploop_core cpploop_options)
  target_include_directories(cpploop_binding_header_check SYSTEM PRIVATE ${Python_INCLUDE_DIRS})
  # With _native's own definitions; its include path is given above, as SYSTEM.
  target_compile_definitions(cpploop_binding_header_check PRIVATE
    $<TARGET_PROPERTY:_native,COMPILE_DEFINITIONS>)
endif()
