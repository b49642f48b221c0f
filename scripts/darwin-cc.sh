#!/usr/bin/env bash
# Stands in for the macOS C compiler and archiver during `cargo check --target aarch64-apple-darwin` on Linux.
#
# `cargo check` type-checks Rust and links nothing, but build scripts (ring's) still call a C compiler, and the real one
# needs Apple's SDK. This one writes an empty output file, so the Rust half is checked and the C half is not. Nothing
# made with it can be linked or run.
set -euo pipefail

case "${1:-}" in
    # The archiver's way of calling: darwin-cc.sh <flags> <archive> <objects...>
    cq* | cr* | r* | s | -s | D*)
        [ "$#" -ge 2 ] && printf '!<arch>\n' >"$2"
        exit 0
        ;;
esac
while [ "$#" -gt 0 ]; do
    case "$1" in
        -o)
            : >"$2"
            exit 0
            ;;
        # Asked for its name, or to preprocess a file: it answers as clang, which is what macOS has.
        -E | --version | -v)
            printf 'clang version 19.0.0\nclang\n'
            exit 0
            ;;
    esac
    shift
done
