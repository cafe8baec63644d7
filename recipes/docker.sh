#!/bin/sh
# Docker or Podman: a new client secret into the file client-secret, without a newline.
#
# docspace.env, readable by you alone, has these lines without quotes:
#   DOCSPACE_BASE_URL=https://your-portal.example
#   DOCSPACE_CLIENT_ID=27d1f5ac-11da-4592-828d-1bd6e6212e9d
#   DOCSPACE_API_KEY=sk-...
#
# `docker inspect` shows the key during the run, but not a key in a file: -e DOCSPACE_API_KEY_FILE=/key
# -v "$PWD/docspace-key:/key:ro". Podman without root needs `export PODMAN_USERNS=keep-id`.
set -eu
umask 077
touch client-secret # If it didn't exist, Docker would make a directory.
exec docker run --rm --name docspace-rotate --read-only --cap-drop=ALL --security-opt=no-new-privileges \
  --user "$(id -u):$(id -g)" --env-file docspace.env -v "$PWD/client-secret:/client-secret" \
  ghcr.io/your-organization/docspace-rotate:0.4.0 --verify --no-newline --output /client-secret
