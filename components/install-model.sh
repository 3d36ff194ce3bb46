#!/bin/sh
# install.sh WORK: put the model of this artifact at WORK/model, whole or not at all.
#
# It is copied beside, and then a link is turned in one step. Whoever has the old one open goes on with it; it stays
# until the next update.
set -eu
artifact=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=${1%/}
name=model-$(cut -c 1-16 "$artifact/digest")
before=$(readlink "$work/model" || :)
if [ "$before" = "$name" ] && [ -d "$work/model" ]; then
  echo "install: The model of this version is there already."
  exit 0
fi
if [ ! -d "$work/$name" ]; then
  rm -rf "$work/new"
  cp -R "$artifact/model" "$work/new"
  sync
  mv "$work/new" "$work/$name"
fi
rm -f "$work/model.new"
ln -s "$name" "$work/model.new"
# mv would follow the link that is there.
python3 -c 'import os, sys; os.replace(sys.argv[1], sys.argv[2])' "$work/model.new" "$work/model"
for other in "$work"/model-*; do
  case ${other##*/} in
  "$name" | "$before") ;;
  *) rm -rf "$other" ;;
  esac
done
echo "install: Done."
