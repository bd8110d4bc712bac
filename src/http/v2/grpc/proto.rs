//! The messages, generated from `proto/` by `tests/grpc/generate.rs`, which also proves that they are.

/// The package `inference`: the Open Inference Protocol.
#[expect(clippy::enum_variant_names, reason = "they are called so in the protocol")]
#[rustfmt::skip]
#[path = "proto/inference.rs"]
pub mod inference;

/// The package `grpc.health.v1`.
#[rustfmt::skip]
#[path = "proto/health.rs"]
pub mod health;

/// What the services are, for those who ask by reflection: a `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!("proto/descriptors.bin");
