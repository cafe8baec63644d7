#!/bin/sh
# Docker: a new client secret into the file client-secret, without a newline.
#
# docspace.env, readable by you alone, has these lines. Docker takes them as they are: no quotes, no `export`.
#   DOCSPACE_BASE_URL=https://your-portal.example
#   DOCSPACE_CLIENT_ID=27d1f5ac-11da-4592-828d-1bd6e6212e9d
#   DOCSPACE_API_KEY=sk-...
#
# `docker inspect` shows the key while the run lasts. With the key in a file, and not in docspace.env, it does not:
# -e DOCSPACE_API_KEY_FILE=/key -v "$PWD/docspace-key:/key:ro". If the user of the container can't read it, the run
# ends with 2 and 'the file that it names can't be read: Permission denied'.
#
# The name keeps two runs apart: Docker ends the second with 125. Podman does the same in Docker's place; without root
# it needs `export PODMAN_USERNS=keep-id`.
set -eu
umask 077
# The file has to be there: Docker would make a directory of that name, and the run would end with 2 and
# "can't write to --output /client-secret: Is a directory". A run without a new secret leaves it as it is.
touch client-secret
exec docker run --rm --name docspace-rotate --read-only --cap-drop=ALL --security-opt=no-new-privileges \
  --user "$(id -u):$(id -g)" --env-file docspace.env -v "$PWD/client-secret:/client-secret" \
  docspace-rotate:0.2.0 --verify --no-newline --output /client-secret
