#!/usr/bin/env bash
# Installs the optional libraries that this machine can use into .venv, and says what it leaves out and why.
set -euo pipefail
cd "$(dirname "$0")/.."

python=.venv/bin/python
deepspeed=no flash=no
for option in "$@"; do
  case "$option" in
    --deepspeed) deepspeed=yes ;;
    --flash-attn) flash=yes ;;
    *) echo "unknown option $option; known are --deepspeed and --flash-attn" >&2; exit 2 ;;
  esac
done
if [ ! -x "$python" ]; then
  echo "there is no .venv yet: run make setup first" >&2
  exit 2
fi

install() { "$python" -m pip --disable-pip-version-check install --quiet --constraint constraints.txt "$@"; }
has_gpu() { "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

install bitsandbytes
echo "bitsandbytes: installed"
if has_gpu; then
  install liger-kernel 'fla-core>=0.6,<0.7' triton
  echo "liger-kernel, fla-core, triton: installed"
else
  echo "liger-kernel, fla-core, triton: left out, torch sees no CUDA device"
fi
if [ "$deepspeed" = yes ]; then
  # Builds its kernels at their first use, which needs a C++ compiler.
  command -v c++ >/dev/null || echo "deepspeed: no C++ compiler was found; its offloaded optimisers will not build"
  install deepspeed
  echo "deepspeed: installed"
fi
if [ "$flash" = yes ]; then
  if command -v nvcc >/dev/null; then
    install ninja packaging
    "$python" -m pip install --no-build-isolation flash-attn
    echo "flash-attn: installed"
  else
    echo "flash-attn: left out, nvcc was not found (torch's own FlashAttention-2 is used)"
  fi
fi
.venv/bin/engine profile --quick
