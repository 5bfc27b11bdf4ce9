#!/usr/bin/env bash
# scripts/on_backend.sh BACKEND VENV ARG... runs the Python of the environment VENV with these
# arguments and CPPLOOP_BACKEND=BACKEND, after it has seen that a loop really gets that backend: one
# that is refused means epoll without a word, and a run on epoll would pass for one on the ring.
# Exits 77 when the backend is not to be had here.
set -euo pipefail
backend=${1:?BACKEND} venv=${2:?VENV}
shift 2
export CPPLOOP_BACKEND=$backend
"$venv/run" "$venv/bin/python" -c '
import os, sys, cpploop
loop = cpploop.new_event_loop()
loop.close()
wanted = os.environ["CPPLOOP_BACKEND"]
if loop._backend != wanted:
    print("skipped:", wanted, "is not to be had:", cpploop.build_info()["io_uring"])
    sys.exit(77)'
exec "$venv/run" "$venv/bin/python" "$@"
