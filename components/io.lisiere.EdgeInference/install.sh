#!/bin/sh
# install.sh WORK ARCHITECTURE: make WORK/venv, the private environment of io.lisiere.EdgeInference.
#
# The environment is made in WORK/env-<digest of the artifact>, marked complete at the very end, and only then does the
# link WORK/venv point to it: whenever this is cut short, what ran before still runs, and the next install starts over.
# An environment that is complete is recognised, so that nothing is downloaded or built twice. The one before stays for
# a rollback. Packages come from wheels/ in the artifact when it is there, else from the index that pip is set up with.
set -eu

NEED_MB=400 # what numpy, OpenCV and the rest take, and room for their downloads

say() { printf 'install: %s\n' "$1"; }
fail() {
  printf 'install: %s\n' "$1" >&2
  exit 1
}

[ $# -eq 2 ] || fail "This takes a work folder and an architecture (amd64, aarch64 or arm)."
artifact=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=${1%/}
architecture=$2
[ -f "$artifact/digest" ] || fail "The artifact in $artifact is not whole: deploy the component again."
[ -d "$artifact/sample/$architecture" ] || fail "The artifact in $artifact has nothing for $architecture."

python=
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
  if path=$(command -v "$candidate") && "$path" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    python=$path
    break
  fi
done
if [ -z "$python" ]; then
  found=$(python3 --version 2>/dev/null) || fail "There is no python3 here. Install Python 3.10 or newer."
  fail "Python 3.10 or newer is needed, and this is $found. Install a newer one beside it, such as python3.11."
fi

digest=$(cat "$artifact/digest")
name=env-$(printf %.16s "$digest")
env=$work/$name
# Another Python, or the disk in another machine, needs another environment.
identity="$digest $("$python" -c 'import platform, sys; print("%d.%d" % sys.version_info[:2], platform.machine())')"

use_environment() {
  before=$(readlink "$work/venv" || :)
  [ "$before" = "$name" ] && return
  rm -f "$work/venv.new"
  ln -s "$name" "$work/venv.new"
  # mv would follow the link that is there.
  "$python" -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$work/venv.new" "$work/venv"
  for other in "$work"/env-*; do
    case ${other##*/} in
    "$name" | "$before") ;;
    *) rm -rf "$other" ;;
    esac
  done
}

if [ "$(cat "$env/complete" 2>/dev/null)" = "$identity" ] && "$env/bin/python" -c 'import lisiere' 2>/dev/null; then
  use_environment
  say "The environment of this version is there already."
  exit 0
fi

"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$("$python" --version) has no venv module here. On Debian, Ubuntu and Raspberry Pi OS: sudo apt install python3-venv"
free_mb=$(df -Pk "$work" | {
  read -r _
  read -r _ _ _ free _
  echo $((free / 1024))
})
[ "$free_mb" -ge "$NEED_MB" ] || fail "The disk of $work has $free_mb MB free, and $NEED_MB are needed."

rm -rf "$env"
say "Making the environment with $("$python" --version)."
wheel=$(echo "$artifact"/lisiere-*.whl)
set -- --quiet --no-cache-dir --disable-pip-version-check --no-input --retries 2 --timeout 15 --only-binary=:all:
if [ -d "$artifact/wheels" ]; then
  set -- "$@" --no-index --find-links "$artifact/wheels"
  from="the wheels in the artifact"
else
  from="pip's index"
fi
if [ "$architecture" = arm ]; then
  # PyPI has no wheels for 32-bit ARM. Those of piwheels, and what the system has, are others than the lock's.
  "$python" -m venv --system-site-packages "$env" || fail "The environment cannot be made in $env."
  set -- "$@" "${wheel}[camera,greengrass]"
else
  "$python" -m venv "$env" || fail "The environment cannot be made in $env."
  set -- "$@" --no-deps --require-hashes -r "$artifact/requirements.txt"
fi
"$env/bin/python" -m pip install "$@" ||
  fail "Packages could not be installed from $from; pip says why above. Without a network, build with --wheels."
if [ "$architecture" != arm ]; then
  "$env/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-index --no-deps "$wheel" ||
    fail "The wheel of Lisière could not be installed; pip says why above."
fi

mkdir "$env/sample"
cp -R "$artifact/sample/$architecture" "$env/sample/model"
cp -R "$artifact/sample/images" "$env/sample/images"
sync # what is marked complete must be on disk
printf '%s\n' "$identity" >"$env/complete.new"
mv "$env/complete.new" "$env/complete"
use_environment
say "Done."
