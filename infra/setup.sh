#!/usr/bin/env bash
# Make .venv from requirements.lock. Needs Python 3.11, 3.12 or 3.13 with pip and venv, nothing else.
#
# torch is the one package that comes in several builds. A CPU user must not fetch gigabytes of CUDA, so the CPU
# build is looked for first where pip is configured to look, then at PyTorch's own index; the default build is the last
# resort. ESPALIER_EXTRA=gpu takes the CUDA builds of torch and faiss instead.
set -euo pipefail
cd "$(dirname "$0")/.."
extra="${ESPALIER_EXTRA:-cpu}"
venv=.venv
python="${PYTHON:-$(command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)}"
if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
  echo "espalier: needs Python 3.11, 3.12 or 3.13 with pip and venv; $python is not that. Set PYTHON=/path/to/python3.11" >&2
  exit 2
fi
stamp=$( (cat requirements.lock pyproject.toml infra/setup.sh; echo "$extra") | "$python" -c 'import hashlib,sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
if [ "$(cat "$venv/.ready" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

echo "espalier: setting up $venv (a few minutes the first time)" >&2
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
install() { "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check "$@" 2>"$venv/pip.log" || { grep -v WARNING "$venv/pip.log" >&2; return 1; }; }
torch=$(grep -E '^torch==' requirements.lock)
vision=$(grep -E '^torchvision==' requirements.lock)
rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -vE '^(torch|torchvision|faiss-cpu)==' requirements.lock >"$rest"
[ "$extra" = gpu ] || grep -E '^faiss-cpu==' requirements.lock >>"$rest"
install --no-deps -r "$rest"
if [ "$extra" = gpu ]; then
  install "$torch" "$vision" 'faiss-gpu-cu12>=1.14,<2'
elif install --no-deps "$torch+cpu" 2>/dev/null; then
  install --no-deps "$vision"
elif install --no-deps --retries 1 --timeout 15 --index-url https://download.pytorch.org/whl/cpu "$torch" "$vision" 2>/dev/null; then
  :
else
  install "$torch" "$vision"
fi
install --no-deps --no-build-isolation -e . || install --no-deps -e .
# Compiled once here, on all cores, rather than by every worker that starts.
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null 2>&1 || true
echo "$stamp" >"$venv/.ready"
