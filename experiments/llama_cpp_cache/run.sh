#!/bin/bash
# Build llama.cpp with CUDA from a source archive, write a model, run the comparison.
#
#   run.sh llama-src.tar.gz OUT [--hardware h100.toml] [more options of run.py]
#
# Needs nvcc, cmake, ninja, a C++ compiler, and Python with uvmsim's dependencies and gguf. The archive
# holds llama.cpp's sources in one folder; ARCH names the GPU's architecture (90: H100).
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$1 out=$2
shift 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=${WORK:-$(mktemp -d)}
mkdir -p "$work/src" "$work/cells"
command -v nvcc >/dev/null || export PATH="/usr/local/cuda/bin:$PATH"
start=$SECONDS
python3 "$here/make_model.py" "$work/model.gguf" >"$work/model.log" 2>&1 &
model=$!
tar xzf "$source" -C "$work/src" --strip-components=1 || exit 1
{
    cmake -S "$work/src" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90}" -DGGML_CUDA_FA=OFF -DGGML_NATIVE=OFF \
        -DGGML_CCACHE=OFF -DGGML_CUDA_NCCL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF &&
        timeout "${BUILD_SECONDS:-290}" ninja -C "$work/build" -k 0 llama llama-completion
} >"$out/build.txt" 2>&1
built=$?
echo "build: $((SECONDS - start)) s, exit $built"
wait $model || { cat "$work/model.log"; echo "the model could not be written"; exit 1; }
echo "model: after $((SECONDS - start)) s, $(stat -c %s "$work/model.gguf" 2>/dev/null) bytes"
[ -e "$work/build/bin/libllama.so" ] || { tail -40 "$out/build.txt"; exit 1; }
tail -c 20000 "$out/build.txt" >"$out/build.tail" && mv "$out/build.tail" "$out/build.txt"
python3 "$here/run.py" "$work/model.gguf" --lib "$work/build/bin" --work "$work/cells" --out "$out" "$@"
code=$?
tar czf "$out/cells.tar.gz" -C "$work" cells
echo "all: $((SECONDS - start)) s"
exit $code
