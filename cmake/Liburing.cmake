# liburing, for the io_uring backend: linked statically, so that what is shipped needs no library of
# the machine it runs on. Without it the backend is left out, and build_info() says so.
include_guard(GLOBAL)

set(CPPLOOP_IO_URING "AUTO" CACHE STRING "The io_uring backend: AUTO (when liburing is found), ON or OFF")
set_property(CACHE CPPLOOP_IO_URING PROPERTY STRINGS "AUTO" "ON" "OFF")

set(CPPLOOP_HAS_LIBURING OFF)
if(CPPLOOP_IO_URING AND NOT CPPLOOP_PORTABLE)
  find_path(LIBURING_INCLUDE_DIR liburing.h)
  find_library(LIBURING_ARCHIVE NAMES liburing.a)
  mark_as_advanced(LIBURING_INCLUDE_DIR LIBURING_ARCHIVE)
  if(LIBURING_INCLUDE_DIR AND LIBURING_ARCHIVE)
    # Old releases lack what the backend is made of, and some archives cannot go into a module.
    set(liburing_trial "${CMAKE_CURRENT_BINARY_DIR}/liburing_trial.cc")
    file(WRITE "${liburing_trial}" "
      #include <liburing.h>
      int trial(io_uring* ring, io_uring_params* params, io_uring_buf_reg* buffers) {
        params->flags = IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER |
                        IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
        io_uring_prep_recv_multishot(io_uring_get_sqe(ring), 0, nullptr, 0, 0);
        io_uring_prep_cancel64(io_uring_get_sqe(ring), 0, IORING_ASYNC_CANCEL_ANY);
        return io_uring_queue_init_params(8, ring, params) +
               io_uring_register_buf_ring(ring, buffers, 0) +
               io_uring_submit_and_get_events(ring);
      }")
    try_compile(CPPLOOP_LIBURING_FITS "${CMAKE_CURRENT_BINARY_DIR}/liburing_trial"
      SOURCES "${liburing_trial}"
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${LIBURING_INCLUDE_DIR}"
      COMPILE_DEFINITIONS -fPIC
      LINK_OPTIONS -shared
      LINK_LIBRARIES "${LIBURING_ARCHIVE}"
      CXX_STANDARD 20)
    set(CPPLOOP_HAS_LIBURING ${CPPLOOP_LIBURING_FITS})
  endif()
  if(NOT CPPLOOP_HAS_LIBURING AND CPPLOOP_IO_URING STREQUAL "ON")
    message(FATAL_ERROR "cpploop: CPPLOOP_IO_URING is ON, but no static liburing 2.3 or newer was "
                        "found; on Debian: apt-get install liburing-dev")
  endif()
endif()
if(CPPLOOP_HAS_LIBURING)
  message(STATUS "cpploop: with the io_uring backend (${LIBURING_ARCHIVE})")
else()
  message(STATUS "cpploop: without the io_uring backend")
endif()

# Gives a target the io_uring backend, where there is one.
function(cpploop_use_liburing target)
  if(CPPLOOP_HAS_LIBURING)
    target_compile_definitions(${target} PRIVATE CPPLOOP_WITH_IO_URING)
    target_include_directories(${target} SYSTEM PRIVATE "${LIBURING_INCLUDE_DIR}")
    target_link_libraries(${target} PUBLIC "${LIBURING_ARCHIVE}")
  endif()
endfunction()
