#!/usr/bin/env bash
# Everything about the C code that needs no run: compilers, sanitizer builds, the FreeBSD target, static checks.
# What a machine lacks is named and left out; PYTHON is one with PyPI's ziglang (installed where it is missing).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
PYTHON=${PYTHON:-python3}
skipped=()

have() { command -v "$1" >/dev/null || { skipped+=("$2 (no $1)"); return 1; }; }
step() { echo "== $*"; }

step "gcc, and gcc with sanitizers"
make -s CC="${CC:-cc}" BUILD=build
make -s CC="${CC:-cc}" SAN=1 BUILD=build-asan

if have clang "build with clang"; then
    step "clang, and clang with sanitizers"
    make -s CC=clang BUILD=build-clang
    if make -s CC=clang SAN=1 BUILD=build-clang-asan 2>build-clang/asan.log; then
        :
    elif grep -q "cannot find.*libclang_rt" build-clang/asan.log; then
        skipped+=("clang with sanitizers (no libclang-rt)")
    else
        cat build-clang/asan.log >&2
        exit 1
    fi
fi
if have clang-tidy "clang-tidy"; then
    step "clang-tidy"
    make -s tidy
fi
if have mandoc "man pages"; then
    step "man pages"
    find . -name '*.[48]' -not -path './build*' -print0 | xargs -0 -r mandoc -T lint -W warning
fi
if have shellcheck "shellcheck"; then
    step "shellcheck"
    find . ../.ci -type f \( -name '*.sh' -o -path ../.ci/run \) -print0 | xargs -0 shellcheck
fi
if have cbmc "the shield's promises"; then
    step "the shield's promises, by CBMC, and broken shields"
    proof/prove.sh
    proof/prove.sh --mutants
fi
"$PYTHON" -c 'import ziglang' 2>/dev/null ||
    "$PYTHON" -m pip install -qq --disable-pip-version-check -c ../constraints.txt ziglang || true
if "$PYTHON" -c 'import ziglang' 2>/dev/null; then
    step "FreeBSD, by $("$PYTHON" -m ziglang version) of zig"
    make -s freebsd PYTHON="$PYTHON"
    make -s freebsd-objects PYTHON="$PYTHON"
else
    skipped+=("FreeBSD (no ziglang)")
fi
for what in "${skipped[@]}"; do echo "skipped: $what"; done
