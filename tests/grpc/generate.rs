//! The code that is generated from `proto/`, by crates alone: no `protoc` is needed, here or in a build.
//!
//! After a change of a `.proto`: `HOTSERVE_GENERATE=1 cargo test --test main grpc::generate`.

use prost::Message as _;

use crate::support::repository;

const PROTOS: [&str; 2] = ["open_inference.proto", "grpc/health/v1/health.proto"];
/// What is generated for a package, and where it is kept.
const FILES: [(&str, &str); 3] =
    [("inference.rs", "inference.rs"), ("grpc.health.v1.rs", "health.rs"), ("descriptors.bin", "descriptors.bin")];

#[test]
fn the_generated_code_is_that_of_the_protos() {
    let out = tempfile::tempdir().unwrap();
    let mut set = protox::compile(PROTOS, [repository("proto")]).unwrap();
    let mut config = prost_build::Config::new();
    // Tensors are not copied out of their message, and messages are the same bytes whenever they are written.
    // Nobody makes this one: the method is not served.
    config.extern_path(".inference.ModelStreamInferResponse", "()");
    config.bytes(["raw_input_contents", "raw_output_contents"]).btree_map(["."]).out_dir(out.path());
    config.compile_fds(set.clone()).unwrap();
    for file in &mut set.file {
        file.source_code_info = None;
    }
    std::fs::write(out.path().join("descriptors.bin"), set.encode_to_vec()).unwrap();
    let kept = repository("src/http/v2/grpc/proto");
    for (made, name) in FILES {
        let made = std::fs::read(out.path().join(made)).unwrap();
        if std::env::var_os("HOTSERVE_GENERATE").is_some() {
            std::fs::write(kept.join(name), &made).unwrap();
        }
        assert!(made == std::fs::read(kept.join(name)).unwrap(), "{name} is not what proto/ says: generate it anew");
    }
}

#[test]
fn every_method_is_counted_by_its_path() {
    let set = protox::compile(PROTOS, [repository("proto")]).unwrap();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                assert!(hotserve::metrics::GRPC_METHODS.contains(&path.as_str()), "{path} is not in the metrics table");
            }
        }
    }
}
