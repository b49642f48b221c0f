#!/bin/sh
# Compiles the BPF programs: build.sh [OUTPUT_DIR], by default target/bpf beside the workspace.
# Environment: CLANG, LLVM_STRIP, GLASSHOUSE_BPF_ARCH (x86 or arm64, default: this machine's).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../target/bpf}

first() {
    for tool in "$@"; do
        if command -v "$tool" >/dev/null 2>&1; then
            echo "$tool"
            return 0
        fi
    done
    return 1
}

clang=${CLANG:-$(first clang-19 clang-20 clang-21 clang-18 clang || true)}
strip=${LLVM_STRIP:-$(first llvm-strip-19 llvm-strip-20 llvm-strip-21 llvm-strip-18 llvm-strip || true)}
if [ -z "$clang" ] || [ -z "$strip" ]; then
    echo "glasshouse-bpf: clang and llvm-strip (18 or newer) are needed to compile the BPF programs." >&2
    echo "  Debian: apt-get install clang-19 llvm-19; or set CLANG and LLVM_STRIP to their paths." >&2
    exit 1
fi

arch=${GLASSHOUSE_BPF_ARCH:-}
if [ -z "$arch" ]; then
    case $(uname -m) in
        x86_64) arch=x86 ;;
        aarch64 | arm64) arch=arm64 ;;
        *)
            echo "glasshouse-bpf: no BPF support for $(uname -m); set GLASSHOUSE_BPF_ARCH to x86 or arm64." >&2
            exit 1
            ;;
    esac
fi

# compile SOURCE OBJECT [FLAG...]
compile() {
    source=$1 object=$2
    shift 2
    "$clang" -O2 -g -target bpf -mcpu=v3 "-D__TARGET_ARCH_$arch" \
        -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -Wno-missing-declarations \
        -Wno-sign-compare -Wno-unused-variable \
        "-ffile-prefix-map=$here=bpf" -I "$here/include" -I "$here/probe" "$@" -c "$source" -o "$object"
    # The DWARF goes, the BTF stays: CO-RE and the alignment test need it.
    "$strip" -g "$object"
}

mkdir -p "$out"
for source in "$here"/probe/*.bpf.c "$here"/sandbox/*.bpf.c; do
    compile "$source" "$out/$(basename "$source" .c).o"
done
compile "$here/probe/probe.bpf.c" "$out/probe.direct.bpf.o" -DGH_DIRECT_READS
