#!/usr/bin/env bash
# scripts/libkqueue.sh: builds libkqueue, the kqueue of the tests on Linux, into build/libkqueue and
# prints that folder. Its source is an archive or a folder named by CPPLOOP_LIBKQUEUE, or else an
# archive in ../shared/libkqueue. Exit status 77 and a line that says so when there is none. Nothing
# of it is shipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source=${CPPLOOP_LIBKQUEUE:-$(compgen -G '../shared/libkqueue/libkqueue-*.tar.*' | sort | tail -1 || true)}
if [[ -z $source || ! -e $source ]]; then
  echo "cpploop: no source of libkqueue (${source:-looked in ../shared/libkqueue}); CPPLOOP_LIBKQUEUE names one" >&2
  exit 77
fi
out=$PWD/build/libkqueue
# The script counts as well: it changes the source.
stamp=$(cat "${BASH_SOURCE[0]}" <(stat -c '%n %s %Y' "$source") | sha256sum)
if [[ -e $out/libkqueue.a && $(cat "$out/.stamp" 2>/dev/null) == "$stamp" ]]; then
  echo "$out"
  exit 0
fi

rm -rf "$out"
mkdir -p "$out/source"
if [[ -d $source ]]; then
  cp -R "$source/." "$out/source"
else
  tar -xf "$source" -C "$out/source"
  # An archive with everything in one folder, or with everything at its top.
  inner=$(compgen -G "$out/source/*/CMakeLists.txt" | head -1 || true)
  [[ -e $out/source/CMakeLists.txt ]] || mv "$(dirname "$inner")"/* "$out/source/"
fi

# An event of libkqueue fetches the socket's error, and whoever reads the socket then does not hear
# of it any more; a kernel's queue leaves it where it is.
for file in read write; do
  sed -i 's/getsockopt(src->kev.ident, SOL_SOCKET, SO_ERROR, &serr, &slen)/((void)slen, serr = EIO, 0)/' \
    "$out/source/src/linux/$file.c"
  grep -q 'serr = EIO' "$out/source/src/linux/$file.c" ||
    { echo "cpploop: this libkqueue reads the socket's error in another way: $file.c" >&2; exit 1; }
done

# A kernel's queue tells of a child's end when it comes; libkqueue asks for the status first, and its
# wait fails where somebody else has taken that.
perl -0pi -e 's/(strerror\(errno\)\);\n\s+)return \(-1\);(\n\s+\}\n\n\s+\/\*\n\s+\* musl)/$1memset(&info, 0, sizeof(info)); info.si_pid = 1; info.si_code = CLD_EXITED;$2/' \
  "$out/source/src/linux/proc.c"
grep -q 'info.si_pid = 1;' "$out/source/src/linux/proc.c" ||
  { echo "cpploop: this libkqueue learns of a child's end in another way: proc.c" >&2; exit 1; }

cmake -S "$out/source" -B "$out/build" -D CMAKE_BUILD_TYPE=Release -D ENABLE_SHARED=OFF \
  -D CMAKE_POLICY_VERSION_MINIMUM=3.5 >"$out/log" 2>&1 &&
  cmake --build "$out/build" -j 2 >>"$out/log" 2>&1 || { tail -30 "$out/log" >&2; exit 1; }
mkdir -p "$out/include/sys"
cp "$out/build/include/sys/event.h" "$out/include/sys/"
cp "$(find "$out/build" -name libkqueue.a | head -1)" "$out/"
echo "$stamp" >"$out/.stamp"
echo "$out"
