# The whole image is one file: docker build -t docspace-rotate:0.4.0 .
FROM rust:1.95.0-slim-bookworm AS build
RUN cargo install --locked cargo-auditable@0.7.7
WORKDIR /src
ENV RUSTFLAGS="-C target-feature=+crt-static"

# The dependencies, in a layer that changes only with these two files.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
 && touch benches/bench.rs \
 && echo '//! Empty.' > src/lib.rs \
 && printf '//! Empty.\nfn main() {}\n' > src/main.rs \
 && cargo auditable build --release --locked --target "$(rustc --print host-tuple)"

# Newer than what was built from the empty files above.
COPY src src
RUN touch src/*.rs \
 && cargo auditable build --release --locked --target "$(rustc --print host-tuple)" \
 && cp "target/$(rustc --print host-tuple)/release/docspace-rotate" /docspace-rotate

FROM scratch
ARG SOURCE=""
LABEL org.opencontainers.image.title="docspace-rotate" \
      org.opencontainers.image.description="Rotates the client secret of an ONLYOFFICE DocSpace OAuth app" \
      org.opencontainers.image.version="0.4.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.source="$SOURCE"
COPY --from=build /docspace-rotate /docspace-rotate
USER 65534:65534
ENTRYPOINT ["/docspace-rotate"]
