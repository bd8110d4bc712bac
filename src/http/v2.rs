//! The Open Inference Protocol, version 2, over REST.

pub(super) mod grpc;
pub(super) mod wire;
