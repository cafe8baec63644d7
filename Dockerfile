# The whole image is one file: docker build -t docspace-rotate .
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
ENV RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/usr/local/cargo=/cargo"

# The dependencies, in a layer that changes only with these two files.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src tests/portal \
 && echo 'fn main() {}' | tee src/main.rs tests/portal/try.rs > tests/portal/bench.rs \
 && touch src/lib.rs \
 && cargo build --release --locked --target "$(uname -m)-unknown-linux-gnu"

# Newer than what was built from the empty files above.
COPY src src
RUN touch src/*.rs \
 && cargo build --release --locked --target "$(uname -m)-unknown-linux-gnu" \
 && cp "target/$(uname -m)-unknown-linux-gnu/release/docspace-rotate" /docspace-rotate

FROM scratch
COPY --from=build /docspace-rotate /docspace-rotate
USER 65534:65534
ENTRYPOINT ["/docspace-rotate"]
