#!/usr/bin/env bash
# Records the versions in .venv as the tested ones: run it after `make test` passed with newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."
# opencv-python is left out: the Makefile says why
.venv/bin/python -m pip freeze --exclude-editable | grep -vi '^opencv-python==' > constraints.new
mv constraints.new constraints.txt
